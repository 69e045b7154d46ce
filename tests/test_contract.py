"""What every analysis promises, checked for each file in `analyses/` without naming any."""

import ast
import contextlib
import dataclasses
import inspect
import io
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, NamedTuple

import pandas as pd
import pytest
import torch
from conftest import make_gpt
from shapes import SHAPES, toy

import analyses
from analyses.shared import contract
from analyses.shared.capabilities import CAPABILITIES, lacking
from analyses.shared.contract import fingerprint
from analyses.shared.panels import Finding, Panel, Result, Table, Tokens
from interp.errors import CheckFailed, NotApplicable
from interp.models.gpt import HookedGPT
from interp.text.tokenizer import Tokenizer
from reports import figures, terminal
from reports.page import html, views
from reports.running.discovery import Analysis, discover
from reports.running.report import unfit

TEXT = contract.TEXT
ANALYSES = [analysis for analysis in discover().values() if analysis.stands_alone]
RUN = ("gpt2", "llama", "gemma3", "neox")
"""The shapes that every analysis runs on, or refuses."""
REFUSED: dict[str, set[str]] = {
    "position_encodings": {"llama", "gemma3", "neox"},
}
"""By analysis, the shapes among these that lack what it asks for."""
CASES = [(one, shape) for one in ANALYSES for shape in RUN if shape not in REFUSED.get(one.name, ())]
every_analysis = pytest.mark.parametrize(
    ("analysis", "shape"), CASES, ids=lambda x: x if isinstance(x, str) else x.name
)


class Outcome(NamedTuple):
    """Two runs of an analysis on one model."""

    result: Result
    again: Result
    changed: list[str]  # what of the model is not as it was
    printed: str


@pytest.fixture(scope="module")
def outcome(toy_tokenizer: Tokenizer) -> Callable[[Analysis, str], Outcome]:
    """Runs an analysis twice on a toy of a shape, once a module."""

    @cache
    def run(analysis: Analysis, shape: str) -> Outcome:
        model = toy(shape, tokenizer=toy_tokenizer)
        before = fingerprint(model)
        function = analysis.function()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            first, again = function(model, TEXT), function(model, TEXT)
        after = fingerprint(model)
        return Outcome(first, again, contract.changed(before, after), printed.getvalue())

    return run


def test_there_are_analyses() -> None:
    assert {"attention_patterns", "logit_lens", "weight_statistics", "ablation"} <= {a.name for a in ANALYSES}


@pytest.mark.parametrize("analysis", discover().values(), ids=lambda analysis: analysis.name)
def test_signature_and_words(analysis: Analysis) -> None:
    function = analysis.function()
    assert list(contract.signature(function)) == []
    assert all(option.help and not option.help.endswith(".") for option in analysis.options())
    assert len(analysis.help) <= 120
    assert analysis.help.endswith((".", "?"))
    assert len(analysis.doc.splitlines()) >= 5, "the question, the method, what the numbers mean"
    tree = ast.parse(analysis.path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)


@every_analysis
def test_result_is_frozen_and_repeats_itself(analysis: Analysis, shape: str, outcome: Any) -> None:
    result, again, *_ = outcome(analysis, shape)
    assert list(contract.result(result, again)) == []
    pd.testing.assert_frame_equal(result.to_dataframe(), again.to_dataframe())


@every_analysis
def test_the_model_is_left_as_it_was(analysis: Analysis, shape: str, outcome: Any) -> None:
    assert outcome(analysis, shape).changed == []


def test_a_changed_model_is_seen() -> None:
    """The control: each kind of change shows in the fingerprint."""
    model = make_gpt()
    before = fingerprint(model)
    with torch.no_grad():
        model.W_E[3, 3] += 1e-3
    assert fingerprint(model) != before
    before = fingerprint(model)
    with model.hooks([("resid_pre", lambda x, hook: None)]):
        assert fingerprint(model) != before
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_a_shape_lacks_is_said(name: str, toy_tokenizer: Tokenizer) -> None:
    """By the analysis itself, and by what its file says it needs, of which a report knows before it runs."""
    analysis = discover()[name]
    for shape in sorted(REFUSED[name]):
        model = toy(shape, tokenizer=toy_tokenizer)
        assert lacking(model, analysis.needs_in_report)
        with pytest.raises(NotApplicable, match=lacking(model, analysis.needs_in_report)):
            analysis.function()(model, TEXT)


def test_the_refusals_of_every_shape_are_these() -> None:
    """What a report leaves out by what a model has; no shape's name is known to it."""
    causal = {
        "ablation", "activation_patching", "attribution_patching", "circuits", "continuations",
        "direct_logit_attribution", "head_roles", "logit_lens", "neurons", "next_token", "outer_loop", "path_patching",
        "surprise", "tuned_lens",
    }  # fmt: skip
    expected = {shape: {"position_encodings"} for shape in SHAPES if toy(shape).config.positions != "learned"}
    expected |= {"gpt2": set(), "attention only": {"neurons"}, "bidirectional": causal}
    found = {shape: {one.name for one in ANALYSES if unfit(one, toy(shape))} for shape in SHAPES}
    assert found == expected
    assert all(expected[shape] == {name for name in REFUSED if shape in REFUSED[name]} for shape in RUN)


