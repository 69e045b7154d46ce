"""What every analysis promises, checked for each file in `analyses/` without naming any."""

import ast
import contextlib
import dataclasses
import inspect
import io
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_gpt
from shapes import SHAPES, toy

from analyses.shared.capabilities import CAPABILITIES, lacking
from analyses.shared.panels import Finding, Note, Panel, Result, Tokens
from interp.errors import NotApplicable
from interp.models.gpt import HookedGPT
from interp.text.tokenizer import Tokenizer
from reports import figures, terminal
from reports.page import html
from reports.running.discovery import Analysis, discover
from reports.running.report import unfit

TEXT = "Mary and John sat. Mary and John ran"
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
        changed = [name for name in before | after if before.get(name) != after.get(name)]
        return Outcome(first, again, changed, printed.getvalue())

    return run


def fingerprint(model: HookedGPT) -> dict[str, Any]:
    """All that an analysis must leave as it was: weights, gradients, hooks, mode, random state."""
    state: dict[str, Any] = {name: value.double().sum().item() for name, value in model.state_dict().items()}
    state |= {f"{name} bytes": hash(value.numpy().tobytes()) for name, value in model.state_dict().items()}
    state |= {f"{name} grad": (p.grad is None, p.requires_grad) for name, p in model.named_parameters()}
    for name, point in model.hook_points.items():
        state[f"{name} hooks"] = (len(point.forward_listeners), len(point.backward_listeners))
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        state[f"{name} torch hooks"] = [len(placed) for placed in hooks]
    return state | {"training": model.training, "seed": torch.initial_seed(), "grad": torch.is_grad_enabled()}


def test_there_are_analyses() -> None:
    assert {"attention_patterns", "logit_lens", "weight_statistics", "ablation"} <= {a.name for a in ANALYSES}


@pytest.mark.parametrize("analysis", discover().values(), ids=lambda analysis: analysis.name)
def test_signature_and_words(analysis: Analysis) -> None:
    function = analysis.function()
    first, second, *options = inspect.signature(function).parameters.values()
    assert first.name == "model"
    assert second.name in ("tokens", "clean")
    assert all(option.kind is option.KEYWORD_ONLY or option.name == "corrupted" for option in options)
    assert all(option.help and not option.help.endswith(".") for option in analysis.options())
    assert function.__doc__
    assert len(analysis.help) <= 120
    assert analysis.help.endswith((".", "?"))
    assert len(analysis.doc.splitlines()) >= 5, "the question, the method, what the numbers mean"
    tree = ast.parse(analysis.path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    hint = inspect.signature(function).return_annotation
    hint = getattr(inspect.getmodule(function), hint) if isinstance(hint, str) else hint
    assert issubclass(hint, Result)


@every_analysis
def test_result_is_frozen_and_repeats_itself(analysis: Analysis, shape: str, outcome: Any) -> None:
    result, again, *_ = outcome(analysis, shape)
    assert isinstance(result, Result)
    assert dataclasses.is_dataclass(result)
    field = dataclasses.fields(result)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, field, None)
    frame = result.to_dataframe()
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) or all(isinstance(panel, Note) for panel in result.panels()), "nothing, and no word why"
    assert frame.columns.is_unique
    assert all(isinstance(name, str) for name in frame.columns)
    pd.testing.assert_frame_equal(frame, again.to_dataframe())


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
        "ablation", "activation_patching", "attention_patterns", "attribution_patching", "continuations",
        "direct_logit_attribution", "head_roles", "logit_lens", "neurons", "next_token", "outer_loop", "path_patching",
        "tuned_lens",
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
def test_panels_are_well_formed(analysis: Analysis, shape: str, outcome: Any) -> None:
    panels = outcome(analysis, shape).result.panels()
    assert panels
    keys = [panel.key for panel in panels]
    assert len(set(keys)) == len(keys)
    for panel in panels:
        check_panel(panel)
    for finding in outcome(analysis, shape).result.findings():
        check_finding(finding, keys)


def check_panel(panel: Panel) -> None:
    assert re.fullmatch(r"[a-z0-9-]+", panel.key)
    assert panel.title
    assert not panel.title.endswith(".")
    assert not panel.caption or panel.caption.rstrip(")\"'").endswith((".", "!", "?")), panel.caption
    match type(panel).__name__:
        case "Matrix":
            shape = (len(panel.rows), len(panel.columns))
            assert panel.values.shape == shape
            for bound in (panel.low, panel.high):
                assert bound is None or bound.shape == shape
        case "AttentionGrid":
            for pattern, tokens in zip(panel.patterns, panel.tokens, strict=True):
                assert pattern.shape[-2:] == (len(tokens), len(tokens))
                np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-4)
                assert np.all(np.triu(pattern, 1) == 0)
            assert all(values.shape == panel.patterns[0].shape[:2] for values in panel.measures.values())
        case "TokenGrid":
            assert [len(row) for row in panel.cells] == [len(panel.tokens)] * len(panel.rows)
            shape = (len(panel.rows), len(panel.tokens))
            assert all(values.shape == shape for values in panel.measures.values())
            assert set(panel.units) <= set(panel.measures)
        case "TokenStrip":
            assert isinstance(panel.tokens, Tokens)
            assert len(panel.tokens) == len(panel.values)
        case "Lines":
            assert all(len(values) == len(panel.x) for values in panel.series.values())
            assert set(panel.low) == set(panel.high)
            assert set(panel.low) <= set(panel.series)
        case "Bars":
            assert len(panel.labels) == len(panel.values)
            assert (panel.low is None) == (panel.high is None)
        case "Histogram":
            assert all(len(counts) == len(panel.edges) - 1 for counts in panel.counts.values())
        case "Table":
            assert len(panel.frame.columns)
            assert panel.tokens | panel.diverging <= set(panel.frame.columns)
        case "Graph":
            assert len(panel.nodes) == len(panel.columns)
            assert all(0 <= end < len(panel.nodes) for start, stop, _ in panel.edges for end in (start, stop))
        case "Note":
            assert panel.text


def check_finding(finding: Finding, keys: list[str]) -> None:
    assert finding.text.endswith(".")
    assert re.search(r"\d", finding.text), finding.text
    assert finding.key in keys
    assert 0 <= finding.weight <= 1
    assert np.isfinite(finding.value)


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
