"""Studies: one short declarative file each; file name = function name = `interp study NAME`. See `_parts`."""

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import InputError, nearest
from reports.running.discovery import Option, keyword_options

if TYPE_CHECKING:
    from reports.studies._parts import Study


@dataclass(frozen=True)
class StudyFile:
    """One file in `reports/studies`: a function of its name makes the study, `name(model, *, options) -> Study`.

    Without a parameter `model` the study makes its own.
    """

    name: str
    path: Path

    @property
    def command(self) -> str:
        """How it is run: study wolfram."""
        return f"study {self.name}"

    @cached_property
    def doc(self) -> str:
        """The file's docstring, read without importing it."""
        return inspect.cleandoc(ast.get_docstring(ast.parse(self.path.read_text(encoding="utf-8"))) or "")

    @property
    def help(self) -> str:
        """One line: what the study rebuilds."""
        return self.doc.partition("\n")[0].strip()

    @property
    def place(self) -> tuple[str, str]:
        """Studies are listed in the order of their addresses, which their first lines end with: "(S0)."."""
        found = re.search(r"\((S\d+)\)", self.help)
        return (found[1] if found else "T", self.name)

    def function(self) -> "Callable[..., Study]":
        """What makes the study; this imports its file, and with it torch."""
        function: Callable[..., Study] = getattr(import_module(f"{__name__}.{self.name}"), self.name)
        return function

    @property
    def takes_model(self) -> bool:
        return "model" in inspect.signature(self.function()).parameters

    def options(self) -> list[Option]:
        """The function's keyword-only parameters, in the same form as those of an analysis."""
        return keyword_options(self.name, self.function())


def discover_studies() -> dict[str, StudyFile]:
    """All studies by name, in the order of their addresses."""
    files = [StudyFile(path.stem, path) for path in Path(__file__).parent.glob("[!_]*.py")]
    return {file.name: file for file in sorted(files, key=lambda file: file.place)}


def find_study(name: str) -> StudyFile:
    """The study of that name. Raises InputError, with the nearest names."""
    known = discover_studies()
    if name not in known:
        close = nearest(name, list(known))
        expected = f"{'nearest' if close else 'expected one of'}: {', '.join(close or known)}"
        raise InputError(f"no study is called {name!r}", expected, "see: interp study --list")
    return known[name]
