"""Results in a notebook that is really run: static first, a sandboxed frame that works, never more than a megabyte."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import save
from in_browser import chromium, overhear
from report_samples import HOSTILE, Sample, attention_grid, panels, report

from analyses.shared.panels import Finding, Note
from interp.models.gpt import HookedGPT
from reports import notebook
from reports.page.html import Report, Section

CELLS = (
    "from interp import HookedGPT\nfrom analyses.attention_patterns import attention_patterns\nimport reports\n"
    "model = HookedGPT.from_pretrained({model!r}, device='cpu')\nmodel",
    "result = attention_patterns(model, 'The cat sat on the mat. The cat sat')\nresult",
    "reports.figure(result.panels()[0])",
    "reports.show(result)",
    "reports.report(model, 'The cat sat', analyses=['logit_lens'])",
    "result.panels()[0]",
)


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def framed(output: str) -> str:
    """The page inside an output."""
    found = re.search(r'src="data:text/html;charset=utf-8;base64,([^"#]*)', output)
    assert found
    return base64.b64decode(found[1]).decode()


@pytest.fixture(scope="module")
def outputs(toy_gpt: HookedGPT, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each cell of a notebook shows, after a kernel has run it."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    folder = tmp_path_factory.mktemp("notebook")
    model = save(toy_gpt, folder / "toy")
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(cell.replace("{model!r}", repr(str(model)))) for cell in CELLS]
    root = str(Path(__file__).parent.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", root)
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute(cwd=str(folder))
    for cell in book.cells:
        assert [one.output_type for one in cell.outputs] in (["execute_result"], ["display_data"]), cell.outputs
    return [cell.outputs[0].data for cell in book.cells]


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own libraries


def test_a_model_has_a_short_repr(outputs: list[dict[str, Any]]) -> None:
    text = outputs[0]["text/plain"]
    assert text.startswith("HookedGPT('")
    for part in ("2 layers", "4 heads", "d_model 32", "float32 on cpu"):
        assert part in text
    assert "\n" not in text


def test_results_show_themselves(outputs: list[dict[str, Any]]) -> None:
    for data in (outputs[1], outputs[3], outputs[4], outputs[5]):
        assert set(data) == {"text/html", "text/plain"}
        html = data["text/html"]
        assert len(html.encode()) <= notebook.LIMIT
        static, frame = html.split("<details>")
        assert "<script" not in html  # only inside the frame
        assert {tag for tag, _ in Tags(static).tags} <= {"div", "p", "b", "ul", "li", "img", "code", "style"}
        ((_, attributes),) = [(tag, a) for tag, a in Tags(frame).tags if tag == "iframe"]
        assert "allow-same-origin" not in str(attributes["sandbox"])
        assert "Content-Security-Policy" in framed(html)
    assert outputs[1]["text/html"] == outputs[3]["text/html"]
    assert "Attention" in outputs[1]["text/plain"]
    assert "\x1b" not in outputs[1]["text/plain"]
    assert 'id="attention_patterns"' in framed(outputs[1]["text/html"])
    assert 'id="logit_lens"' in framed(outputs[4]["text/html"])


def test_a_figure_is_a_picture(outputs: list[dict[str, Any]]) -> None:
    assert base64.b64decode(outputs[2]["image/png"]).startswith(b"\x89PNG")


def test_what_does_not_fit_is_named() -> None:
    made = report(heads=(6, 6), sizes=(300,))
    whole = notebook.html(made)
    assert len(whole.encode()) <= notebook.LIMIT
    assert "Left out, too large for a notebook: attention patterns: pattern." in whole
    assert 'id="attention_patterns-pattern"' not in framed(whole)
    assert 'id="others-matrix"' in framed(whole)
    small = report(heads=(2, 2), sizes=(10,))
    assert "Left out" not in notebook.html(small)  # the control
    tight = notebook.html(small, limit=150_000)
    assert len(tight.encode()) <= 150_000
    assert "Left out" in tight or "too large" in tight
    assert len(notebook.html(small, limit=3_000).encode()) <= 3_000


def test_findings_of_what_is_left_out_go_with_it() -> None:
    found = tuple(Finding(text=f"of {key}", key=key, weight=1, value=1, unit="") for key in ("pattern", "note"))
    parts = (attention_grid(6, 6, 300), Note(key="note", title="N", text="words"))
    made = Report("r", (), (Section("s", "S", "", Sample(parts, found), 0.0),), {})
    page = framed(notebook.html(made))
    assert "of note" in page
    assert "of pattern" not in page  # its link would lead nowhere


def test_a_hostile_result_stays_text() -> None:
    result = Sample(panels(HOSTILE, odd=True))
    html = notebook.html(result)
    tags = {tag for tag, _ in Tags(html.split("<details>")[0]).tags}
    assert tags <= {
        "div",
        "p",
        "b",
        "ul",
        "li",
        "img",
        "code",
        "style",
    }
    assert "<script>alert" not in html + framed(html)
    named = notebook.html(Note(key="n", title="<script>alert(1)</script>\x1b[31m", text="x"))
    assert "<script>" not in named
    assert "&lt;script&gt;" in named
    assert "\x1b" not in named + notebook.plain(result)


def test_a_terminal_gets_text(capsys: pytest.CaptureFixture[str]) -> None:
    result = Sample((Note(key="n", title="Limits", text="One remark."),))
    notebook.show(result)
    assert capsys.readouterr().out == "Limits\nOne remark.\n"
    assert set(notebook.bundle(result)) == {"text/plain"}


@pytest.mark.browser
def test_the_frame_works_in_a_browser(outputs: list[dict[str, Any]], tmp_path: Path) -> None:
    """The viewer inside the frame draws, its links stay inside, and nothing is asked for or said."""
    path = tmp_path / "cell.html"
    path.write_text(f"<meta charset=utf-8>{outputs[1]['text/html']}", encoding="utf-8")
    heard: list[str] = []
    with chromium() as browser:
        page = browser.new_context(offline=True, viewport={"width": 1000, "height": 900}).new_page()
        overhear(page, heard, path.as_uri())
        page.goto(path.as_uri())
        before = page.url
        page.locator("summary").first.click()
        frame = page.wait_for_selector("iframe").content_frame()
        frame.wait_for_selector("canvas.grid")
        key = "attention_patterns-" + frame.evaluate("Object.keys(viewers)[0]").partition("-")[2]
        frame.evaluate(f"viewers['{key}'].ready")
        drawn = frame.evaluate(
            "[...document.querySelector('canvas.grid').getContext('2d').getImageData(0, 0, 200, 100).data]"
        )
        assert len(np.unique(drawn)) > 10
        frame.locator("nav a[href='#provenance']").click(force=True)
        frame.wait_for_function("document.querySelector('#provenance').getBoundingClientRect().top < 640")
        assert page.url == before
    # Of the dialog, in any frame.
    assert [text for text in heard if not text.startswith("console: Blocked autofocusing")] == []


def test_the_lens_itself_comes_before_its_curves() -> None:
    curve, lens = (next(p for p in panels() if type(p).__name__ == kind) for kind in ("Lines", "TokenGrid"))
    assert notebook._first_figure([curve, lens], {curve.key}) is lens
    assert notebook._first_figure([curve], {curve.key}) is curve
