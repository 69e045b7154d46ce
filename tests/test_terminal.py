"""Terminal output: every kind of panel, the width kept, the numbers true, and no token can steer the terminal."""

import io
import re
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import HOSTILE, Sample, attention_grid, panels
from rich.cells import cell_len

from analyses.shared.panels import Bars, Finding, Lines, Matrix, Note, Panel, Table, TokenGrid, Tokens, TokenStrip
from reports import charts, terminal

ALL = (*panels(), attention_grid(2, 3, 10, 7))
STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printed(thing: object, width: int = 100) -> str:
    out = io.StringIO()
    terminal.show(thing, file=out, width=width)  # type: ignore[arg-type]
    return out.getvalue()


def test_every_kind_of_panel_has_a_drawing() -> None:
    kinds = set(Panel.__subclasses__())
    assert kinds == {type(panel) for panel in ALL}, "a new kind of panel needs a sample"
    for kind in kinds:
        assert terminal.body.dispatch(kind) is not terminal.body.dispatch(object)

    with pytest.raises(TypeError, match="object"):
        terminal.body(object(), 80)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [40, 61, 100, 200])
@pytest.mark.parametrize("panel", ALL, ids=lambda panel: panel.key)
def test_lines_keep_the_width(panel: Panel, width: int) -> None:
    lines = terminal.lines(panel, width)
    assert lines
    assert max(line.cell_len for line in lines) <= width


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("width", [40, 110])
def test_hostile_tokens_cannot_steer_the_terminal(width: int, odd: bool) -> None:
    for panel in panels(HOSTILE, odd):
        lines = terminal.lines(panel, width)
        assert max(line.cell_len for line in lines) <= width
        for line in lines:
            assert not [char for char in line.plain if unicodedata.category(char) in STEERING], repr(line.plain)
    text = printed(Sample(panels(HOSTILE, odd)), width)
    assert "\x1b" not in text
    assert "\x00" not in text
    assert "\\x1b" in text  # the control: the token is there, written as a code


def test_markup_of_a_token_is_shown_not_obeyed() -> None:
    tokens = Tokens(("[red]x[/red]", "[/]", ":smile:", "[link=http://a]b"))
    text = printed(TokenStrip(key="k", title="[bold]t[/bold]", tokens=tokens, values=np.arange(4), unit="nats"))
    for token in ("[red]x[/red]", "[/]", ":smile:", "[bold]t[/bold]"):
        assert token in text


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=30), st.floats(allow_nan=True, allow_infinity=True)), min_size=1, max_size=8),
    st.integers(40, 120),
)
def test_any_table_keeps_the_width(rows: list[tuple[str, float]], width: int) -> None:
    """Wide characters, marks and controls included: what is counted is columns of the terminal."""
    frame = pd.DataFrame({"a": [text for text, _ in rows], "b": [value for _, value in rows]})
    for tokens in (frozenset({"a"}), frozenset[str]()):
        for line in terminal.lines(Table(key="t", title="", frame=frame, tokens=tokens), width):
            assert cell_len(line.plain) <= width
            assert not [char for char in line.plain if unicodedata.category(char) in STEERING]


def test_numbers_are_those_of_the_panel() -> None:
    values = np.array([[0.5, -1.25], [np.nan, 300.0]])
    panel = Matrix(
        key="m",
        title="Effect",
        values=values,
        rows=("first", "second"),
        columns=("x", "y"),
        row_axis="layer",
        column_axis="head",
        unit="nats",
        diverging=True,
    )
    head, *rows = [line.plain.split() for line in terminal.body(panel, 80)]
    assert head == ["layer", "x", "y"]
    assert rows[0] == ["first", "0.500", "-1.25"]
    assert rows[1] == ["second", "–", "300"]  # noqa: RUF001


def test_bars_are_in_proportion() -> None:
    def length(value: float) -> int:
        return charts.bar(value, 0, 8, 40).plain.count("█")

    assert [length(v) for v in (8, 4, 2, 0)] == [40, 20, 10, 0]
    both = charts.bar(-4, -4, 4, 40)
    assert both.plain == "█" * 20 + " " * 20
    assert charts.bar(2, -4, 4, 40).plain == " " * 20 + "█" * 10 + " " * 10
    assert all(charts.bar(v, -4, 4, 40).cell_len == 40 for v in np.linspace(-4, 4, 37))


def test_a_spark_rises_with_its_curve() -> None:
    drawn = charts.spark(np.arange(8.0), 0, 7, 8)
    assert drawn == "▁▂▃▄▅▆▇█"
    assert charts.spark(np.arange(8.0)[::-1], 0, 7, 8) == drawn[::-1]
    assert charts.spark(np.array([0, np.nan, 7.0]), 0, 7, 3) == "▁ █"


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
def test_shrinking_keeps_the_extremes(rows: int, columns: int, n_rows: int, n_columns: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, columns))
    small = charts.pooled(values, n_rows, n_columns)
    assert small.shape == (min(rows, n_rows), min(columns, n_columns))
    assert np.abs(small).max() == np.abs(values).max()
    assert np.isin(small, values).all()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (3, "3"), (True, "yes"), (0.123456, "0.123"), (-2.5, "-2.50"), (123456.7, "1.2e5"),
     (14.0, "14"), (-123456.0, "-123,456"), (2e30, "2.0e30"), (1e-7, "1.0e-7"),
     (np.inf, "inf"), (None, "–"), (float("nan"), "–"), (pd.NA, "–"),  # noqa: RUF001
     (124439808, "124,439,808")],
)  # fmt: skip
def test_number(value: float, text: str) -> None:
    assert charts.number(value) == text


