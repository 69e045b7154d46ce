"""The circuit in a real browser: the slider, keys and pointer, pins and groups in the address, what is saved."""

import csv
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_browser import address, arrives, faults, overhear
from report_samples import HOSTILE, Sample, attention_grid, circuit_graph, named_circuit

from analyses.shared.panels import Bars
from reports.page import circuits
from reports.page.html import Report, Section, render
from reports.wires import Wires

pytestmark = pytest.mark.browser
GRAPHS = {
    "plain": circuit_graph(chosen=30),
    "shared": circuit_graph(layers=4, groups=2, chosen=30),
    "stacks": circuit_graph(chosen=30),
    "hostile": named_circuit(HOSTILE, odd=True),
    "deep": circuit_graph(layers=30, heads=9, groups=3, held=3000, chosen=100),
}
PANEL = "circuits-circuit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("circuits")
    stacked = Bars("bars", "Heads of two stacks", labels=("encoder L0H0",), values=np.ones(1), unit="nats")
    before = {"plain": (attention_grid(3, 4, 6),), "stacks": (stacked,)}  # where heads lie in stacks they have no pages
    for name, graph in GRAPHS.items():
        sections = (
            Section("others", "Others", "", Sample(before.get(name, ())), 0.0),
            Section("circuits", "C", "", Sample((graph,)), 0.0),
        )
        (path / f"{name}.html").write_text(render(Report(name, (), sections, {})), encoding="utf-8")
    return path


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page at an address of the circuit; afterwards nothing may have been said or violated."""
    heard: list[str] = []
    contexts = []

    def go(name: str, query: str | None = None, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, "offline": True} | options)
        contexts.append(context)
        page = context.new_page()
        own = (folder / f"{name}.html").as_uri()
        overhear(page, heard, own)
        page.goto(own + ("" if query is None else f"#{PANEL}?{query}"))
        if options.get("java_script_enabled", True):
            page.evaluate(f"viewers['{PANEL}'].ready")
            page.locator("[data-graph]").scroll_into_view_if_needed()
        return page

    yield go
    for context in contexts:
        context.close()
    assert heard == []


def again(visit: Callable[..., Any], name: str, page: Any) -> Any:
    return visit(name, address(page).partition("?")[2])


def node(page: Any, name: str) -> Any:
    return page.locator("[data-graph] .node", has_text=re.compile(f"^{re.escape(name)}$"))


def shown(page: Any) -> list[str]:
    """The nodes that are drawn."""
    return page.locator(".node:not([display=none])").all_text_contents()


def heads_of(page: Any) -> list[str]:
    return [name for name in shown(page) if "H" in name]


def drawn(page: Any) -> tuple[list[int], dict[int, tuple[float, float]]]:
    """Links, and where nodes stand."""
    links = page.locator("[data-edge]").evaluate_all("nodes => nodes.map(n => Number(n.dataset.edge))")
    spots = page.locator("[data-node]:not([display=none])").evaluate_all(
        "nodes => nodes.map(n => [n.dataset.node, n.getAttribute('transform')])"
    )
    return links, {int(i): tuple(map(float, re.findall(r"[\d.]+", at))) for i, at in spots}


def size_of(page: Any) -> int:
    return int(page.locator("[data-count]").inner_text().split(" of ")[0].replace(",", ""))


def steps_of(name: str) -> list[int]:
    return [size for size, _, _ in circuits.stops(GRAPHS[name])]


def choose_size(page: Any, size: int) -> None:
    page.locator("[data-size]").fill(str(steps_of(page.title()).index(size)))


@pytest.mark.parametrize(("name", "sizes"), [("plain", (1, 8, 30, 80)), ("shared", (5, 30, 90)), ("deep", (20, 100))])
def test_the_drawing_is_that_of_the_figure(visit, name, sizes):
    wires = Wires(GRAPHS[name])
    page = visit(name)
    for wanted in sizes:
        size = min(steps_of(name), key=lambda step: abs(step - wanted))
        choose_size(page, size)
        links, where = drawn(page)
        alive = wires.alive(size)
        assert links == alive.tolist()[::-1]
        room = page.locator("[data-graph]").evaluate("node => node.parentElement.clientWidth")
        expected, width, _ = wires.places(alive, room)
        assert where.keys() == expected.keys()
        for i, spot in expected.items():
            assert where[i] == pytest.approx(spot, abs=0.01)  # shares of the width travel with six digits
        if links:
            assert page.locator("[data-graph]").get_attribute("width") == pytest.approx(f"{width:g}")
    assert not np.array_equal(wires.alive(sizes[0]), wires.alive(sizes[-1]))


def test_the_slider_takes_keys_and_says_where_it_is(visit):
    page, graph = visit("plain"), GRAPHS["plain"]
    steps = circuits.stops(graph)
    at = [step for step, _, _ in steps].index(30)
    assert size_of(page) == 30
    arrives(page, "?", there=False)
    slider = page.locator("[data-size]")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    size, near, mark = steps[at + 3]
    assert size_of(page) == size
    share = f"{100 * size / graph.total:.2g}"
    text = page.locator("[data-count]").inner_text()
    assert f" of {graph.total} edges, {share} %" in text
    dead = size - sum(i < len(graph.scores) for i in Wires(graph).alive(size))
    assert (f"{dead} lead nowhere" in text) == (dead > 0)
    assert slider.evaluate("node => node.ariaValueText") == text
    said = page.locator("[data-said]").inner_text()
    assert said.startswith(f"{graph.sizes[near]} edges: held out ")
    assert f"random {graph.measured['random'][near]:.3f}" in said
    assert f"({mark:g})" in page.locator("[data-mark]").get_attribute("transform")
    arrives(page, f"size={size}")
    assert drawn(again(visit, "plain", page)) == drawn(page)
    page.keyboard.press("Home")
    assert size_of(page) == 1


def test_keys_go_from_node_to_node_and_choose(visit):
    page = visit("plain")
    node(page, "embed").focus()
    heights = []
    for _ in range(30):
        name, y = page.evaluate(
            "[document.activeElement.textContent, document.activeElement.getBoundingClientRect().y]"
        )
        heights.append(y)
        if name == "logits":
            break
        page.keyboard.press("ArrowUp")
    assert name == "logits"
    assert (np.diff(heights) < 0).all()
    page.keyboard.press("ArrowDown")
    name = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    assert page.locator("[data-told]").inner_text() == name
    assert page.locator("[aria-pressed=true]").all_text_contents() == [name]
    arrives(page, f"at={name.replace(' ', '+')}")
    assert page.evaluate("document.activeElement.textContent") == name  # the focus stays
    own = page.locator("[data-list] button").all_inner_texts()
    links, _ = drawn(page)
    graph = GRAPHS["plain"]
    ends = {(graph.nodes[graph.senders[i]], graph.nodes[graph.receivers[i]]) for i in links}
    assert len(own) >= 2
    assert {tuple(text.split(": ")[0].rsplit(" ", 1)[0].split(" → ")) for text in own} == {
        pair for pair in ends if name in pair
    }
    assert page.locator("[data-edge]:not(.far)").count() == len(own) < len(links)
    size = size_of(page)
    choose_size(page, 1)  # what is not drawn is not chosen
    assert (page.locator("[data-told]").inner_text() == "") == (name not in shown(page))
    choose_size(page, size)
    node(page, name).focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    arrives(page, "at=", there=False)
    assert page.locator("[data-edge].far").count() == 0


def test_an_edge_tells_its_numbers(visit):
    page, graph = visit("shared"), GRAPHS["shared"]
    links, _ = drawn(page)
    for i in links[-3:]:  # the best
        spot = page.locator(f"[data-edge='{i}']").evaluate(
            """path => {
                const length = path.getTotalLength();
                for (let share = 0.3; share < 0.7; share += 0.01) {
                    const at = path.getPointAtLength(share * length).matrixTransform(path.getScreenCTM());
                    const spot = [Math.round(at.x), Math.round(at.y)];
                    if (document.elementFromPoint(...spot) === path) return spot;
                }
            }"""
        )
        page.mouse.click(*spot)
        told = page.locator("[data-told]").inner_text().replace("\N{MINUS SIGN}", "-")
        sender, receiver = graph.nodes[graph.senders[i]], graph.nodes[graph.receivers[i]]
        assert told.startswith(f"{sender} → {receiver} {graph.inputs[i]}: ")
        numbers = [float(text) for text in re.findall(r"(?<=[ \[])-?\d+\.\d+(?=[ \],;])", told)]
        expected = [graph.scores[i], graph.exact[i], graph.low[i], graph.high[i]]
        assert numbers == pytest.approx(expected, rel=5e-3, abs=1e-3)
        assert f"rank {i + 1};" in told
        assert f"found in {round(100 * graph.stability[i])} % of resamples" in told
        arrives(page, f"at={i + 1}")
        assert page.locator("[data-list] button").all_inner_texts() == [sender, receiver]
    assert again(visit, "shared", page).locator("[data-told]").inner_text() == page.locator("[data-told]").inner_text()
    page.locator("[data-list] button").first.click()
    assert page.locator("[data-told]").inner_text() == sender
    page.locator("[data-list] button").first.press("Enter")
    assert " → " in page.locator("[data-told]").inner_text()


def test_a_dragged_node_is_held_there_also_for_who_opens_the_link(visit):
    page = visit("plain")
    name = heads_of(page)[0]
    before, box = drawn(page), node(page, name).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y + 41, steps=4)
    page.mouse.up()
    moved = node(page, name).bounding_box()
    assert moved["x"] - box["x"] == pytest.approx(-60, abs=1)
    assert moved["y"] - box["y"] == pytest.approx(41, abs=1)
    arrives(page, f"pin={name}.")
    assert re.search(rf"pin={name}\.\d+\.\d+$", address(page))
    assert page.locator("[data-told]").inner_text() == ""  # dragging does not choose
    there = again(visit, "plain", page)
    assert drawn(there) == drawn(page)
    choose_size(there, steps_of("plain")[-1])
    arrives(there, "pin=")
    node(page, name).click()
    hold = page.locator("[data-pin]")
    assert hold.inner_text() == "Let go"
    hold.click()
    arrives(page, "pin=", there=False)
    assert drawn(page) == before


def test_keys_move_a_node_and_hold_it(visit):
    page = visit("plain")
    name = heads_of(page)[0]
    node(page, name).focus()
    before = node(page, name).bounding_box()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Shift+ArrowUp")
    after = node(page, name).bounding_box()
    assert after["x"] - before["x"] == pytest.approx(-24, abs=1.5)  # thousandths of the width
    assert after["y"] - before["y"] == pytest.approx(-8, abs=1.5)
    arrives(page, f"pin={name}.")


def test_a_named_group_is_drawn_and_kept_in_the_address(visit):
    page = visit("plain")
    first, second = heads_of(page)[:2]
    node(page, first).click()
    node(page, second).click(modifiers=["Shift"])
    assert page.locator("[data-told]").inner_text() == f"{first}, {second}"
    field = page.locator("[data-group]")
    field.fill("copy.*<b> heads")
    field.press("Enter")
    label = page.locator("[data-graph] > g > text")
    assert label.all_text_contents() == ["copy  <b> heads"]
    assert page.locator("[data-graph] > g > path[class^=m]").count() == 1
    there = again(visit, "plain", page)
    assert there.locator("[data-graph] > g > text").all_text_contents() == ["copy  <b> heads"]
    assert drawn(there) == drawn(page)
    assert there.locator("[data-graph] b").count() == 0
    node(there, second).click()
    assert there.locator("[data-group]").input_value() == "copy  <b> heads"
    for name in (first, second):
        node(there, name).click()
        there.locator("[data-group]").fill("")
        there.locator("[data-group]").press("Enter")
    arrives(there, "group=", there=False)
    assert there.locator("[data-graph] > g > text").count() == 0


def test_a_head_leads_to_its_page_where_there_is_one(visit):
    page = visit("plain", "at=L1H1&size=80")
    about = page.locator("[data-about]")
    about.click()
    page.locator("#head h2", has_text="Layer 1, head 1").wait_for()
    page.locator("[data-close]").click()
    page.wait_for_function("() => location.hash.startsWith('#circuits-circuit')")
    node(page, "mlp 0").click()
    assert not about.is_visible()
    alone = visit("stacks", "at=L1H1&size=80")
    assert alone.locator("[data-told]").inner_text() == "L1H1"
    assert not alone.locator("[data-about]").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_saved_drawing_stands_alone(visit, scheme):
    page = visit("shared", "group=embed.start", color_scheme=scheme)
    with page.expect_download() as download:
        page.locator("[data-take]").select_option("svg")
    text = Path(download.value.path()).read_text(encoding="utf-8")
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in text
    assert "light-dark" not in text
    parts = [part for part in root.iter() if part.tag.endswith("}g") and part.get("display") != "none"]
    labels = {text.text for part in parts for text in part.findall("{*}text")}
    assert labels == {*shown(page), "start"}
    lines = [part for part in root.iter() if part.get("data-edge")]
    assert len(lines) == page.locator("[data-edge]").count()
    blue, red = ([p.get("stroke") for p in lines if p.get("class") == kind] for kind in ("up", "down"))
    assert len(set(blue)) == len(set(red)) == 1
    (b, r) = (tuple(map(int, re.findall(r"\d+", colour[0]))) for colour in (blue, red))
    assert b[2] > b[0]
    assert r[0] > r[2]


def test_all_edges_leave_as_numbers(visit):
    page, graph = visit("deep"), GRAPHS["deep"]
    with page.expect_download() as download:
        page.locator("[data-take]").select_option("csv")
    with Path(download.value.path()).open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert tuple(head) == circuits.COLUMNS
    assert len(rows) == 3000 > page.locator(f"#{PANEL} table tbody tr").count()
    assert [row[0] for row in rows] == [graph.nodes[i] for i in graph.senders]
    assert [float(row[3]) for row in rows] == pytest.approx(graph.scores.tolist(), rel=2**-16)
    assert [row[4] == "" for row in rows] == np.isnan(graph.exact).tolist()


def test_without_script_the_figure_and_the_first_rows_are_there(visit):
    page = visit("deep", java_script_enabled=False)
    assert page.locator(f"#{PANEL} img.figure").is_visible()
    assert page.locator(f"#{PANEL} img.figure").evaluate("image => image.naturalWidth") > 300
    assert not page.locator(f"#{PANEL} [data-size], #{PANEL} [data-graph]").first.is_visible()
    assert page.locator(f"#{PANEL} table tbody tr").count() == circuits.SHOWN
    assert not visit("deep").locator(f"#{PANEL} img.figure").is_visible()


def test_wild_addresses_and_names_do_no_harm(visit):
    page = visit("plain", "size=-3&at=%00*99999&pin=L0H0.x.9*embed*nobody.1.1&group=*L0H0*nobody.a*embed.")
    assert size_of(page) in (1, 30)
    assert "NaN" not in page.locator("[data-graph]").evaluate("node => node.outerHTML")
    wild = visit("hostile", "size=9&at=1")
    assert wild.locator("script:not([type])").count() == 1
    assert wild.locator("img[src=x]").count() == 0
    assert wild.evaluate("document.documentElement.scrollWidth") <= 1200


def test_the_drawing_fits_the_room_again_when_it_changes(visit):
    page = visit("plain")
    wide = float(page.locator("[data-graph]").get_attribute("width"))
    page.set_viewport_size({"width": 420, "height": 900})
    page.wait_for_function(f"() => Number(document.querySelector('[data-graph]').getAttribute('width')) < {wide}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 420


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_axe_finds_no_fault_whatever_is_chosen(visit, scheme, width):
    query = "at=L1H1*mlp+0&size=80&group=mlp+0.early*embed.early&pin=mlp+0.200.300"
    page = visit("plain", query, color_scheme=scheme, bypass_csp=True, viewport={"width": width, "height": 900})
    for restored in (query, "at=1"):
        page.evaluate(f"query => viewers['{PANEL}'].restore(new URLSearchParams(query))", restored)
        assert faults(page, f"#{PANEL}") == []
    page.locator("[data-told]").evaluate(
        "node => { node.style.color = 'color-mix(in srgb, currentcolor, canvas 80%)' }"
    )
    assert [fault.rule for fault in faults(page, f"#{PANEL}")] == ["color-contrast"]  # control: a fault is found