@pytest.mark.parametrize("analysis", ANALYSES, ids=lambda analysis: analysis.name)
def test_needs_are_asked_for(analysis: Analysis, toy_tokenizer: Tokenizer) -> None:
    """Every shape that lacks what the file says is refused by the function too."""
    assert set(analysis.needs_in_report) <= set(CAPABILITIES)
    for shape in sorted(SHAPES):
        model = toy(shape, tokenizer=toy_tokenizer)
        if lacking(model, analysis.needs_in_report):
            with pytest.raises(NotApplicable, match="this model has no"):
                analysis.function()(model, TEXT)


@every_analysis
def test_nothing_is_printed(analysis: Analysis, shape: str, outcome: Any) -> None:
    assert outcome(analysis, shape).printed == ""


@every_analysis
def test_every_panel_is_drawn_everywhere(analysis: Analysis, shape: str, outcome: Any) -> None:
    """As page, as picture and as text for a terminal; nothing of it is empty."""
    result = outcome(analysis, shape).result
    section = html.Section(analysis.name, analysis.title, analysis.doc, result, 0.0)
    page = html.render(html.Report("title", (Tokens(("a",)),), (section,), {}))
    for panel in result.panels():
        assert f'id="{analysis.name}-{panel.key}"' in page
        assert figures.figure(panel).get_children()
        for width in (60, 120):
            lines = terminal.lines(panel, width)
            assert max(line.cell_len for line in lines) <= width
            assert len(lines) >= 2
    out = io.StringIO()
    terminal.show(result, file=out)
    assert all(panel.title[:40] in out.getvalue() for panel in result.panels())


# The check that other packages run on theirs.


@dataclasses.dataclass(frozen=True)
class Counted(Result):
    count: int
    finding: Finding | None = None

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame({"tokens": [self.count]})

    def panels(self) -> list[Any]:
        return [Table(key="count", title="Tokens", frame=self.to_dataframe())]

    def findings(self) -> list[Finding]:
        return [self.finding] if self.finding else []


def counted(model: HookedGPT, tokens: str, *, more: Annotated[int, "added to the count"] = 0) -> Counted:
    """How many tokens?"""
    return Counted(model.to_tokens(tokens).shape[1] + more)


def test_a_function_that_keeps_its_promises_passes() -> None:
    assert analyses.check(counted, more=2).count == HookedGPT.from_pretrained("tiny").to_tokens(TEXT).shape[1] + 2


def no_help(model: HookedGPT, tokens: str, *, more: int = 0) -> Counted:
    """What?"""
    return Counted(more)


def misnamed(net: HookedGPT, tokens: str) -> Counted:
    """What?"""
    return Counted(0)


def printing(model: HookedGPT, tokens: str) -> Counted:
    """What?"""
    print("done")
    return Counted(0)


def drawing(model: HookedGPT, tokens: str) -> Counted:
    """What?"""
    return Counted(int(torch.randint(1 << 40, ()).item()))


def editing(model: HookedGPT, tokens: str) -> Counted:
    """What?"""
    with torch.no_grad():
        model.W_E[0, 0] += 1
    return Counted(0)


def pointing(model: HookedGPT, tokens: str) -> Counted:
    """What?"""
    return Counted(0, Finding(text="It has 3 parts.", key="elsewhere", weight=0.5, value=3.0, unit="parts"))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (no_help, "option more has no help"),
        (misnamed, "first parameters are not model and tokens"),
        (printing, "it printed 'done"),
        (drawing, "two runs give different tables"),
        (editing, "it changed the model's weights W_E"),
        (pointing, "points at 'elsewhere', which is no panel"),
    ],
)
def test_a_broken_promise_is_named(function: Callable[..., Result], said: str) -> None:
    with pytest.raises(CheckFailed, match=said):
        analyses.check(function, model=make_gpt(), tokens=torch.tensor([[1, 2, 3]]))


def test_every_kind_of_panel_is_known_everywhere() -> None:
    """Its view, its figure, its height, its lines in a terminal, and its shape in the contract."""
    kinds = [kind for kind in Panel.__subclasses__() if kind.__module__ == "analyses.shared.panels"]
    assert len(kinds) >= 10
    for kind in kinds:
        for dispatch in (views.view_of, figures.draw, terminal.body):
            assert dispatch.dispatch(kind) is not dispatch.dispatch(object), (kind, dispatch)
        assert f"case {kind.__name__}()" in inspect.getsource(contract._fits)
