"""What the README says is true: its code runs, and leaves what it says; its commands and analyses exist."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import PAGES, ROOT, blocks, run

import interp

README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_its_code_runs(tmp_path: Path) -> None:
    names = run("README.md", README, tmp_path)
    assert names["cache"]["pattern", 2, "cross_attn"].ndim == 4  # of the last block
    assert len(names["result"].to_dataframe()) > 0
    assert (tmp_path / "mary.html").stat().st_size > 500_000
    assert list((tmp_path / "numbers").glob("*.parquet"))


def test_the_first_five_lines_run(tmp_path: Path) -> None:
    first = next(block for block in blocks(README) if block.language == "python")
    names = run("README.md", f"```python\n{first.text}```\n", tmp_path)
    assert names["cache"]["pattern", 0].shape[1] == 4
    assert (names["without"] - names["logits"]).abs().max() > 1e-3


def test_every_analysis_is_in_the_table_and_every_name_in_it_exists() -> None:
    from reports.running.discovery import discover

    table = README.split("## What it can do")[1].split("\n\n")[1]
    named = set(re.findall(r"`([a-z-]+)`", table))
    analyses = {analysis.command for analysis in discover().values()}
    assert analyses <= named
    assert named - analyses == {"extract", "generate", "report", "study", "train"}


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / target).exists(), target


FACES = {"interp", "analyses", "analyses.probes", "reports"}
TEXTS = [*PAGES, *sorted((ROOT / "docs").glob("*.py"))]


def imported(text: str) -> set[str]:
    """Our modules that the Python of a page or example imports."""
    named = r"^(?:from|import) +((?:interp|analyses|reports)(?:\.\w+)*)"
    return set(re.findall(named, text, re.MULTILINE))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_pages_import_from_the_packages_faces(page: Path) -> None:
    assert imported(page.read_text()) <= FACES


def test_an_import_from_within_is_seen() -> None:
    assert imported("x\nfrom interp.sweep.plan import Plan\n") == {"interp.sweep.plan"}


@pytest.mark.parametrize("package", ["interp", "analyses", "reports"])
def test_every_name_of_a_face_is_there(package: str) -> None:
    """All that the stub lists, functions as functions though a module of that name is imported."""
    module = importlib.import_module(package)
    names = [name for name in dir(module) if name != "__version__"]
    assert len(names) > 4
    for name in names:
        found = getattr(module, name)
        home = getattr(found, "__module__", package)
        importlib.import_module(home if isinstance(home, str) else package)
        assert getattr(module, name) is found
        assert not inspect.ismodule(found) or name in ("interventions", "scale")


def test_the_faces_cost_nothing() -> None:
    code = "import interp, analyses, reports, sys; print(sorted({'torch', 'numpy', 'pandas'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="module 'interp' has no attribute 'nothing'"):
        interp.nothing  # noqa: B018
