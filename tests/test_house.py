"""Rules of the house that no single test would notice: layers, what is shipped, and no network."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {"interp": {"interp"}, "analyses": {"analyses", "interp"}, "reports": {"reports", "analyses", "interp"}}


def upward_imports(layer: str, source: str) -> list[str]:
    """Project packages that a file of `layer` imports though they lie above it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "import_module",
            "__import__",
        ):
            modules = [node.args[0].value] if node.args and isinstance(node.args[0], ast.Constant) else []
        found += [
            str(module) for module in modules if str(module).split(".")[0] in MAY_IMPORT.keys() - MAY_IMPORT[layer]
        ]
    return found


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_point_down(layer: str) -> None:
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    wrong = {str(file): upward_imports(layer, file.read_text()) for file in files}
    assert not {file: names for file, names in wrong.items() if names}


@pytest.mark.parametrize(
    "line", ["import reports", "from reports.page.html import render", "import_module('reports.cli')"]
)
def test_an_upward_import_is_seen(line: str) -> None:
    assert upward_imports("interp", line)
    assert upward_imports("analyses", f"def f():\n    {line}\n")
    assert not upward_imports("reports", line)


def modules() -> dict[str, Path]:
    """Every file of the project by the name it is imported under."""
    files = [file for layer in MAY_IMPORT for file in (ROOT / layer).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(source: str, known: set[str]) -> set[str]:
    """The project's modules that a file imports: at its head, within functions, or for type checkers alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (named & known) | ({node.module} if named - known else set())
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def circles(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Pairs of modules each of which can be reached from the other."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, todo = set[str](), [*graph[start]]
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo += graph[one]
        reach[start] = seen
    return [(one, other) for one in graph for other in sorted(reach[one]) if one < other and one in reach[other]]


def test_no_files_import_each_other() -> None:
    files = modules()
    graph = {name: imports(file.read_text(), set(files)) - {name} for name, file in files.items()}
    assert len(graph) > 150
    assert circles(graph) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert imports("def f():\n    from interp.sweep import plan", {"interp.sweep.plan", "interp.sweep"}) == {
        "interp.sweep.plan"
    }


def test_analyses_ask_what_a_model_has_and_never_what_it_is() -> None:
    found = [name for name, file in modules().items() if "isinstance(model, Hooked" in file.read_text()]
    assert [name for name in found if name.startswith("analyses")] == []


def test_the_page_on_architecture_names_every_room_and_file() -> None:
    """Every file of `interp` by its name, every room of the others; and nothing that is not there."""
    page = (ROOT / "ARCHITECTURE.md").read_text()
    assert len(page.splitlines()) <= 100
    words = set(re.findall(r"[a-z_0-9]+", page.split("\n## ")[0]))
    inside = {name.split(".")[-1] for name in modules() if name.startswith("interp.")}
    assert inside - words - {"face", "version", "phrase_words", "__main__"} == set()
    rooms = {file.parent.name for file in modules().values()}
    assert rooms - words == set()
    rooms_named = "models|loading|shared|running|tests|commands"
    for path in re.findall(rf"`((?:{rooms_named})/(?!my_|test_my)[\w/]+\.(?:py|html))`", page):
        assert any((ROOT / folder / path).exists() for folder in ("", "interp", "analyses", "reports")), path


def test_analyses_neither_draw_nor_read_nor_print() -> None:
    banned = {"matplotlib", "jinja2", "rich", "typer", "requests", "urllib", "socket"}
    for file in (ROOT / "analyses").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not {name.split(".")[0] for name in names} & banned, file
            if isinstance(node, ast.Call):
                assert getattr(node.func, "id", "") not in ("print", "open", "eval", "exec"), file


@pytest.mark.slow
def test_the_wheel_holds_three_packages_and_the_bundled_model(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, source, ignore=ignore)
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=120)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"interp", "analyses", "reports"}
    shipped = {name for name in names if name.endswith(".py")}
    assert {str(f.relative_to(ROOT)) for folder in MAY_IMPORT for f in (ROOT / folder).rglob("*.py")} == shipped
    for needed in (
        "interp/__init__.pyi",
        "interp/training/phrase_words.toml",
        "reports/page/static/page.js",
        "reports/running/options.json",
        "interp/bundled/tiny/model.safetensors",
        "interp/bundled/tiny/tokenizer.json",
        "reports/page/templates/page.html",
    ):
        assert needed in names


def test_a_folder_of_the_same_name_is_told(tmp_path: Path) -> None:
    """A notebook's own `reports/` stands before ours on the path of `python -m interp`."""
    command = [sys.executable, "-m", "interp", "--version"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert run().returncode == 0
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "__init__.py").touch()
    told = run()
    assert told.returncode == 2
    assert "stands before interp's own package" in told.stderr
    assert len(told.stderr.splitlines()) == 3


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_hints_name_libraries_that_this_project_knows() -> None:
    """`pip install X`: X is a dependency or one of an extra's, never this project, whose name may be a stranger's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    known = {normal(re.split(r"[<>=\[; ]", one)[0]) for one in needed}
    texts = [*(file for layer in MAY_IMPORT for file in (ROOT / layer).rglob("*.py")), *ROOT.glob("*.md")]
    texts += ROOT.glob("docs/*.md")
    said = [name for file in texts for name in re.findall(r"pip install '?([\w\[\]-]+)", file.read_text())]
    assert len(said) > 5
    assert {normal(name) for name in said if not name.startswith("-")} <= known


def test_what_runs_and_what_tests_is_pinned_apart() -> None:
    """constraints.txt holds all that a run needs and nothing else; constraints-test.txt the rest."""
    run, test = (
        {normal(line.split("==")[0]) for line in (ROOT / name).read_text().split()}
        for name in ("constraints.txt", "constraints-test.txt")
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed: set[str] = set()
    waiting = [Requirement(one) for one in project["dependencies"]]
    while waiting:
        one = waiting.pop()
        if (one.marker is None or one.marker.evaluate({"extra": ""})) and normal(one.name) not in needed:
            needed.add(normal(one.name))
            waiting += [Requirement(deeper) for deeper in metadata.requires(one.name) or []]
    assert needed == run
    assert not run & test
