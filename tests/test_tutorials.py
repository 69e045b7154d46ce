"""The tutorials: what is stored can be shown as it is, and each runs from the first cell to the last."""

import copy
import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
MODELS = Path(os.environ.get("INTERP_MODELS", "/nowhere"))
NEEDS = {"indirect_objects": "smollm2", "steering": "smollm2"}
"""Tutorial -> the model that does not ship with the package."""
NAMES = ("induction_heads", "indirect_objects", "toy_model", "steering")
LARGEST = 250_000
"""Bytes of one notebook."""
PLACE = re.compile(r"(/home/|/root/|/tmp/|/Users/|/work/|[A-Z]:\\)\S*")


def read(name: str) -> Any:
    return nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)


def shown(output: Any) -> str:
    """All text of one stored output."""
    if output.output_type == "stream":
        return str(output.text)
    return "\n".join(str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


def faults(book: Any) -> list[str]:
    """What keeps a notebook from being shown as it is stored."""
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    found = []
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("cells were not run in order")
    for cell in code:
        for output in cell.outputs:
            text = shown(output)
            if output.output_type == "error":
                found.append("an error is stored")
            if output.get("name") == "stderr" or "Warning" in text:
                found.append("a warning is stored")
            if "<iframe" in text or "<script" in text:
                found.append("an output needs a browser's script")
            if "\x1b" in text or "\r" in text:
                found.append("an output steers a terminal")
    for cell in book.cells:
        for text in (cell.source, *map(shown, cell.get("outputs", []))):
            if PLACE.search(text):
                found.append("a path of a machine")
    levels = [
        len(marks) for cell in book.cells if cell.cell_type == "markdown"
        for marks in re.findall(r"^(#+) ", cell.source, re.MULTILINE)
    ]  # fmt: skip
    if levels[:1] != [1] or levels.count(1) != 1 or any(b > a + 1 for a, b in pairwise(levels)):
        found.append("headings out of order")
    if not any("assert " in cell.source for cell in code):
        found.append("nothing is asserted")
    if not any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs):
        found.append("no picture")
    return found


def run(book: Any, folder: Path) -> None:
    """As a reader would: a fresh kernel, another folder, nothing but the package."""
    nbclient = pytest.importorskip("nbclient")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        nbclient.NotebookClient(book, timeout=1200, kernel_name="python3").execute(cwd=str(folder))


def test_there_are_no_others() -> None:
    assert {path.stem for path in TUTORIALS.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_can_be_shown(name: str) -> None:
    assert (TUTORIALS / f"{name}.ipynb").stat().st_size < LARGEST
    assert faults(read(name)) == []
    start = read(name).cells[0].source
    for part in ("**Question.**", "**At the end you know**", "**Model.**", "**Time.**"):
        assert part in start


def test_a_broken_copy_is_caught() -> None:
    """The control: each fault, put into a good notebook, is told, and no other."""
    good = read("induction_heads")
    code = [i for i, cell in enumerate(good.cells) if cell.cell_type == "code"]

    def stored(output: Any) -> Any:
        book = copy.deepcopy(good)
        book.cells[code[0]].outputs.append(output)
        return book

    out = nbformat.v4.new_output
    frame = out("display_data", data={"text/html": "<iframe></iframe>"})
    assert faults(stored(frame)) == ["an output needs a browser's script"]
    assert faults(stored(out("stream", name="stderr", text="careful"))) == ["a warning is stored"]
    assert faults(stored(out("stream", name="stdout", text="\x1b[31mred"))) == ["an output steers a terminal"]
    assert faults(stored(out("error", ename="E", evalue="", traceback=[]))) == ["an error is stored"]
    assert faults(stored(out("stream", name="stdout", text="saved in /home/anna/x"))) == ["a path of a machine"]
    book = copy.deepcopy(good)
    book.cells[code[1]].execution_count = 7
    assert faults(book) == ["cells were not run in order"]
    book = copy.deepcopy(good)
    book.cells[0].source = book.cells[0].source.replace("# ", "### ", 1)
    assert faults(book) == ["headings out of order"]


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own libraries


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, tmp_path: Path) -> None:
    if name in NEEDS and not (MODELS / NEEDS[name]).exists():
        pytest.skip(f"INTERP_MODELS names no directory that holds {NEEDS[name]}")
    book = read(name)
    run(book, tmp_path)
    assert faults(book) == []


@pytest.mark.slow
def test_a_claim_that_is_false_stops_it(tmp_path: Path) -> None:
    """The control: with a head of layer 0 called an induction head, the notebook does not run through."""
    nbclient = pytest.importorskip("nbclient")
    book = read("induction_heads")
    cell = next(cell for cell in book.cells if 'found["induction"] ==' in cell.source)
    cell.source = cell.source.replace('"L2H0"', '"L0H0"')
    book.cells = book.cells[: book.cells.index(cell) + 1]
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="AssertionError"):
        run(book, tmp_path)
