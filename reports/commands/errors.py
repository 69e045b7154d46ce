"""Exceptions as exit codes and short messages: what failed, what was expected, what to try next. Never a traceback."""

import errno
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import typer

from interp.errors import InputError, InterpError, NotFoundError, nearest
from interp.stopping import signal_of, signals_raise
from reports.commands.output import open_closed_streams, say, silence

DONE, BUG, USAGE, NOT_FOUND, MEMORY, CHECK_FAILED, CLOSED_PIPE = 0, 1, 2, 3, 4, 5, 141
EXIT_CODES = {
    DONE: "done",
    BUG: "a bug in interp, or a page whose sections say that an analysis broke",
    USAGE: "something that was given cannot be used, or output cannot be written",
    NOT_FOUND: "a file, a model or a hub is not there",
    MEMORY: "not enough memory",
    CHECK_FAILED: "a check ran and did not hold: rerun --check, verify, models --check",
    130: "interrupted (128 and the signal's number: 143 for SIGTERM)",
    CLOSED_PIPE: "the reader of the output has gone",
}
"""All there are, with what each says."""
KEEP_STATE = {"extract", "train", "train-lens"}
"""Commands that keep what is finished without being asked; --resume is a switch of theirs."""
MAX_LINE = 400
PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG}
"""Errors of the place that a file, or standard output, was to be written to."""


class ReportIncomplete(InterpError):
    """A page that was written although analyses broke: a bug, whose sections say so."""

    exit_code = BUG


UsageError = typer.BadParameter.__mro__[1]  # click's own, wherever this version of typer keeps it


def guarded(run: Callable[[], Any], args: Sequence[str]) -> int:
    """The exit code of `run`; whatever it raises is told in at most three lines on stderr (more with --debug).

    SIGTERM and SIGHUP end it as Ctrl-C does, with what that saves.
    """
    closed = open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that it cannot write becomes a code
            stream.reconfigure(errors="backslashreplace")
    try:
        with signals_raise():
            if closed and not {"--out", "--help", "--version"} & {arg.partition("=")[0] for arg in args}:
                raise InputError("standard output is closed", "expected a place to print to", "open it, or give --out")
            run()
            sys.stdout.flush()
        return DONE
    except typer.Exit as stop:
        return int(stop.exit_code)
    except SystemExit as stop:  # a library ended the program
        return stop.code if isinstance(stop.code, int) else BUG
    except BrokenPipeError:  # the reader of our output has gone (`interp ... | head`): that is no error
        silence(sys.stdout)
        return CLOSED_PIPE
    except BaseException as error:
        return _told(error, args)
    finally:
        with suppress(ValueError):
            try:
                sys.stderr.flush()
            except OSError:
                silence(sys.stderr)


def _told(error: BaseException, args: Sequence[str]) -> int:
    """Its exit code, after it was told."""
    if "--debug" in (args[: args.index("--")] if "--" in args else args):
        say("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, OSError) and error.errno in PLACE and error.filename is None:
        silence(sys.stdout)
    code, lines = explain(error, args)
    tell(lines)
    return code


def tell(lines: list[str]) -> None:
    """An error on stderr: the first line marked, the others below it. Nothing in them can steer the terminal."""
    from reports.tokens import printable

    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    mark = "\x1b[1;31merror:\x1b[0m" if colour else "error:"
    shown = [line if len(line) <= MAX_LINE else line[: MAX_LINE - 1] + "…" for line in map(printable, lines)]
    say("\n".join([f"{mark} {shown[0]}", *(f"  {line}" for line in shown[1:3])]))


def explain(error: BaseException, args: Sequence[str] = ()) -> tuple[int, list[str]]:
    """The exit code and the lines, at most three, for any exception of the command that `args` mean."""
    command = "interp" + _command(args)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        number = signal_of(error)
        came = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
        with_resume = "" if any(arg.partition("=")[0] == "--resume" for arg in args) else " with --resume"
        resumes = not with_resume or command.removeprefix("interp ") in KEEP_STATE
        return 128 + number, [came, *([f"the same command{with_resume} goes on with what is finished"] * resumes)]
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
    if isinstance(error, PermissionError) and error.filename:
        expected = "expected files and folders that this user may use"
        return USAGE, [f"{error.filename}: {error.strerror}", expected, "change their permissions, or choose another"]
    if isinstance(error, OSError) and error.errno in PLACE:
        if error.filename is None:
            there = "expected standard output to be a place with room"
            return USAGE, [f"the output: {error.strerror}", there, "send it elsewhere, or give --out"]
        there = "expected a place that can be used, with room"
        return USAGE, [f"{error.filename}: {error.strerror}", there, "choose another"]
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
        text = not error.option_name.startswith("--") or " " in error.option_name
        more = f"nearest: {', '.join(close)}" if close else "a text that begins with a dash goes behind --"
        return [f"no option {error.option_name}", *([more] if close or text else []), hint]
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
