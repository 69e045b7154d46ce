"""docs/circuits.md: its Python runs, its commands have the options that they name."""

import re
from pathlib import Path

import numpy as np

from reports.commands.options import flag
from reports.running.discovery import discover

TEXT = (Path(__file__).parents[1] / "docs" / "circuits.md").read_text()


def test_its_python_runs_and_leaves_a_circuits_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(code, "circuits.md", "exec"), found)
    result = found["found"]
    assert (tmp_path / "circuit.json").stat().st_size > 10_000
    assert np.isfinite(result.facts()["faithfulness"])
    assert list(result.to_dataframe()) == ["sender", "receiver", "input", "score", "exact", "low", "high", "stability"]


def test_its_options_are_there():
    known = {flag(option.name) for option in discover()["circuits"].options()}
    known |= {"--model", "--prompts", "--template", "--open", "--save"}
    named = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    assert named <= known
    assert "--from" in named
