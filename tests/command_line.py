"""Running `interp` inside the test process, and analyses made up for a test."""

from pathlib import Path
from typing import NamedTuple

import pytest

import analyses
from interp.models.gpt import HookedGPT
from reports.cli import app

TEXT = "Mary met John, and John thanked Mary"


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def interp(capsys: pytest.CaptureFixture[str], *args: object) -> Done:
    """One command, as typed."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        app([str(arg) for arg in args])
    return Done(int(stop.value.code or 0), *capsys.readouterr())


def save(model: HookedGPT, folder: Path) -> Path:
    """The model as a directory that --model accepts."""
    model.save_pretrained(folder)
    return folder


def add_analysis(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, body: str, signature: str = "") -> None:
    """Puts `analyses/NAME.py` there for one test: its function has `signature` behind `model, tokens, *` and `body`."""
    source = f'''"""Made up for a test: {name}.

Question: none.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import pandas as pd
import torch

from analyses.shared.panels import Note, Panel, Result, Table
from interp.errors import InputError


@dataclass(frozen=True)
class MadeUp(Result):
    rows: dict[str, object]

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame([{{key: str(value) for key, value in self.rows.items()}}])

    def panels(self) -> list[Panel]:
        return [Table(key="rows", title="Rows", frame=self.to_dataframe())]


def {name}(model, tokens, {"*, " + signature if signature else ""}):
    """Made up."""
    {body}
'''
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    monkeypatch.setattr(analyses, "__path__", [*analyses.__path__, str(folder)])
    monkeypatch.delitem(__import__("sys").modules, f"analyses.{name}", raising=False)
