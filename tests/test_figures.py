"""Static figures: one for every kind of panel, the same bytes every time, nothing that breaks XML or runs."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot
from report_samples import HOSTILE, WORDS, Sample, attention_grid, panels

from analyses.shared.panels import Bars, Lines, Matrix, Panel
from interp.keeping import remembered
from reports import figures

EVERY = (*panels(), attention_grid(2, 3, 10))
SVG = "{http://www.w3.org/2000/svg}"


def words(svg: bytes) -> str:
    return " ".join("".join(node.itertext()) for node in ET.fromstring(svg).iter(f"{SVG}text"))


@pytest.mark.parametrize("panel", EVERY, ids=lambda panel: panel.key)
def test_every_panel_is_drawn_the_same_twice(panel):
    first = figures.svg(panel)
    assert first == figures.svg(panel)
    assert b"<dc:date" not in first
    assert ET.fromstring(first).tag == f"{SVG}svg"


def test_what_was_drawn_is_found_again_by_all_that_it_shows(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda panel, form: drawn.append(panel.key) or panel.key.encode())
    with remembered(tmp_path):
        for _ in range(2):
            assert [figures.svg(panel) for panel in EVERY] == [panel.key.encode() for panel in EVERY]
    assert drawn == [panel.key for panel in EVERY]
    with remembered(tmp_path):
        assert figures.svg(replace(EVERY[0], title="another")) == figures.svg(EVERY[0])
    assert drawn == [panel.key for panel in (*EVERY, EVERY[0])]


def test_another_number_gives_another_figure():
    one, other = (Bars(key="b", title="", labels=("a", "b"), values=np.array([1, x]), unit="nats") for x in (2.0, 2.5))
    assert figures.svg(one) != figures.svg(other)


@pytest.mark.parametrize("panel", panels(HOSTILE, odd=True), ids=lambda panel: panel.key)
def test_hostile_labels_and_numbers_give_wellformed_svg(panel):
    root = ET.fromstring(figures.svg(panel))
    assert not list(root.iter(f"{SVG}script"))
    assert not list(root.iter(f"{SVG}image")) or panel.key in ("matrix", "picture", "lens", "heads")


def test_labels_and_units_are_text_in_the_figure():
    text = words(figures.svg(panels(WORDS)[5]))
    assert "nats" in text
    assert "·cat" in text
    assert "↵" in text


def test_dollar_signs_are_not_formulas():
    panel = Bars(key="b", title="", labels=("$x^2$", "b"), values=np.array([1.0, 2.0]), unit="US$")
    assert "$x^2$" in words(figures.svg(panel))


def test_log_axes_have_plain_numbers():
    lines = Lines(
        key="l", title="", x=("a", "b"), series={"s": np.array([1.0, 1000.0])}, x_axis="x", y_axis="y", log_y=True
    )
    text = words(figures.svg(lines))
    assert "1,000" in text
    assert "mathdefault" not in text


def test_signed_matrices_are_centred_on_zero_and_blue_is_positive():
    values = np.array([[-0.2, 0.0, 1.0]])
    scale, colours = figures.scale(values, diverging=True), figures.colours(diverging=True)
    assert scale(0.0) == 0.5
    assert scale(0.2) + scale(-0.2) == pytest.approx(1)
    red, _, blue, _ = colours(scale(1.0))
    assert blue > red
    red, _, blue, _ = colours(scale(-0.2))
    assert red > blue


def test_a_result_becomes_one_figure_and_pyplot_knows_nothing_of_it():
    before = pyplot.get_fignums()
    whole = figures.figure(Sample(panels()[:3]))
    assert len(whole.subfigs) == 3
    assert pyplot.get_fignums() == before


def test_a_heat_map_shows_its_numbers():
    values = np.arange(6.0).reshape(2, 3)
    panel = Matrix(
        key="m",
        title="",
        values=values,
        rows=("a", "b"),
        columns=("c", "d", "e"),
        row_axis="r",
        column_axis="c",
        unit="u",
    )
    axes = figures.figure(panel).axes[0]
    assert np.array_equal(axes.images[0].get_array(), values)


def test_an_unknown_panel_is_refused():
    class Other(Panel):
        pass

    with pytest.raises(TypeError, match="Other"):
        figures.figure(Other(key="o", title=""))
