"""Circuits as panels: what is drawn lies on a way from source to sink, stands apart, and travels in few bytes."""

import base64
import re
import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from report_samples import HOSTILE, Sample, circuit_graph, named_circuit, panels

from analyses.shared.contract import ill_formed
from analyses.shared.panels import CircuitGraph
from reports import figures, terminal
from reports.page import circuits
from reports.page.html import Report, Section, render
from reports.page.views import view
from reports.wires import HALF, Wires, curve, nearest, shares

SMALL = {"alone": circuit_graph(), "shared": circuit_graph(groups=2), "attention only": circuit_graph(layers=1)}
FLOATS = ("scores", "exact", "low", "high", "stability")


def page(*graphs: CircuitGraph) -> str:
    return render(Report("r", (), (Section("circuits", "Circuits", "", Sample(graphs), 0.0),), {}))


@cache
def deep(layers: int, heads: int, groups: int) -> CircuitGraph:
    return circuit_graph(layers, heads, groups, held=3000, chosen=100)


def test_a_sample_is_well_formed_and_a_broken_one_is_told() -> None:
    graph = SMALL["shared"]
    assert list(ill_formed(graph)) == []
    assert list(ill_formed(named_circuit(HOSTILE, odd=True))) == []
    broken = [
        replace(graph, senders=graph.receivers, receivers=graph.senders),
        replace(graph, stability=graph.stability[1:]),
        replace(graph, inputs=graph.inputs[1:]),
        replace(graph, rows=graph.rows[1:]),
        replace(graph, chosen=len(graph.scores) + 1),
        replace(graph, total=len(graph.scores) - 1),
        replace(graph, sizes=graph.sizes[::-1]),
        replace(graph, measured={"held out": graph.sizes[1:]}),
        replace(graph, measured_low={"other": graph.sizes}, measured_high={"other": graph.sizes}),
        replace(graph, scores=np.full_like(graph.scores, np.nan)),
        replace(graph, serves=((0, len(graph.nodes)),)),
    ]
    for one in broken:
        assert list(ill_formed(one)) == ["its values do not fit its labels"]


def on_ways(graph: CircuitGraph, size: int) -> set[int]:
    """Links on a way from source to sink, by walking every way there is."""
    ends = [*zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True), *graph.serves]
    links = [i for i in range(len(ends)) if i < size or i >= len(graph.scores)]
    found: set[int] = set()

    def walk(node: int, way: tuple[int, ...]) -> None:
        if graph.rows[node] == max(graph.rows):
            found.update(way)
        for i in links:
            if ends[i][0] == node:
                walk(ends[i][1], (*way, i))

    for node, row in enumerate(graph.rows):
        if row == min(graph.rows):
            walk(node, ())
    return found


@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_drawn_lies_on_a_way_from_source_to_sink(groups: int) -> None:
    graph = circuit_graph(2, 2, groups, chosen=5)
    wires, dead = Wires(graph), 0
    for size in range(len(graph.scores) + 1):
        alive = wires.alive(size).tolist()
        assert set(alive) == on_ways(graph, size)
        assert alive == sorted(alive)
        dead += size > sum(i < len(graph.scores) for i in alive)
    assert dead > 5  # the control: mere taking of the best edges leaves dead ends
    linked = set(wires.alive(len(graph.scores)).tolist()) - set(range(len(graph.scores)))
    assert len(linked) == len(graph.serves)


@pytest.mark.parametrize("width", [320, 690, 1000])
@pytest.mark.parametrize("shape", [(4, 4, 4), (30, 9, 3), (12, 32, 32)])
def test_labels_stand_apart_and_layers_rise(shape: tuple[int, int, int], width: int) -> None:
    graph = deep(*shape)
    wires = Wires(graph)
    for size in (20, 50, 100, 200, 400):
        where, across, down = wires.places(wires.alive(size), width)
        nodes = list(where)
        assert len(nodes) > size / 20
        x, y = np.array([where[i] for i in nodes]).reshape(-1, 2).T
        half = np.array([wires.wide(i) / 2 for i in nodes])
        beside = np.abs(x[:, None] - x) >= half[:, None] + half - 1e-9
        above = np.abs(y[:, None] - y) >= 2 * HALF + 1
        assert (beside | above | np.eye(len(nodes), dtype=bool)).all()
        assert ((x - half >= 0) & (x + half <= across) & (y >= HALF) & (y <= down - HALF)).all()
        rise = np.sign(np.subtract.outer(wires.levels[nodes], wires.levels[nodes]))
        assert (np.sign(np.subtract.outer(-y, -y)) == rise).all()
    row = [i for i, name in enumerate(graph.nodes) if name.startswith("L0H")]
    free = np.array([34 + wires.across[i] * (width - 90) for i in row])  # the control: their own places would collide
    assert (np.diff(free).min() < wires.wide(row[0])) == (len(row) * wires.wide(row[0]) > 0.86 * (width - 90))


def test_edges_end_at_their_nodes_and_the_largest_is_the_widest() -> None:
    points = np.array(curve((100.0, 300.0), (140.0, 100.0), -9.0))
    assert points[0].tolist() == [100, 300 - HALF]
    assert points[-1].tolist() == [131, 100 + HALF]
    assert (np.diff(points[:, 1]) < 0).all()
    straight, bent = (np.array(curve((100.0, y), (100.0, 100.0), 0.0)) for y in (150.0, 400.0))
    assert (straight[:, 0] == 100).all()
    assert (bent[1:3, 0] > 120).all()  # around what stands between
    widths = shares(SMALL["alone"])
    assert widths.argmax() == np.abs(SMALL["alone"].scores).argmax() == 0
    assert widths.max() == pytest.approx(1, rel=1e-12)
    assert shares(replace(SMALL["alone"], scores=np.zeros(len(widths)))).max() == 0


