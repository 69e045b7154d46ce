"""Texts to learn from, as a value that the command line can load and a model's folder can hold."""

from pathlib import Path
from typing import ClassVar

from interp.evaluation import read_documents


class Documents(tuple[str, ...]):
    """Several texts; in a file they stand apart by form feeds."""

    FILE_NAME: ClassVar[str] = "held_out_sample.txt"
    """Documents that lie beside a model's weights go by this name."""

    @classmethod
    def load(cls, path: str | Path) -> "Documents":
        """The documents of a text file. Raises NotFoundError or InputError."""
        return cls(text.strip("\n") for text in read_documents(Path(path)) if text.strip())