def test_long_things_are_cut_and_say_so() -> None:
    frame = pd.DataFrame({"n": range(1000)})
    text = printed(Table(key="t", title="", frame=frame))
    assert f"… {1000 - terminal.MAX_ROWS} more rows" in text
    wide = pd.DataFrame({f"column{i}": ["x" * 20] for i in range(20)})
    assert "not shown, too wide: " in printed(Table(key="t", title="", frame=wide), 60)
    bars = Bars(key="b", title="", labels=tuple(map(str, range(99))), values=np.arange(99.0), unit="x")
    assert f"… {99 - 2 * terminal.MAX_ROWS} more bars" in printed(bars)


def test_a_lens_shows_the_last_row_in_a_narrow_terminal() -> None:
    panel = next(panel for panel in ALL if isinstance(panel, TokenGrid))
    head = terminal.body(panel, 62)[0].plain
    assert "0 post" in head
    assert "1 of 3 rows shown" in printed(panel, 40) or "2 of 3 rows shown" in printed(panel, 40)


def test_findings_come_first_and_the_most_notable_first() -> None:
    small, large = (
        Finding(text=f"Finding {name}.", key="note", weight=weight, value=1.0, unit="")
        for name, weight in (("small", 0.1), ("large", 0.9))
    )
    text = printed(Sample((Note(key="note", title="Limits", text="A remark."),), (small, large)))
    assert text.index("Finding large") < text.index("Finding small") < text.index("A remark")


def test_colour_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def ansi() -> str:
        out = Terminal()
        terminal.show(ALL[0], file=out, width=80)
        return out.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert re.search(r"\x1b\[[0-9;]*48;", ansi())  # the control: shaded cells on a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*[34]8;", ansi())
    assert "\x1b" not in printed(ALL[0])  # no terminal


def test_curves_on_a_log_scale_skip_what_has_no_logarithm() -> None:
    panel = Lines(
        key="l",
        title="",
        x=np.arange(4),
        series={"a": np.array([1, 10, 0, 1000.0])},
        x_axis="x",
        y_axis="y",
        log_y=True,
    )
    drawn = terminal.body(panel, 60)[1].plain
    assert "▁" in drawn
    assert " " * 3 in drawn  # the gap at zero
    assert "█" in drawn


def test_words_of_the_text_stand_above_their_numbers() -> None:
    tokens = Tokens(("a", " long", " word", "日本", "!"))
    panel = TokenStrip(key="s", title="", tokens=tokens, values=np.array([1, 22, 3, 4, 555.0]), unit="nats")
    upper, lower = (line.plain for line in terminal.body(panel, 200)[:2])
    for word, value in (("a", "1"), ("·long", "22"), ("·word", "3"), ("日本", "4"), ("!", "555")):
        assert cell_len(upper[: upper.index(word)]) == cell_len(lower[: lower.index(value)])


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.1, 0.9], (0, 0.9)), ([5, 8], (5, 8)), ([2.88, 2.89], (0, 2.89)), ([-2, 3], (-2, 3)), ([np.nan, 4], (0, 4))],
)
def test_the_scale_starts_at_zero_unless_zero_is_far(values: list[float], expected: tuple[float, float]) -> None:
    """Values that are nearly alike get nearly one shade."""
    assert charts.ends(np.array(values)) == expected


def test_a_curve_has_two_characters_a_value_and_no_more() -> None:
    panel = Lines(key="c", title="", x=np.arange(9.0), series={"mean": np.arange(9.0)}, x_axis="x", y_axis="y")
    drawn = re.search("[▁-█]+", printed(panel, 140))
    assert drawn is not None
    assert len(drawn[0]) == 18


def test_both_rows_of_a_text_are_named() -> None:
    strip = TokenStrip(key="s", title="", tokens=Tokens(("a", "b")), values=np.array([0.5, 2.0]), unit="half-blocks")
    rows = [line.plain.split() for line in terminal.body(strip, 80)]
    assert rows[:2] == [["token", "a", "b"], ["half-blocks", "0.500", "2"]]
    assert len(rows) == 2  # a name that fits is not said again


def test_a_heading_is_cut_only_where_room_is_short() -> None:
    grid = TokenGrid(
        key="g", title="", tokens=Tokens(("a", "b")), rows=("embed",), cells=(("x", "y"),), row_axis="depth",
        measures={"probability of the token shown": np.array([[0.5, 0.25]])}, units={},
    )  # fmt: skip
    assert "probability of the token shown" in terminal.body(grid, 140)[0].plain
    cut = terminal.body(grid, 40)[0].plain
    assert cut.endswith("…")
    assert len(cut) == 40
