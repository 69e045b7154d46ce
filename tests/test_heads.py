"""Head pages: everything the panels say about a head is found, nothing else, and under the right head."""

import base64
import json
import zlib
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_samples import attention_grid, circuit_graph

from analyses.shared.panels import Bars, Finding, Lines, Matrix, Note, Panel, Table, Tokens
from reports.numbers import number
from reports.page import heads

LAYERS, HEADS = 3, 4
NAMES = tuple(f"L{layer}H{head}" for layer, head in product(range(LAYERS), range(HEADS)))
RNG = np.random.default_rng(0)


def by_head(key: str, values: np.ndarray, **more) -> Matrix:
    rows, columns = (tuple(map(str, range(n))) for n in values.shape)
    return Matrix(key=key, title=key.title(), values=values, rows=rows, columns=columns, row_axis="layer",
                  column_axis="head", unit="nats", **more)  # fmt: skip


def square(rows: tuple[str, ...], columns: tuple[str, ...], values: np.ndarray) -> Matrix:
    return Matrix(key="pairs", title="Pairs", values=values, rows=rows, columns=columns, row_axis="from",
                  column_axis="to", unit="score")  # fmt: skip


def gather(*panels: Panel, findings: tuple[tuple[Finding, str], ...] = ()) -> heads.HeadPages | None:
    return heads.gather([("some", "Some", panels)], findings)


def tables(pages: heads.HeadPages, head: int) -> dict[str, list[list[heads.Cell]]]:
    return {table.title: table.rows[head] for group in pages.groups for table in group.tables if table.rows.get(head)}


def numbers(pages: heads.HeadPages, head: int) -> dict[str, list[str]]:
    """title -> value, interval, unit, place"""
    return {row[0][0]: row[1:] for row in tables(pages, head)["Its numbers"]}


def test_a_matrix_of_layers_by_heads_gives_each_head_its_number_interval_and_place():
    values = RNG.normal(size=(LAYERS, HEADS))
    pages = gather(by_head("effect", values, low=values - 1, high=values + 2))
    order = np.argsort(-np.abs(values.ravel())).tolist()
    for head, value in enumerate(values.ravel()):
        interval = f"{number(value - 1)} to {number(value + 2)}"
        assert numbers(pages, head) == {
            "Effect": [number(value), interval, "nats", f"{order.index(head) + 1} of {LAYERS * HEADS}"]
        }
    assert numbers(pages, 0) != numbers(pages, 1)


def test_heads_that_were_not_measured_have_no_line():
    values = np.full((LAYERS, HEADS), np.nan)
    values[1, 2] = 0.5
    pages = gather(by_head("effect", values), attention_grid(LAYERS, HEADS, 5))
    assert numbers(pages, 6)["Effect"][0] == "0.500"
    assert numbers(pages, 6)["Effect"][3] == "1 of 1"
    assert "Effect" not in numbers(pages, 5)


def test_the_same_numbers_twice_stand_once_with_all_that_is_known_of_them():
    values = RNG.random((LAYERS, HEADS))
    frame = pd.DataFrame({"head": NAMES, "copy": values.ravel(), "other": values.ravel() + 1})
    pages = gather(by_head("effect", values), Table(key="t", title="Table", frame=frame, units={"other": "logits"}))
    assert list(numbers(pages, 3)) == ["Effect", "other · Table"]
    assert numbers(pages, 3)["other · Table"][2] == "logits"


def test_rows_of_a_table_go_to_every_head_they_name_and_to_no_other():
    frame = pd.DataFrame({"from": ["L0H1", "mlp 0", "L0H1"], "to": ["L2H3.q", "L1H0", "logits"], "score": [3.0, 2, 1]})
    pages = gather(Table(key="t", title="Paths", frame=frame))
    assert [row[2] for row in tables(pages, 0 * 4 + 1)["Paths"]] == ["3", "1"]
    assert [row[:2] for row in tables(pages, 2 * 4 + 3)["Paths"]] == [["L0H1", "L2H3.q"]]
    assert [row[:2] for row in tables(pages, 1 * 4 + 0)["Paths"]] == [["mlp 0", "L1H0"]]
    assert tables(pages, 0) == {}


def test_a_column_that_only_repeats_the_head_is_left_out_and_long_tables_are_cut_with_a_count():
    frame = pd.DataFrame({"head": ["L0H0"] * 9, "role": [f"r{i}" for i in range(9)], "null": range(9)})
    pages = gather(Table(key="t", title="Roles", frame=frame))
    table = pages.groups[-1].tables[0]
    assert table.columns == ["role", "null"]
    assert table.rows[0] == [[f"r{i}", str(i)] for i in range(heads.ROWS)]
    assert table.more == {0: 9 - heads.ROWS}


def test_layer_and_head_columns_are_understood_and_empty_ones_ignored():
    frame = pd.DataFrame({"layer": [0, 1, 2], "head": [2, "", 1], "site": ["z", "resid", "z"], "effect": [1.0, 2, 3]})
    pages = gather(Table(key="t", title="Sites", frame=frame))
    assert tables(pages, 0 * 3 + 2)["Sites"] == [["z", "1"]]
    assert tables(pages, 2 * 3 + 1)["Sites"] == [["z", "3"]]
    assert sum(bool(tables(pages, head)) for head in range(9)) == 2


