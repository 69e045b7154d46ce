"""The code in Markdown pages: what a page's blocks are, whether they are right, and running them as a reader would.

Python blocks run in order, in one module; lines of shell blocks (```sh, or indented) are checked against the options
that the commands have, and those of `interp` run in the same folder, between the Python, as the page has them.
A block that cannot run says why in a comment before it, for its lines that contain a word if one is given in brackets:

    <!-- not run: needs a graphics card -->
    <!-- not run (--install-completion): changes the shell's own files -->
"""

import contextlib
import io
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from interp.errors import InputError
from reports.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKER = re.compile(r"<!-- not run(?: \((?P<word>[^)]+)\))?: (?P<reason>.+?) -->")
FENCE = re.compile(r"(?P<margin>\s*)(?P<ticks>`{3,})\s*(?P<info>.*)")
PARSED = {"toml": tomllib.loads, "json": json.loads}
SHELL = ("sh", "bash", "console")


@dataclass(frozen=True)
class Block:
    """Code of a page."""

    language: str
    """What stands behind the fence; "sh" where lines are indented."""
    text: str
    line: int
    """Where it begins in the page, from 1."""
    reason: str = ""
    """Why it is not run."""
    only: str = ""
    """If not empty, the reason is that of the lines that contain this."""

    def skips(self, line: str = "") -> bool:
        return bool(self.reason) and self.only in line

    def lines(self) -> Iterator[list[str]]:
        """The words of each command of a shell block that is not empty; comments and prompts are taken off."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line.strip().removeprefix("$ "), comments=True):
                yield words


def blocks(text: str) -> list[Block]:
    """The fenced and the indented blocks of a page, in order."""
    found: list[Block] = []
    lines = text.splitlines()
    reason = only = ""
    number = 0
    while number < len(lines):
        line, start = lines[number], number
        if marker := MARKER.fullmatch(line.strip()):
            reason, only = marker["reason"], marker["word"] or ""
        elif fence := FENCE.fullmatch(line):
            number = next(n for n in range(start + 1, len(lines)) if lines[n].strip() == fence["ticks"])
            inside = "\n".join(one.removeprefix(fence["margin"]) for one in lines[start + 1 : number]) + "\n"
            found.append(Block(fence["info"], inside, start + 2, reason, only))
            reason = only = ""
        elif line.startswith("    ") and (start == 0 or not lines[start - 1].strip()) and not _in_list(lines[:start]):
            while number + 1 < len(lines) and lines[number + 1].startswith("    "):
                number += 1
            inside = "\n".join(one[4:] for one in lines[start : number + 1]) + "\n"
            found.append(Block("sh", inside, start + 1, reason, only))
            reason = only = ""
        elif line.strip():
            reason = only = ""
        number += 1
    return found


def _in_list(before: list[str]) -> bool:
    """Whether the paragraph before a gap is an item of a list, to which indented lines then belong."""
    paragraph = next((one for one in reversed(before) if one.strip()), "")
    return bool(re.match(r"\s*([-*]|\d+\.) ", paragraph))


def spans(text: str) -> list[list[str]]:
    """Commands in the running text: `interp ...`, `make ...`, `python FILE ...` in code."""
    said = re.findall(r"(?<!`)`((?:interp|make|python) [^`\n]+)`(?!`)", re.sub(r"(?s)```.*?\n```", "", text))
    return [shlex.split(one.replace("\\|", "|"), comments=True) for one in said]


def wrong(words: list[str], *, mentioned: bool = False) -> str:
    """What is wrong with a command, found without running it; "" when nothing is.

    One that is mentioned need not be whole: its name and its options have to be there.
    """
    program, *rest = words[: words.index(">")] if ">" in words else words
    if program == "interp":
        return _unknown(rest) if mentioned else _wrong_options(rest)
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        return "" if set(rest) <= targets else f"no target {set(rest) - targets} in the Makefile"
    if Path(program).name.startswith("python"):
        there = find_spec(rest[1]) is not None if rest[0] == "-m" else (ROOT / rest[0]).is_file() or rest[0] == "-c"
        return "" if there else f"there is no {rest[0]}"
    return ""


def _unknown(words: list[str]) -> str:
    group: Any = typer.main.get_command(app)
    name = next((word for word in words if word[0] != "-" and not word.isupper()), "")
    if not name:
        return ""
    try:
        command = group.get_command(typer.Context(group, info_name="interp"), name)
    except InputError as error:
        return str(error)
    these = [command, *_below(command).values()]
    known = {"--help"} | {flag for one in these for p in one.params for flag in (*p.opts, *p.secondary_opts)}
    unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - known
    return f"interp {name} has no {', '.join(sorted(unknown))}" if unknown else ""


def _below(command: Any) -> dict[str, Any]:
    """The commands of a command, such as the studies."""
    if not hasattr(command, "list_commands"):
        return {}
    context = typer.Context(command)
    return {name: command.get_command(context, name) for name in command.list_commands(context)}


def _wrong_options(words: list[str]) -> str:
    """Parses the words as the command would."""
    group: Any = typer.main.get_command(app)
    try:
        if not words or words[0].startswith("-"):
            group.make_context("interp", [one for one in words if one not in ("--help", "--install-completion")])
            return ""
        context = typer.Context(group, info_name="interp")
        name, *rest = words
        command: Any = group.get_command(context, name)
        if rest and rest[0] in (below := _below(command)):
            command, rest = below[rest[0]], rest[1:]
        command.make_context(name, [one for one in rest if one != "--help"], parent=context)
    except Exception as error:
        return f"interp {shlex.join(words)}: {getattr(error, 'message', '') or error}"
    return ""


def faults(text: str) -> list[str]:
    """What is wrong with the blocks and commands of a page, without running any."""
    found = [problem for words in spans(text) if (problem := wrong(words, mentioned=True))]
    for block in blocks(text):
        if block.language in SHELL:
            for words in block.lines():
                found += [f"line {block.line}: {problem}"] if (problem := wrong(words)) else []
                if (words[0] != "interp" or "|" in words) and not block.skips(shlex.join(words)):
                    found.append(f"line {block.line}: {words[0]} is not run, and no reason is given")
        elif block.language in PARSED:
            PARSED[block.language](block.text)
        elif block.language != "python" and not block.reason:
            found.append(f"line {block.line}: a block of {block.language or 'no language'} without a reason")
    return found


def run(page: str, text: str, folder: Path) -> dict[str, Any]:
    """Runs a page in a folder; returns the names that its Python leaves. Raises what its Python raises, AssertionError
    for a command that fails."""
    module = ModuleType(re.sub(r"\W", "_", page))
    sys.modules[module.__name__] = module  # an analysis is looked up in its module
    with contextlib.chdir(folder):
        for block in blocks(text):
            if block.language == "python" and not block.skips():
                code = "\n" * (block.line - 1) + block.text
                exec(compile(code, page, "exec"), vars(module))
            elif block.language in SHELL:
                for words in block.lines():
                    if words[0] == "interp" and not block.skips(shlex.join(words)):
                        typed, _, target = " ".join(map(shlex.quote, words[1:])).partition(" '>' ")
                        said = command(shlex.split(typed))
                        if target:
                            Path(target).write_text(said)
    return vars(module)


def command(words: list[str]) -> str:
    """What a command prints; no page is opened. Raises AssertionError where its exit status is not 0."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app([word for word in words if word != "--open"])
        except SystemExit as stop:
            if stop.code:
                raise AssertionError(f"interp {shlex.join(words)}: {stop.code}\n{err.getvalue()}") from None
    return out.getvalue()
