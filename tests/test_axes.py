"""Arrays with named axes against loops, and what patching results share against closed forms."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analyses.shared.axes import Axes, largest_first, lines, said_mean, said_tests, similarity
from analyses.shared.panels import Finding, Matrix, Note, Panel, Tokens
from analyses.shared.patching_result import PatchingResult, layered_graph
from analyses.shared.statistics import Interval, bootstrap, q_values, sign_flip_p_value
from interp.errors import InputError

VALUES = np.random.default_rng(0).normal(0.6, 1.0, size=(9, 3, 2))
TEMPLATES = ("a", "b", "c") * 3


def test_a_frame_has_a_row_for_every_entry() -> None:
    axes = Axes.of(VALUES[:2], text=None, layer=(4, 7, 9), head=("x", "y"))
    frame = axes.frame("score", depth=np.array([4.0, 7.0, 9.0])[:, None], double=2 * VALUES[:2])
    rows = [
        (text, layer, head, VALUES[text, i, j], float(layer), 2 * VALUES[text, i, j])
        for text in range(2)
        for i, layer in enumerate((4, 7, 9))
        for j, head in enumerate("xy")
    ]
    expected = pd.DataFrame(rows, columns=["text", "layer", "head", "score", "depth", "double"])
    pd.testing.assert_frame_equal(frame, expected, check_exact=True)
    twice = Axes.of(VALUES[0], layer=None, token=Tokens((" a", " a"))).frame()
    assert twice["token"].tolist() == [" a"] * 6  # labels need not differ
    assert twice["value"].tolist() == VALUES[0].ravel().tolist()
    words = np.array(["a\0", "b"], dtype=object)
    assert Axes.of(np.zeros(2), token=("\0", "c")).frame(word=words).iloc[0].tolist() == ["\0", 0.0, "a\0"]
    other = Axes.of(VALUES[:2].swapaxes(1, 2), text=None, head=("x", "y"), layer=(4, 7, 9)).frame("score")
    assert not (other["score"] == frame["score"]).all()  # the control: axes in another order, rows in another order
    merged = frame.merge(other, on=["text", "layer", "head"])
    assert (merged["score_x"] == merged["score_y"]).all()  # but each number keeps its names


@pytest.mark.parametrize("labels", [{"text": None}, {"text": None, "layer": None, "head": "abc"}])
def test_labels_that_do_not_fit_are_refused(labels: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected a label for each entry"):
        Axes.of(VALUES, **labels)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        Axes.of(VALUES[0, 0], head=None, more=None)


@pytest.mark.parametrize("clusters", [None, TEMPLATES])
def test_a_summary_is_the_statistics_entry_by_entry(clusters: tuple[str, ...] | None) -> None:
    summary = Axes.of(VALUES, text=None, layer=None, head=None).summary("score", clusters=clusters, seed=3)
    assert list(summary) == ["layer", "head", "score", "low", "high", "p", "q"]
    for _, row in summary.iterrows():
        one = VALUES[:, int(row["layer"]), int(row["head"])]
        found = bootstrap(one, clusters=clusters, seed=3)
        assert row["score"] == pytest.approx(one.mean(), rel=1e-12)
        assert (row["low"], row["high"]) == pytest.approx(found.ends(), rel=1e-12)
        assert row["p"] == sign_flip_p_value(one, clusters=clusters, seed=3)
    assert summary["q"].to_numpy() == pytest.approx(q_values(summary["p"].to_numpy()), rel=1e-12)
    last = Axes.of(np.moveaxis(VALUES, 0, 2), layer=None, head=None, text=None)  # wherever the axis lies
    pd.testing.assert_frame_equal(last.summary("score", clusters=clusters, seed=3), summary, check_exact=True)
    over_heads = last.summary("score", over="head", clusters=None, seed=3)
    assert not over_heads["score"].isin(summary["score"]).any()


def test_what_is_not_tested_is_not_counted_among_the_tests() -> None:
    axes, tested = Axes.of(VALUES, text=None, layer=None, head=None), np.array([[True, False]] * 3)
    part = axes.summary(tested=tested)
    assert part["p"].isna().tolist() == part["q"].isna().tolist() == (~tested).ravel().tolist()
    alone = Axes.of(VALUES[:, :, :1], text=None, layer=None, head=None).summary()
    assert part["q"].dropna().to_numpy() == pytest.approx(alone["q"].to_numpy(), rel=1e-12)
    assert (part["q"].dropna().to_numpy() <= axes.summary()["q"].to_numpy()[::2] + 1e-12).sum() >= 1
    assert list(Axes.of(VALUES[:1], text=None, layer=None, head=None).summary()) == ["layer", "head", "value"]


def test_panels_have_the_labels_and_the_interval() -> None:
    tokens = Tokens((" a", " b"))
    axes = Axes.of(VALUES, text=None, layer=None, token=tokens).mean(seed=1)
    found = bootstrap(VALUES, seed=1)
    matrix = axes.matrix("key", "A title", "A caption.", unit="share", diverging=True)
    assert isinstance(matrix, Matrix)
    assert (matrix.rows, matrix.columns) == (("0", "1", "2"), tokens)
    assert isinstance(matrix.columns, Tokens)
    assert not isinstance(matrix.rows, Tokens)
    assert (matrix.row_axis, matrix.column_axis, matrix.caption) == ("layer", "token", "A caption.")
    np.testing.assert_array_equal(matrix.low, found.low)
    np.testing.assert_array_equal(matrix.high, found.high)
    bars = Axes.of(bootstrap(VALUES[:, 0], seed=1), token=tokens).bars("key", "A title", unit="share")
    np.testing.assert_array_equal(bars.high, matrix.high[0])
    series = {"measured": bootstrap(VALUES[:, :, 0], seed=1), "chance": np.zeros(3), "one": bootstrap(VALUES[:1, :, 0])}
    curves = lines("key", "A title", "", series, x=range(3), x_axis="layer", y_axis="share")
    assert list(curves.series) == ["measured", "chance", "one"]
    assert set(curves.low) == set(curves.high) == {"measured"}  # no band without an interval
    np.testing.assert_array_equal(curves.low["measured"], found.low[:, 0])
    cosines = similarity("key", "A title", "", np.eye(2), "token", tokens)
    assert cosines.rows is cosines.columns is tokens
    with pytest.raises(ValueError, match="unpack"):
        axes.bars("key", "A title", unit="share")  # two axes are no bars


def test_largest_first() -> None:
    frame = pd.DataFrame({"name": list("abcde"), "effect": [1.0, -3.0, np.nan, 3.0, 0.5]})
    whole, cut = largest_first(frame, "effect", 5)
    assert whole["name"].tolist() == ["b", "d", "a", "e", "c"]  # ties as they came, nothing measured last
    assert cut == ""
    some, cut = largest_first(frame, "effect", 2)
    assert some["name"].tolist() == ["b", "d"]
    assert cut == " The 2 largest of 5 effects."


def test_the_largest_entries_are_those_of_the_whole_frame() -> None:
    values = np.where(np.abs(VALUES[0]) < 0.3, np.nan, VALUES[0])
    axes = Axes.of(values, layer=None, head=("x", "y"))
    whole = axes.frame("score", double=2 * values).dropna()
    assert 2 < len(whole) < values.size
    expected, _ = largest_first(whole, "score", 2)
    shown, cut = axes.largest("score", 2, double=2 * values)
    pd.testing.assert_frame_equal(shown, expected, check_exact=True)
    assert cut == f" The 2 largest of {len(whole)} effects."
    everything, cut = axes.largest("score")
    assert (len(everything), cut) == (len(whole), "")


def test_what_is_said_of_a_mean() -> None:
    assert said_mean(1) == "One text, so no interval."
    assert said_mean(12, "sequence") == "Mean of 12 sequences with 95 % intervals over sequences."
    tested = pd.DataFrame({"q": [0.1]})
    assert "over 3 templates; p by flipping the signs of templates" in said_tests(tested, 9, TEMPLATES, "paths")
    assert said_tests(tested.drop(columns="q"), 1, None, "paths") == ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Patching(PatchingResult):
    effects: np.ndarray

    def to_dataframe(self) -> pd.DataFrame:
        return self.tested(Axes.of(self.effects, text=None, part=("x", "y")))

    def panels(self) -> list[Panel]:
        return [self.largest_first(self.to_dataframe(), "paths"), *self.said_methods(tests=2, chosen_of=2)]


def patching(n: int, direction: str = "noise", gap: float = -4.0) -> Patching:
    clean = np.linspace(1.0, 2.0, n)
    pairs = SimpleNamespace(
        rows=[None] * n, clusters=None, own=(), said=lambda: f"{n} pairs.", question=lambda *_: "A over B"
    )
    measured = SimpleNamespace(metric="loss", title="loss", unit="nats", clean=clean, corrupted=clean + gap)
    return Patching(
        pairs=pairs, measure=measured, direction=direction, answers=Tokens(), wrongs=Tokens(), seed=0,
        effects=VALUES[:n, 0] + (0.0, 3.0),
    )  # type: ignore[arg-type]  # fmt: skip


def test_shares_of_the_gap_have_its_sign() -> None:
    there, back = patching(9), patching(9, "denoise")
    assert (there.gap, back.gap) == (pytest.approx(-4.0), pytest.approx(4.0))
    np.testing.assert_array_equal(there.base, there.measure.clean)
    np.testing.assert_array_equal(back.base, back.measure.corrupted)
    frame = there.to_dataframe()
    assert list(frame) == ["part", "effect", "share", "low", "high", "p", "q"]
    assert frame["share"].to_numpy() == pytest.approx(there.effects.mean(0) / -4.0, rel=1e-12)
    assert there.amount(-2.0) == "\N{MINUS SIGN}2 of \N{MINUS SIGN}4 nats"
    assert "from the corrupted run into the clean" in there.caption("if patched")
    assert "from the clean run into the corrupted" in back.caption("if patched")
    none = patching(9, gap=0.0)
    assert none.to_dataframe()["share"].isna().all()
    assert none.weak
    assert not there.weak
    (nothing,) = [none.nothing("key")]
    assert (nothing.kind, nothing.value) == ("negative", 0.0)
    assert "below the floor of 0.1" in nothing.text


def test_the_effect_told_has_an_interval_that_allows_for_the_choice() -> None:
    many, one = patching(9), patching(1)
    (found,) = many.finding("y gives {}", "key", many.effects, (1,), "paths", "y", "gives {}")
    wide, plain = bootstrap(many.effects[:, 1], chosen_of=2), bootstrap(many.effects[:, 1])
    assert (found.low, found.high) == pytest.approx(wide.ends(), rel=1e-12)
    assert found.high - found.low > 1.05 * (plain.high - plain.low)  # that of y alone would be narrower
    assert found.text.startswith(f"A over B: y gives {found.value:+.3g} of \N{MINUS SIGN}4 nats; p = ")
    assert found.p == pytest.approx(2 / 2**9)
    assert "largest of 2 paths" in found.null
    assert not many.finding("x gives {}", "key", many.effects, (0,), "paths", "x", "gives {}")  # control: noise
    assert not patching(9, gap=0.05).finding("y gives {}", "key", many.effects, (1,), "paths", "y", "")  # a weak pair
    (alone,) = one.finding("y gives {}", "key", one.effects, (1,), "paths", "y", "gives {}")
    assert (alone.low, alone.high, alone.p) == (None, None, None)
    assert "floor" in alone.null
    assert many.panels()[0].frame["part"].tolist() == ["y", "x"]
    assert "share" in many.panels()[0].caption
    assert "p by flipping" not in one.panels()[0].caption


def test_edges_between_the_same_two_are_added_up() -> None:
    depth = {"embed": 0, "L0H0": 1, "mlp 0": 2, "logits": 9}
    edges = [("mlp 0", "logits", 1.0), ("embed", "L0H0", 2.0), ("mlp 0", "logits", -0.25)]
    graph = layered_graph("A title", "", edges, depth, "nats")
    assert graph.nodes == ("embed", "L0H0", "mlp 0", "logits")
    assert graph.columns == (0, 1, 2, 3)  # no empty column between
    assert graph.edges == ((2, 3, 0.75), (0, 1, 2.0))


def test_panels_and_findings_take_their_first_words_by_place() -> None:
    named = Note(key="key", title="Title", caption="Caption.", text="Text.")
    assert Note("key", "Title", "Caption.", text="Text.") == named
    with pytest.raises(TypeError):
        Note("key", "Title", "Caption.", "Text.")  # type: ignore[misc]
    low, high = bootstrap(VALUES[:, 0, 0]).ends()
    assert Finding("1.", "key", 0.5, 1.0, "nats", low, high).high == high
    assert Interval(value=np.zeros(1), low=None, high=None, n=1).ends(0) == (None, None)