def unpacked(graph: CircuitGraph) -> tuple[np.ndarray, np.ndarray]:
    data = zlib.decompress(base64.b64decode(circuits.packed(graph)), -15)
    count, links = len(graph.scores), len(graph.scores) + len(graph.serves)
    return np.frombuffer(data, "<f4", 5 * count).reshape(5, count), np.frombuffer(
        data, "<u2", offset=20 * count
    ).reshape(4, links)


@pytest.mark.parametrize("name", SMALL)
def test_what_is_packed_comes_back(name: str) -> None:
    graph = SMALL[name]
    numbers, ends = unpacked(graph)
    for row, field in zip(numbers, FLOATS, strict=True):
        np.testing.assert_allclose(row, getattr(graph, field), rtol=2**-16, atol=0)
    count = len(graph.scores)
    assert ([*zip(graph.senders, graph.receivers, strict=True), *graph.serves] == ends[:2].T).all()
    kinds = list(dict.fromkeys(graph.inputs))
    assert [kinds[i] for i in ends[2, :count]] == list(graph.inputs)
    assert (ends[2, count:] == len(kinds)).all()
    assert ((ends[3] + np.arange(len(ends[3]))) % 2**16 == Wires(graph).since).all()
    other, _ = unpacked(replace(graph, scores=graph.scores[::-1]))
    assert (other[0] != numbers[0]).any()


def test_five_thousand_edges_with_all_their_numbers_fit_the_budget() -> None:
    graph = circuit_graph(12, 12, 12, held=5000, chosen=100)
    exact = graph.scores * np.random.default_rng(0).normal(1, 0.1, 5000)
    graph = replace(graph, exact=exact, low=exact - 0.1, high=exact + 0.1)
    made = view(graph, "circuits")
    assert made.grid is not None
    size = sum(len(str(part)) for part in (made.data, made.extra["edges"], made.grid.packed()))
    assert 50_000 < size <= 150_000


@pytest.mark.parametrize(("count", "chosen"), [(1, 1), (7, 0), (300, 123)])
def test_the_slider_has_every_measured_size_and_the_chosen(count: int, chosen: int) -> None:
    graph = circuit_graph(layers=4, held=count, chosen=chosen)
    sizes, near, marks = map(np.array, zip(*circuits.stops(graph), strict=True))
    assert (np.diff(sizes) > 0).all()
    assert {chosen, count, 1, *(size for size in graph.sizes.tolist() if size <= count)} <= set(sizes.tolist())
    assert len(sizes) <= circuits.STOPS + 2 + len(graph.sizes)
    for size, at in zip(sizes, near, strict=True):
        ratios = [max(size, 1) / s if size > s else s / max(size, 1) for s in graph.sizes]
        assert ratios[at] == min(ratios)
        assert nearest(graph.sizes, size) == at
    assert (np.diff(marks) >= 0).all()
    assert (marks[near == 0] < circuits.WIDE / 4).all()


def test_the_table_and_the_words_are_the_numbers() -> None:
    graph = SMALL["shared"]
    made = view(graph, "circuits")
    assert made.grid is not None
    rows = [*made.grid.rows, *made.grid.rest]
    assert made.grid.columns == ("sender", "receiver", "input", "score", "exact", "low", "high", "stability")
    assert len(rows) == len(graph.scores)
    assert [cell.value for cell in rows[1]][:3] == [
        graph.nodes[graph.senders[1]],
        graph.nodes[graph.receivers[1]],
        graph.inputs[1],
    ]
    assert [float(cell.value) for cell in rows[1][3:]] == pytest.approx([getattr(graph, f)[1] for f in FLOATS], 1e-8)
    assert rows[-1][4].value == ""  # not measured
    text = "\n".join(line.plain for line in terminal.lines(graph, 100))
    assert text.count("\n") < 20
    at = nearest(graph.sizes, graph.chosen)
    assert f"holds 20 of {graph.total} edges" in text
    assert f"faithfulness at {graph.sizes[at]}: held out {graph.measured['held out'][at]:.3f}" in text
    long = view(deep(30, 9, 3), "circuits")
    assert long.grid is not None
    assert len(long.grid.rows) + len(long.grid.rest) == circuits.LISTED
    assert "3,000" in long.note


def test_the_figure_shows_the_nodes_of_the_circuit_and_no_others() -> None:
    graph = SMALL["alone"]
    wires = Wires(graph)
    drawn = {graph.nodes[i] for i in wires.ends[wires.alive(graph.chosen)].ravel()}
    words = set(re.findall(r">([^<>]+)</text>", figures.svg(graph).decode()))
    assert words & set(graph.nodes) == drawn
    assert drawn < set(graph.nodes)
    assert {"held out", "discovery", "random"} <= words
    nothing = replace(graph, chosen=0, measured={}, measured_low={}, measured_high={}, sizes=np.array([], dtype=int))
    assert "no way from the embedding to the logits" in figures.svg(nothing).decode()
    assert "polyline" not in page(nothing)
    assert "of 0" not in "".join(line.plain for line in terminal.lines(nothing, 100))


def test_only_a_page_with_a_circuit_carries_its_script() -> None:
    """Also where several sections begin with it, so that it stands above them."""
    others = panels()[:-1]
    for parts, carried in ((panels(), True), (others, False), ((SMALL["alone"], *others), True)):
        sections = tuple(Section(name, name, "", Sample(parts), 0.0, "Chapter") for name in "st")
        text = render(Report("r", (), sections, {}))
        assert ("async function circuit(" in text) == ("[data-graph]" in text) == carried


def test_names_of_nodes_are_text() -> None:
    text = page(named_circuit(HOSTILE, odd=True))
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert text.count("alert(1)") >= 2  # the control: it is there, as text
