"""Exceptions as exit codes and short messages: what failed, what was expected, what to try next. Never a traceback."""

import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import typer

from interp.errors import InterpError, NotFoundError, nearest

DONE, BUG, USAGE, NOT_FOUND, MEMORY, CHECK_FAILED, INTERRUPTED, CLOSED_PIPE = 0, 1, 2, 3, 4, 5, 130, 141
MAX_LINE = 400
PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG}
"""Errors of the place that a file, or standard output, was to be written to."""


class ReportIncomplete(InterpError):
    """A page that was written although analyses broke: a bug, whose sections say so."""

    exit_code = BUG


UsageError = typer.BadParameter.__mro__[1]  # click's own, wherever this version of typer keeps it


def guarded(run: Callable[[], Any], args: Sequence[str]) -> int:
    """The exit code of `run`; whatever it raises is told in at most three lines on stderr (more with --debug)."""
    debug = "--debug" in (args[: args.index("--")] if "--" in args else args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that it cannot write becomes a code
            stream.reconfigure(errors="backslashreplace")
    try:
        run()
        sys.stdout.flush()
        return DONE
    except typer.Exit as stop:
        return int(stop.exit_code)
    except SystemExit as stop:  # a library ended the program
        return stop.code if isinstance(stop.code, int) else BUG
    except BrokenPipeError:  # the reader of our output has gone (`interp ... | head`): that is no error
        _silence()
        return CLOSED_PIPE
    except BaseException as error:
        if debug:
            traceback.print_exception(error)
        if isinstance(error, OSError) and error.errno in PLACE and error.filename is None:
            _silence()
        code, lines = explain(error, args)
        tell(lines)
        return code


def _silence() -> None:
    """What still waits to be written goes nowhere: Python would try once more at its end, and complain."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(lines: list[str]) -> None:
    """An error on stderr: the first line marked, the others below it. Nothing in them can steer the terminal."""
    from reports.tokens import printable

    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    mark = "\x1b[1;31merror:\x1b[0m" if colour else "error:"
    shown = [line if len(line) <= MAX_LINE else line[: MAX_LINE - 1] + "…" for line in map(printable, lines)]
    print(f"{mark} {shown[0]}", *(f"  {line}" for line in shown[1:3]), sep="\n", file=sys.stderr)


def explain(error: BaseException, args: Sequence[str] = ()) -> tuple[int, list[str]]:
    """The exit code and the lines, at most three, for any exception of the command that `args` mean."""
    command = "interp" + _command(args)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        resumes = any(arg.partition("=")[0] == "--resume" for arg in args)
        return INTERRUPTED, ["interrupted", *(["the same command goes on with what is finished"] if resumes else [])]
    if isinstance(error, InterpError):
        lines = str(error).split("\n")  # and not at other signs, which a name may hold
        model = isinstance(error, NotFoundError) and "model" in lines[0]
        hint = "interp models lists the known names" if model else f"see: {command} --help"
        return error.exit_code, lines if lines[-1].startswith("see:") else [*lines, hint][:3]
    if isinstance(error, UsageError):
        return USAGE, _usage(error, command, args)
    if out_of_memory(error):
        return MEMORY, [
            f"out of memory: {first_line(error)}",
            "expected enough memory for the model and its activations",
            "try a shorter text, fewer texts, --dtype bfloat16, or --device cpu",
        ]
    if isinstance(error, OSError) and error.errno in PLACE:
        what = error.filename or "the output"
        return USAGE, [f"{what}: {error.strerror}", "expected a place that can be used, with room", "choose another"]
    return BUG, [
        f"{type(error).__name__}: {first_line(error)}",
        "this is a bug in interp, not in what you typed",
        "run it again with --debug for the traceback, and report it",
    ]


def _usage(error: Any, command: str, args: Sequence[str]) -> list[str]:
    """Typer's own errors about options and arguments, in our form."""
    hint = f"see: {error.ctx.command_path if error.ctx else command} --help"
    message = " ".join(error.format_message().split())
    if message.startswith("No such option") and error.ctx:
        known = [opt for p in error.ctx.command.params for opt in (*p.opts, *p.secondary_opts) if opt.startswith("--")]
        close = nearest(error.option_name, known)
        return [f"no option {error.option_name}", *([f"nearest: {', '.join(close)}"] if close else []), hint]
    parameter: Any = getattr(error, "param", None)
    given = [value for opt in getattr(parameter, "opts", ()) if (value := _given(opt, args)) is not None]
    wanted = re.search(r"(?:should be|is not) (?:a valid |one of )?(.*?)(?:, unable.*)?\.?$", message)
    if given and wanted:
        words = {"integer": "a whole number", "number": "a number", "float": "a number"}
        kind = f"one of {wanted[1]}" if "one of" in message else words.get(wanted[1], wanted[1])
        return [f"{parameter.opts[0]} {given[-1]!r} cannot be used", f"expected {kind}", hint]
    return [message, hint]


def _given(option: str, args: Sequence[str]) -> str | None:
    """The value that was typed for an option."""
    for i, arg in enumerate(args):
        if arg.startswith(f"{option}="):
            return arg.partition("=")[2]
        if arg == option and i + 1 < len(args):
            return args[i + 1]
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what went wrong, in Python or in torch."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """Of its message."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def _command(args: Sequence[str]) -> str:
    first = next((arg for arg in args if not arg.startswith("-")), "")
    return f" {first}" if first.replace("-", "").isalpha() else ""
