"""Texts in files: whole ones, several that stand apart by form feeds, and as a value that the command line can load."""

from pathlib import Path
from typing import ClassVar

from interp.errors import NotFoundError
from interp.untrusted import as_text

SEPARATOR = "\f"
"""Between the documents of a text file."""
LINES = (".jsonl", ".ndjson")
"""Endings of files that hold one document a line, as JSON."""


class Documents(tuple[str, ...]):
    """Several texts; in a file they stand apart by form feeds."""

    FILE_NAME: ClassVar[str] = "held_out_sample.txt"
    """Documents that lie beside a model's weights go by this name."""

    @classmethod
    def load(cls, path: str | Path) -> "Documents":
        """The documents of a text file. Raises NotFoundError or InputError."""
        return cls(text.strip("\n") for text in read_documents(Path(path)) if text.strip())


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, separated by form feeds. Raises NotFoundError or InputError."""
    return decoded(path).split(SEPARATOR)


def decoded(path: Path) -> str:
    """The text of a file, as `as_text` reads it. Raises NotFoundError, or InputError with a line."""
    check_there(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}", "expected a text file") from error
    return as_text(raw, path)


def check_there(path: Path) -> None:
    """Raises NotFoundError where no file lies."""
    if not path.is_file():
        raise NotFoundError(
            f"there is no corpus at {path}",
            "expected text files, a folder of them, JSON lines, or a MediaWiki XML dump",
        )
