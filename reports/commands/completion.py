"""What the shell offers after an option: words, names of analyses, models. Nothing heavy is imported for it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from reports.running.discovery import discover

BUNDLED = Path(__file__).parent.parent.parent / "interp" / "bundled"


def words(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Offers what goes on with the last of several words with commas between them."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + word for word in known if word.startswith(last)]

    return complete


def analyses(incomplete: str) -> list[str]:
    """Names of analyses, with commas between them."""
    return words([analysis.command for analysis in discover().values()])(incomplete)


def models(incomplete: str) -> list[str]:
    """Bundled models, and the files and folders here that the word begins."""
    bundled = sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))
    folder, _, name = incomplete.rpartition("/")
    try:
        there = sorted(path for path in Path(folder or ".").expanduser().iterdir() if path.name.startswith(name))
    except OSError:
        there = []
    start = f"{folder}/" if folder or incomplete.startswith("/") else ""
    paths = [f"{start}{path.name}" for path in there if not path.name.startswith(".")]
    return [word for word in bundled if word.startswith(incomplete)] + paths
