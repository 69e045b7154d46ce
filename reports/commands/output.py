"""Where a command's output goes: checks before any work, whole files, text for a terminal, progress on stderr."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from interp.errors import InputError


def check_target(path: Path, force: bool, option: str = "--out") -> None:
    """Before any work: raises InputError for a file that must not be overwritten, or a place that cannot be written."""
    if path.is_dir():
        inside = path / "report.html"
        raise InputError(f"{path} is a directory", "expected the name of a file to write", f"try {option} {inside}")
    _check_above(path, option)
    if path.exists() and not path.is_file():
        hint = f"choose another with {option}"
        raise InputError(f"{path} is a device or a pipe", "expected the name of a file to write", hint)
    if path.exists() and not force:
        choice = f"--force overwrites it, {option} names another place"
        raise InputError(f"{path} exists", "nothing was overwritten", choice)


def check_folder(path: Path, option: str = "--out") -> None:
    """Before any work: raises InputError for a folder that cannot be made or written."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file", "expected the name of a folder", f"choose another with {option}")
    _check_above(path / "inside", option)


def _check_above(path: Path, option: str) -> None:
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(
            f"{path} cannot be written: {above} is {'not writable' if above.is_dir() else 'not a folder'}",
            "expected a place where files can be made",
            f"choose another with {option}",
        )


def shown(text: str) -> str:
    """Text of a model, or a name, for standard output: on a terminal, what would steer it is written as codes."""
    from reports.tokens import printable

    return "\n".join(map(printable, text.split("\n"))) if sys.stdout.isatty() else text


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    from interp.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def told(path: Path, open: bool = False, *, named: bool = True) -> None:
    """The place of what was written, on standard output; and the page in the browser where that was asked for."""
    if named:
        print(shown(str(path)))
    if open:
        import typer

        typer.launch(str(path))


def hint(quiet: bool, text: str) -> None:
    """A line on stderr, where no name can steer the terminal."""
    from reports.tokens import printable

    if not quiet:
        say(printable(text))


def say(text: str) -> None:
    """A line on stderr. Where that cannot be written (a full disk) it is lost, and the work goes on."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: Any) -> None:
    """What still waits to be written to a stream goes nowhere: Python would try once more at its end, and complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_closed_streams() -> bool:
    """Standard streams that were closed lead nowhere from here on, so that no file that is opened takes their place.

    Returns whether standard output was one of them.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - stays open to the end
    return "stdout" in closed


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 6000 else f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the time left on stderr, when that is a terminal. Yields `step(what, done, total)`.

    Loops that an analysis tracks (`interp.progress`) move it within a step; what it says goes to stderr.
    """
    from interp.progress import hearing

    if quiet or not sys.stderr.isatty():
        with hearing(lambda text: hint(quiet, text)):
            yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    from interp.progress import listening
    from reports.tokens import printable

    class Clock(ProgressColumn):
        def render(self, task: Task) -> Text:
            left = task.time_remaining if task.total else None
            return Text(duration(task.elapsed or 0) + (f", about {duration(left)} left" if left is not None else ""))

    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(pulse_style="blue", complete_style="blue", finished_style="blue"),
        Clock(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("loading the model", total=None)
        state = [0, 1]

        def step(what: str, done: int, total: int) -> None:
            state[:] = done, total
            bar.update(task, description=what, completed=done, total=total if total > 1 else None)

        def within(done: int, total: int) -> None:
            bar.update(task, completed=state[0] + done / max(1, total), total=state[1])

        with listening(within), hearing(lambda text: console.print(printable(text))):
            yield step
