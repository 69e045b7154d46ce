"""What the README says is true: its Python runs, its commands and analyses exist."""

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import interp

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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


FACES = {"interp", "analyses", "analyses.probes", "reports"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("*.py"))]


def imported(text: str) -> set[str]:
    """Our modules that the Python of a page or example imports."""
    named = r"^(?:from|import) +((?:interp|analyses|reports)(?:\.\w+)*)"
    return set(re.findall(named, text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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