@given(st.lists(st.floats(-9, 9), min_size=144, max_size=144))
def test_partners_are_the_largest_entries_of_row_and_column(flat):
    values = np.array(flat).reshape(12, 12)
    pages = gather(square(NAMES, NAMES, values), attention_grid(LAYERS, HEADS, 3))
    sides = {tuple(table.columns): table for group in pages.groups for table in group.tables}
    symmetric = np.allclose(values, values.T)
    for axis, one in (("to", values), ("from", values.T)):
        table = sides.get((axis, "score"))
        if table is None:
            assert symmetric or not one.any() or not (one - np.diag(np.diag(one))).any()
            continue
        for head in range(12):
            others = np.abs(np.delete(one[head], head))
            best = sorted(others[others > 0], reverse=True)[: heads.BEST]
            got = [abs(one[head, NAMES.index(name)]) for name, _ in table.rows[head]]
            assert got == sorted(got, reverse=True)
            assert len(got) >= len(best) - 1  # the head itself may have taken one of the places
            assert all(value >= best[-1] or value in best for value in got) if best else not got


def test_bars_and_findings_count_and_tokens_that_look_like_heads_do_not():
    bars = Bars(key="bars", title="Bars", labels=("L0H1", "mlp 0"), values=np.array([0.4, 9.0]), unit="logits")
    words = Tokens(("L1H1", " L2H2"))
    fake = Bars(key="fake", title="Fake", labels=words, values=np.array([1.0, 2.0]), unit="nats")
    strange = Table(key="words", title="Words", frame=pd.DataFrame({"token": words}), tokens=frozenset({"token"}))
    finding = Finding(text="L0H1 copies, as does layer 2, head 0.", key="bars", weight=1, value=1, unit="")
    pages = gather(bars, fake, strange, attention_grid(LAYERS, HEADS, 3), findings=((finding, "some-bars"),))
    assert numbers(pages, 1)["Bars"][0] == "0.400"
    assert "Fake" not in numbers(pages, 5)
    assert not any("Words" in tables(pages, head) for head in range(12))
    assert [head for head in range(12) if "Sentences that name it" in tables(pages, head)] == [1, 8]
    assert tables(pages, 8)["Sentences that name it"] == [[("L0H1 copies, as does layer 2, head 0.", "some-bars")]]


def test_the_shape_is_the_viewers_and_labels_beyond_it_are_another_models():
    pages = gather(attention_grid(2, 2, 3), by_head("big", RNG.random((4, 4))))
    assert (pages.layers, pages.heads, pages.viewer) == (2, 2, "some-pattern")
    assert len(tables(pages, 3)["Its numbers"]) == 3  # two measures of the viewer, and the part of the matrix that fits
    with pytest.raises(KeyError):
        numbers(pages, 4)


def test_heads_of_several_stacks_have_no_pages():
    numbers = by_head("cross-heads", RNG.random((LAYERS, HEADS)))
    parts = Table(
        key="parts", title="Parts", frame=pd.DataFrame({"part": ["mlp 0", "cross L1H2"], "value": [1.0, 2.0]})
    )
    assert gather(numbers, parts) is None
    assert gather(numbers, replace(parts, frame=parts.frame.replace("cross L1H2", "L1H2"))) is not None
    grid = attention_grid(LAYERS, HEADS, 3)
    apart = replace(grid, key="cross", queries=grid.tokens)
    assert gather(grid, apart) is None
    assert gather(apart) is not None  # an encoder has one stack
    assert gather(grid, replace(grid, key="other")) is not None  # the same heads on another text


def test_a_report_that_speaks_of_no_head_has_no_head_pages():
    lines = Lines(key="l", title="L", x=np.arange(3), series={"a": np.arange(3.0)}, x_axis="x", y_axis="y")
    assert gather(lines, Note(key="n", title="N", text="none")) is None


def test_packed_is_the_same_as_json():
    pages = gather(by_head("effect", RNG.random((LAYERS, HEADS))))
    plain = json.loads(zlib.decompress(base64.b64decode(pages.packed()), -15))
    assert (plain["layers"], plain["heads"]) == (LAYERS, HEADS)
    assert plain["groups"][0]["tables"][0]["rows"]["5"][0][1] == numbers(pages, 5)["Effect"][0]


def test_a_circuits_edges_stand_with_the_heads_that_they_join():
    graph = circuit_graph(LAYERS, HEADS, chosen=20)
    pages = gather(graph)
    assert (pages.layers, pages.heads) == (LAYERS, HEADS)
    for head, name in enumerate(NAMES):
        number_of = graph.nodes.index(name)
        joined = [e for e in range(20) if number_of in (graph.senders[e], graph.receivers[e])]
        found = tables(pages, head).get("Its edges in the circuit", [])
        assert [int(row[0]) - 1 for row in found] == joined[: heads.ROWS]
        for row, e in zip(found, joined, strict=False):
            ends = [cell if isinstance(cell, str) else cell[0] for cell in row[1:4]]
            assert ends == [graph.nodes[graph.senders[e]], graph.nodes[graph.receivers[e]], graph.inputs[e]]
            assert row[4] == number(graph.scores[e])
