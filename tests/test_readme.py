"""What the README says is true: its Python runs, its commands and analyses exist."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_python_examples_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, *others = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert others
    for code in others:
        exec(compile(code, "README.md", "exec"), {})
    names: dict[str, object] = {}
    exec(compile(first, "README.md", "exec"), names)
    assert names["cache"]["pattern", 0].shape[1] == 4  # type: ignore[index]
    assert (names["without"] - names["logits"]).abs().max() > 1e-3  # type: ignore[operator]
    assert len(names["result"].to_dataframe()) > 0  # type: ignore[attr-defined]


def test_every_analysis_is_in_the_table_and_every_name_in_it_exists() -> None:
    from reports.running.discovery import discover

    table = README.split("## What it can do")[1].split("\n\n")[1]
    named = set(re.findall(r"`([a-z-]+)`", table))
    analyses = {analysis.command for analysis in discover().values()}
    assert analyses <= named
    assert named - analyses == {"extract", "generate", "report", "study", "train"}


def test_linked_files_exist() -> None:
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (root / target).exists(), target


@pytest.mark.parametrize("target", ["report", "test"])
def test_make_targets_exist(target: str) -> None:
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
