"""How long a report will take: by what the last one took on a clock of ours, less what is kept; else nothing."""

import json
import re
from pathlib import Path

import pytest
from command_line import interp
from conftest import make_gpt

from analyses import surprise
from analyses.shared.capabilities import analysis
from analyses.shared.panels import Result
from interp import HookedGPT
from interp.keeping import remembered
from reports.running import expected
from reports.running.expected import FILE, Times
from reports.running.report import report

TEXT = "The river rose in spring, and the mill stood still."


class Clock:
    """Goes on only when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


@analysis(place=10)
def reads_text(model: HookedGPT, tokens: object) -> Result:
    """Takes 3 s."""
    CLOCK.now += 3
    return surprise(model, tokens)


@analysis(place=20, weights_only=True)
def reads_weights(model: HookedGPT, tokens: object) -> Result:
    """Takes 40 s, once a model."""
    CLOCK.now += 40
    return surprise(model, "weights")


def run(model: HookedGPT, folder: Path, text: str = TEXT) -> tuple[Times, float]:
    """A report with its times, and what it took; 5 s are spent on what is no analysis."""
    with remembered(folder, clock=CLOCK) as memory:
        start = CLOCK.now
        times = Times.of(memory, model, [len(model.to_str_tokens(text))], ["reads_text", "reads_weights"])
        promised = Times.of(memory, model, times.lengths, times.asked)
        report(
            model, text, analyses=[reads_text, reads_weights], before=lambda one: times.lap(),
            after=lambda section: times.lap(section.name),
        )  # fmt: skip
        CLOCK.now += 5
        times.lap()
        promised.seconds["promised"] = promised.expected() or 0.0
        times.keep()
    return promised, CLOCK.now - start


@pytest.fixture(scope="module")
def tiny() -> HookedGPT:
    return HookedGPT.from_pretrained("tiny", device="cpu")


def test_the_second_report_on_a_model_takes_what_was_said(tiny: HookedGPT, tmp_path: Path) -> None:
    first, took = run(tiny, tmp_path)
    assert (first.seconds["promised"], took) == (0.0, 48.0)  # nothing was known
    for text in (TEXT, TEXT + " The boats went down to the sea."):
        second, took = run(tiny, tmp_path, text)
        assert took == 8.0
        assert 0.5 <= second.seconds["promised"] / took <= 2
    assert 48 / took > 2  # the control: had what is kept been counted


def test_nothing_is_said_of_what_was_not_timed(tiny: HookedGPT, tmp_path: Path) -> None:
    run(tiny, tmp_path)
    with remembered(tmp_path, clock=CLOCK) as memory:
        n = len(tiny.to_str_tokens(TEXT))
        names = ["reads_text", "reads_weights"]
        assert Times.of(memory, tiny, [n], names).expected() == 8
        assert Times.of(memory, tiny, [n], names[:1]).expected() == 8
        assert Times.of(memory, tiny, [n], names[1:]).expected() == 5  # its 40 s are kept
        for lengths, asked in (([3 * n], names), ([n // 3], names), ([n, n], names), ([n], [*names, "ablation"])):
            assert Times.of(memory, tiny, lengths, asked).expected() is None
            assert Times.of(memory, tiny, lengths, asked).said(tiny) == ""
        assert Times.of(memory, make_gpt(), [n], names).expected() is None
        for wrong in (
            "",
            "{}",
            "[1]",
            '[{"shape": 1}]',
            '[{"shape": "", "texts": 1, "tokens": 1, "seconds": {"": "x"}}]',
        ):
            (tmp_path / FILE).write_text(wrong)
            assert Times.of(memory, tiny, [n], names).expected() is None
    (tmp_path / "file").touch()
    run(tiny, tmp_path / "file")  # cannot be written


@pytest.mark.parametrize(
    ("seconds", "lengths", "asked", "words"),
    [
        (39.6, [77], 20, "about 40 s more: 20 analyses of a 5.32 M parameter model on 77 tokens"),
        (150.0, [50, 1000], 1, "about 2 min more: 1 analysis of a 5.32 M parameter model on 2 texts, 1,050 tokens"),
        (1.9, [77], 20, ""),
    ],
)
def test_the_line(
    seconds: float, lengths: list[int], asked: int, words: str, tiny: HookedGPT, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Times, "expected", lambda self: seconds)
    with remembered(tmp_path) as memory:
        assert Times.of(memory, tiny, lengths, ["one"] * asked).said(tiny) == words


def test_the_command_says_it_before_it_starts_unless_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(expected, "LEAST", 0.0)
    args = ("report", TEXT, "--analyses", "surprise,architecture", "--out", "page.html", "--force")
    first, second, third = interp(capsys, *args), interp(capsys, *args), interp(capsys, *args, "--quiet")
    assert (first.code, second.code, third.err) == (0, 0, "")
    assert "about" not in first.err
    assert re.match(r"about \d+ s more: 2 analyses of a 5.32 M parameter model on \d+ tokens\n", second.err)
    (times,) = (tmp_path / "cache").rglob(FILE)
    assert [run["seconds"].keys() for run in json.loads(times.read_text())] == [{"surprise", "architecture", ""}] * 3
