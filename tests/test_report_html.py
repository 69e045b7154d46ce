"""The page: complete, deterministic, escaped, within its budgets."""

import base64
import hashlib
import io
import json
import re
import xml.etree.ElementTree as ET
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_samples import HOSTILE, WORDS, Sample, attention_grid, circuit_graph, panels, report

import reports
from analyses.shared.panels import (
    CircuitGraph,
    Finding,
    Marks,
    Matrix,
    Note,
    Table,
    Tokens,
    TokenStrip,
    on_common_scales,
)
from reports import tokens
from reports.numbers import Scale, decimal, decimals, number
from reports.page import heatmap
from reports.page.html import FOLDED, Report, Section, render
from reports.page.views import json_block, view
from reports.tokens import coded


class Page(HTMLParser):
    """Every start tag with its attributes, and the text of every script and of the rest."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.text = ""
        self._open: tuple[str, dict[str, str | None]] | None = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = (tag, dict(attrs)) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open is None:
            self.text += data
        elif self._open[0] == "script":
            self.scripts.append((self._open[1], data))
        else:
            self.styles.append(data)

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]


@pytest.fixture(scope="module")
def page() -> str:
    return render(report())


@pytest.fixture(scope="module")
def hostile() -> str:
    return render(report(HOSTILE, odd=True))


def test_the_same_report_gives_the_same_bytes(page):
    assert render(report()) == page
    assert render(report(Tokens((*WORDS, "!")))) != page


def test_every_panel_has_its_address_once_and_every_link_leads_somewhere(page):
    parsed = Page(page)
    ids = parsed.ids()
    assert len(ids) == len(set(ids))
    assert {f"others-{panel.key}" for panel in panels()} | {"attention_patterns-pattern"} <= set(ids)
    links = {a["href"][1:] for tag, a in parsed.tags if tag == "a" and a["href"].startswith("#")}
    assert links <= set(ids)


def test_findings_are_ranked_and_carry_number_interval_and_evidence(page):
    summary = page[page.index('id="summary"') : page.index('id="attention_patterns"')]
    assert summary.index("raises the loss") < summary.index("head 1 copies")
    assert 'href="#others-matrix"' in summary
    assert "0.71 nats" in summary
    assert "[0.6, 0.8]" in summary


def test_provenance_is_readable_and_machine_readable(page):
    parsed = Page(page)
    data = next(json.loads(text) for attributes, text in parsed.scripts if attributes.get("id") == "provenance-data")
    assert data["seconds"] == {"attention_patterns": 0.3, "others": 1.25}
    assert data["seed"] == 0
    assert data["note"] is None
    assert "versions: python" in parsed.text
    assert "1.25 s" in parsed.text


def test_policy_allows_exactly_the_script_and_style_of_the_page(page):
    parsed = Page(page)
    policy = next(a["content"] for tag, a in parsed.tags if tag == "meta" and a.get("http-equiv"))
    digest = lambda text: "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()  # noqa: E731
    (script,) = [text for attributes, text in parsed.scripts if "type" not in attributes]
    (style,) = parsed.styles
    assert "default-src 'none'" in policy
    assert f"script-src '{digest(script)}'" in policy
    assert f"style-src '{digest(style)}'" in policy
    assert "unsafe" not in policy


def test_nothing_is_fetched_and_nothing_is_inline(page):
    for tag, attributes in Page(page).tags:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)


def test_a_hostile_text_stays_text(page, hostile):
    plain, parsed = Page(page), Page(hostile)

    def kinds(page: Page) -> set[tuple[str, str | None, str | None]]:
        return {(tag, a.get("type"), a.get("class")) for tag, a in page.tags if tag in ("script", "img")}

    assert kinds(parsed) == kinds(plain)
    assert "<script>alert(1)" not in hostile
    assert "<script>alert(1)</script>" in parsed.text  # it is there, as text
    assert "y" * 10_000 in parsed.text
    assert "\\u202eabc" in parsed.text
    assert "{{ 7 * 7 }}" in parsed.text
    for char in "\x00\x1b\u202e\u2028\u200d":
        assert char not in hostile
    hostile.encode("utf-8")


def test_data_blocks_are_json_without_markup_or_nan(hostile):
    scripts = Page(hostile).scripts
    blocks = [text for attributes, text in scripts if attributes.get("type") == "application/json"]
    packed = [text for attributes, text in scripts if attributes == {"type": "text/plain", "class": "data"}]
    blocks += [zlib.decompress(base64.b64decode(text), -15).decode() for text in packed]
    assert len(blocks) >= 3
    assert packed
    for text in blocks:
        assert not set(text) & set("<>&\u2028\u2029")
        json.loads(text, parse_constant=pytest.fail)


@settings(deadline=None)  # a busy machine is no failure
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text() | st.integers(-(2**53), 2**53),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))  # fmt: skip
def test_json_block_is_safe_inside_a_script(data):
    text = str(json_block(data))
    assert text.isascii()
    assert not set(text) & set("<>&")
    json.loads(text, parse_constant=pytest.fail)


@settings(deadline=None)  # a busy machine is no failure
@given(st.text(max_size=60))
def test_token_labels_can_be_shown_and_tell_tokens_apart(token):
    label = tokens.label(token, None)
    assert label
    assert label.isprintable() or " " in label
    label.encode("utf-8")
    assert "<" not in re.sub(r"</?(bdi|i)>", "", str(tokens.markup(token, None)))


def test_token_labels():
    assert tokens.label(" the") == "·the"
    assert tokens.label("\n") == "↵"
    assert tokens.label("a b ") == "a b·"
    assert tokens.label("\x00\u202e\ud800") == "\\x00\\u202e\\ud800"
    assert tokens.label("abcdef", 3) == "abc…"
    assert str(tokens.markup(" <b>")) == "<bdi><i>·</i>&lt;b&gt;</bdi>"
    assert str(tokens.markup("·")) == "<bdi>·</bdi>"  # the token that is a dot is not dim
    assert tokens.coded(" a") == "\x01·\x02a"


@pytest.mark.parametrize(("value", "text"), [
    (0.12345, "0.123"), (-0.5, "-0.500"), (0.0, "0"), (12.345, "12.35"), (1e-5, "1.00e-5"), (123456.7, "1.23e5"),
    (14.0, "14"), (-123456.0, "-123,456"), (2e30, "2.00e30"),
    (1234.5, "1,234"), (float("-inf"), "-∞"), (7, "7"), (True, "yes"),
])  # fmt: skip
def test_numbers_are_short(value, text):
    assert number(value) == text.replace("-", "\N{MINUS SIGN}")


def test_what_was_not_measured_is_a_dash():
    assert number(float("nan")) == number(None) == "\N{EN DASH}"


def test_shades_are_centred_and_blue_is_positive():
    scale = Scale.of(np.array([-1.0, 4.0, np.nan]), diverging=True)
    assert scale.shade(4.0) == "p q20"
    assert scale.shade(-4.0) == "n q20"
    assert scale.shade(-1.0) == "n q5"
    assert scale.shade(0.0) == scale.shade(float("nan")) == ""


def test_ranks_are_shaded_on_a_log_scale():
    scale = Scale.of(np.array([1.0, 10, 100, 10_000]))
    assert scale.log
    assert (scale.shade(1), scale.shade(100), scale.shade(10_000)) == ("", "s q10", "s q20")
    assert not Scale.of(np.array([1.0, 10])).log


@pytest.mark.parametrize(("value", "ends"), [(0.354, (0, 0.354)), (-2.0, (-2, 0)), (0.0, (0, 1))])
def test_a_number_alone_is_shaded_from_zero(value, ends):
    scale = Scale.of(np.full(3, value))
    assert (scale.low, scale.high) == ends
    assert scale.shade(value) == ("s q20" if value > 0 else "")


def test_cells_keep_the_exact_number_and_the_interval(page):
    matrix = panels()[0]
    assert (
        f'data-v="{matrix.values[0, 0]:.9g}" data-lo="{matrix.low[0, 0]:.9g}" data-hi="{matrix.high[0, 0]:.9g}"' in page
    )


def test_long_tables_say_what_was_left_out_and_carry_it_as_data():
    frame = pd.DataFrame({"n": np.arange(450), "word": [f"w{i}" for i in range(450)]})
    shown = view(Table(key="t", title="T", frame=frame), "s")
    assert len(shown.grid.rows) == 12
    assert [cell.value for cell in shown.grid.rest[-1]] == ["449", "w449"]
    page = render(
        Report("r", (WORDS,), (Section("s", "S", "", Sample((Table(key="t", title="T", frame=frame),)), 0.0),), {})
    )
    assert "first 12 of 450 rows" in page
    assert ">w11<" in page
    assert ">w12<" not in page
    kept = json.loads(zlib.decompress(base64.b64decode(re.search(r"data-rows>([^<]*)<", page)[1]), -15))
    assert kept == {"heads": 0, "rows": [[str(i), f"w{i}"] for i in range(12, 450)]}


def test_packed_cells_hold_all_that_a_written_cell_does():
    words = Tokens([" a", "<b>&", "c\n"])
    matrix = Matrix(key="m", title="M", values=np.array([[1.5, -2.0, np.nan]]), rows=("L0",), columns=words,
                    row_axis="layer", column_axis="pos", unit="u", diverging=True,
                    low=np.array([[1.0, -3.0, np.nan]]), high=np.array([[2.0, -1.0, np.nan]]))  # fmt: skip
    grid = view(matrix, "s").grid.folded()
    assert grid.rows == []
    assert len(grid.rest) == 1
    kept = json.loads(zlib.decompress(base64.b64decode(grid.packed()), -15))
    assert kept["heads"] == 1
    assert kept["rows"][0][:2] == ["L0", ["1.50", "1.5", "p q15", "1", "2", "1 to 2"]]
    strip = view(TokenStrip(key="t", title="T", tokens=words, values=np.arange(3.0), unit="u"), "s").grid
    tokens = [row[1] for row in json.loads(zlib.decompress(base64.b64decode(strip.packed()), -15))["rows"]]
    assert [token[0] if isinstance(token, list) else token for token in tokens] == [coded(word) for word in words]


def test_what_chance_gives_is_grey_in_each_cell_for_itself():
    """A large number below its own floor is grey, a smaller one above its own is not; alike in table and picture."""
    values, floor = np.array([[0.9, 0.2], [-0.9, np.nan]]), np.array([[1.0, 0.1], [0.5, 0.1]])
    panel = Matrix(key="m", title="M", values=values, rows=("0", "1"), columns=("0", "1"), row_axis="layer",
                   column_axis="head", unit="u", diverging=True, floor=floor)  # fmt: skip
    assert panel.grey.tolist() == [[True, False], [False, False]]
    assert not replace(panel, floor=0.0).grey.any()
    shown = view(panel, "s")
    assert shown.note == "Grey: within what chance gives there, \N{PLUS-MINUS SIGN}0.1 to \N{PLUS-MINUS SIGN}1."
    shades = [[cell.shade for cell in row[1:]] for row in shown.grid.rows]
    assert [[shade == "grey" for shade in row] for row in shades] == panel.grey.tolist()
    pixels = heatmap.thumbnail(panel, Scale.of(values, True, None))
    drawn = Image.open(io.BytesIO(base64.b64decode(pixels.split(",")[1]))).convert("RGB")
    assert [drawn.getpixel((j, i)) == (222,) * 3 for i in range(2) for j in range(2)] == [True, False, False, False]


def test_a_large_matrix_is_a_picture_of_its_own_numbers():
    values = np.random.default_rng(0).normal(size=(30, 40))
    panel = Matrix(key="m", title="M", values=values, rows=tuple(map(str, range(30))), columns=("<x>",) * 40,
                   row_axis="layer", column_axis="pos", unit="u", diverging=True, floor=0.5)  # fmt: skip
    shown = view(panel, "s")
    assert shown.kind == "heat"
    assert not shown.grid.rows
    assert len(shown.grid.rest) == 30
    drawn = ET.fromstring(unquote(shown.pictures[0].split(",", 1)[1]))
    image = next(node for node in drawn.iter() if node.tag.endswith("image"))
    pixels = Image.open(io.BytesIO(base64.b64decode(image.get("href").split(",")[1])))
    assert pixels.size == (40, 30)
    colours = np.asarray(pixels.convert("RGB")).astype(int)
    grey = np.abs(values) <= 0.5
    assert (colours[grey] == 222).all()
    assert ((colours[..., 2] - colours[..., 0] > 0) == (values > 0))[~grey].all()
    left, _top, _width, height = shown.extra["box"]
    size = [float(drawn.get(name)) for name in ("width", "height")]
    assert float(image.get("x")) == pytest.approx(left * size[0], abs=1)
    assert float(image.get("height")) == pytest.approx(height * size[1], abs=1)


def test_matrices_of_one_family_share_a_scale():
    def matrix(key, values, family):
        return Matrix(key=key, title=key, values=np.array([values]), rows=("a",), columns=("b", "c"), row_axis="r",
                      column_axis="c", unit="u", diverging=True, family=family)  # fmt: skip

    large, small, alone = on_common_scales(
        [matrix("a", [1.0, -4.0], "f"), matrix("b", [0.1, 0.2], "f"), matrix("c", [0.1, 0.2], "")]
    )
    assert large.scale == small.scale == (-4.0, 1.0)
    assert alone.scale is None
    assert [cell.shade for cell in view(small, "s").grid.rows[0][1:]] == ["", "p q1"]
    assert [cell.shade for cell in view(alone, "s").grid.rows[0][1:]] == ["p q10", "p q20"]


def test_attention_budget_of_144_heads_by_64_tokens():
    grid = attention_grid(12, 12, 64)
    page = render(Report("r", (), (Section("a", "A", "", Sample((grid,)), 0.0),), {}))
    section = page[page.index('<section id="a"') : page.index('<section id="provenance"')]
    assert len(section.encode()) <= 400_000


def style_and_script(*shown):
    """Bytes of both, of a page of these panels."""
    page = Page(render(Report("r", (), (Section("s", "S", "", Sample(shown), 0.0),), {})))
    own = page.styles + [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(own) == 2
    return sum(len(text.encode()) for text in own)


def test_scripts_and_style_stay_small_and_write_no_html():
    others = style_and_script(
        *(panel for panel in panels() if not isinstance(panel, CircuitGraph)), attention_grid(1, 1, 3)
    )
    assert others <= 48_000
    assert style_and_script(circuit_graph()) - others <= 11_700
    folder = Path(reports.__file__).parent / "page" / "static"
    files = sorted(folder.iterdir())
    assert {file.suffix for file in files} == {".js", ".css"}
    code = "".join(file.read_text(encoding="utf-8") for file in files)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest"):
        assert word not in code


def test_a_report_without_findings_or_panels_says_so():
    page = render(Report("empty", (), (Section("s", "Nothing", "", Sample(()), 0.0),), {}))
    assert "No analysis reported a finding" in page


def test_five_cards_and_the_rest_in_a_list():
    found = tuple(Finding(text=f"fact {i}", key="n", weight=i / 20, value=i, unit="", kind="size") for i in range(14))
    note = Note(key="n", title="N", text="text")
    page = render(Report("r", (), (Section("s", "S", "", Sample((note,), found), 0.0),), {}))
    assert "9 more" in page
    assert page.count('<li class="card') == 5
    assert page.index("fact 13") < page.index("fact 9<") < page.index("9 more") < page.index("fact 8<")


def test_a_card_of_several_components_says_whose_number_it_shows():
    """With the chance that a sentence would tell; a card of one finding repeats neither (control)."""

    def effect(about: str, weight: float) -> Finding:
        return Finding(f"{about} does it; p = 0.003.", "loss-zero-heads", weight, 0.7, "nats", kind="effect",
                       null="flipped signs", p=0.003, about=about, short="does it")  # fmt: skip

    def small(*found: Finding) -> list[str]:
        note = Note(key="loss-zero-heads", title="N", text="text")
        page = render(Report("r", (), (Section("ablation", "S", "", Sample((note,), found), 0.0),), {}))
        return [re.sub("<[^>]+>", "", part) for part in re.findall(r'<p class="small">(.*?)</p></div></li>', page)]

    assert small(effect("L0H1", 0.9)) == ["0.7 nats \N{MIDDLE DOT} S \N{MIDDLE DOT} against flipped signs"]
    (both,) = small(effect("L0H1", 0.9), effect("L1H0", 0.8))
    assert both == "L0H1: 0.7 nats \N{MIDDLE DOT} S \N{MIDDLE DOT} against flipped signs; p = 0.003"


def test_the_map_shows_roles_as_colours_and_effects_as_sizes():
    class Marked(Sample):
        def marks(self):
            return Marks(key="n", roles={"L0H1": ("copying",), "L1H0": ("induction", "copying")},
                         kinds=("other", "copying", "induction"),
                         sizes={"L0H0": 1.0, "L0H1": 4.0, "L1H0": -4.0, "mlp 1": 0.0}, unit="nats")  # fmt: skip

    note = Note(key="n", title="N", text="text")
    page = Page(render(Report("r", (), (Section("s", "S", "", Marked((note,)), 0.0),), {})))
    dots = [tag for tag in page.tags if tag[0] in ("circle", "rect")]
    classes = {tag[1]["class"]: tag for tag in dots if tag[0] == "circle"}
    assert len(dots) == 4
    assert set(classes) == {"", "m1", "m2 hollow"}  # colours of all kinds, those that no part has included
    large, small = (float(classes[name][1]["r"]) for name in ("m1", ""))
    assert large == pytest.approx(float(classes["m2 hollow"][1]["r"]))
    assert [tag[1]["class"] for tag in page.tags if tag[0] == "i" and tag[1].get("class", "")[:1] == "m"] == [
        "m1",
        "m2",
    ]
    assert (large - small) / (large - 0.1 * 40) == pytest.approx(0.5, abs=0.02)  # sizes are areas: half the reach
    named = [tag[1] for tag in page.tags if tag[0] == "a" and tag[1].get("aria-label", "").startswith(("L", "mlp"))]
    links = [one["href"] for one in named if not one["aria-label"].startswith("Link")]
    assert links == ["#head-0.1", "#head-1.0", "#head-0.0", "#s-n"]


def test_chapters_are_headed_and_what_does_not_depend_on_the_text_is_folded():
    def section(name, chapter):
        return Section(name, name.title(), "", Sample((Note(key="n", title="N", text="text"),)), 0.0, chapter)

    page = render(Report("r", (), (section("a", "This text"), section("b", "This text"), section("c", FOLDED)), {}))
    assert page.count('class="chapter"') == 2
    folded = page[page.index('<details class="chapter"') : page.index('<section id="provenance"')]
    assert 'id="c"' in folded
    assert 'id="b"' not in folded


def test_numbers_side_by_side_have_the_same_decimals():
    """Where a few large ones stand among many near zero; else each as it is best read."""
    values = np.array([[2.28, -4.63e-5], [0.0, 0.0123]])
    places = decimals(values)
    assert places == 3
    assert [decimal(x, places) for x in values.ravel()] == ["2.280", "0.000", "0", "0.012"]
    assert decimals(values / 100) == 4
    assert decimal(-0.0228, 4) == "\N{MINUS SIGN}0.0228"
    assert decimals(np.array([2.28, 0.5])) is None
    assert decimals(np.array([2.28, 0.5]), np.array([2.0, 1e-4])) == 3  # the ends of intervals count too
    assert decimals(np.array([1e5, 1e-5])) is None
    assert decimal(0.5, None) == number(0.5)
