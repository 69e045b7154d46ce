"""What every analysis promises. `analyses.check(my_function)` runs it twice and says which promises are broken."""

import contextlib
import dataclasses
import inspect
import io
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import torch

from analyses.shared.panels import (
    AttentionGrid,
    Bars,
    CircuitGraph,
    Finding,
    Graph,
    Histogram,
    Lines,
    Matrix,
    Note,
    Panel,
    Result,
    Table,
    TokenGrid,
    Tokens,
    TokenStrip,
)
from interp.errors import CheckFailed
from interp.hooks import HookedModule
from interp.models.gpt import HookedGPT

TEXT = "Mary and John sat. Mary and John ran"


def check(
    function: Callable[..., Result], *, model: HookedModule | None = None, tokens: Any = TEXT, **options: Any
) -> Result:
    """Runs an analysis twice and compares it with what commands, reports and `interp rerun` build on.

    Args:
        function: `my_question(model, tokens, *, option: Annotated[type, "help"] = default) -> Result`.
        model: by default the bundled `tiny`.
        tokens: what it is given after the model.
        options: passed on.

    Returns its result. Raises CheckFailed with every promise that is broken: the form of the signature, a frozen result
    that is the same twice, a table with named columns, panels and findings that can be drawn, nothing printed, and a
    model left as it was found.
    """
    wrong = list(signature(function))
    if not wrong:
        model = HookedGPT.from_pretrained("tiny", device="cpu") if model is None else model
        before, printed = fingerprint(model), io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            first, again = (function(model, tokens, **options) for _ in range(2))
        wrong += [f"it printed {printed.getvalue()[:40]!r}"] if printed.getvalue() else []
        wrong += [f"it changed the model's {name}" for name in changed(before, fingerprint(model))]
        wrong += result(first, again)
    if wrong:
        name = getattr(function, "__name__", str(function))
        raise CheckFailed(f"{name}: {'; '.join(wrong)}", "expected an analysis as docs/your_own_analysis.md has it")
    return first


def signature(function: Callable[..., Result]) -> Iterator[str]:
    """What of the signature a command could not be made of."""
    first, second, *options = [*inspect.signature(function).parameters.values(), None, None]
    if first is None or first.name != "model" or second is None or second.name not in ("tokens", "clean", "prompts"):
        yield "its first parameters are not model and tokens"
        return
    hints = get_type_hints(function, include_extras=True)
    for option in filter(None, options):
        if option.kind is not option.KEYWORD_ONLY and option.name != "corrupted":
            yield f"option {option.name} is not keyword-only"
        hint = hints.get(option.name)
        if option.name != "corrupted" and (get_origin(hint) is not Annotated or not str(get_args(hint)[1])):
            yield f"option {option.name} has no help: Annotated[type, 'help']"
    returned = hints.get("return")
    if not (isinstance(returned, type) and issubclass(returned, Result)):
        yield "it does not say that it returns a Result"
    if not (inspect.getdoc(function) or "").strip():
        yield "it has no docstring"


def fingerprint(model: HookedModule) -> dict[str, Any]:
    """All that an analysis must leave as it was: weights, gradients, hooks, mode, random state."""
    state: dict[str, Any] = {f"weights {name}": hash(x.cpu().numpy().tobytes()) for name, x in _plain(model).items()}
    state |= {f"gradient of {name}": (p.grad is None, p.requires_grad) for name, p in model.named_parameters()}
    for name, point in model.hook_points.items():
        state[f"hooks at {name}"] = (len(point.forward_listeners), len(point.backward_listeners))
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        state[f"PyTorch hooks at {name}"] = [len(placed) for placed in hooks]
    return state | {"mode": model.training, "seed": torch.initial_seed(), "gradients": torch.is_grad_enabled()}


def _plain(model: HookedModule) -> dict[str, torch.Tensor]:
    """Its tensors; bfloat16 as float32, which numpy has."""
    return {name: x.float() if x.dtype is torch.bfloat16 else x for name, x in model.state_dict().items()}


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name in before | after if before.get(name) != after.get(name)]


def result(first: Result, again: Result) -> Iterator[str]:
    """What is wrong with a result, or differs from that of a second run."""
    if not isinstance(first, Result) or not dataclasses.is_dataclass(first) or not first.__dataclass_params__.frozen:
        yield "its result is no frozen dataclass that extends Result"
        return
    frame, panels = first.to_dataframe(), first.panels()
    if not isinstance(frame, pd.DataFrame) or not frame.columns.is_unique:
        yield "to_dataframe() gives no table with columns of different names"
    elif not all(isinstance(name, str) for name in frame.columns):
        yield "a column's name is no text"
    elif not frame.equals(again.to_dataframe()):
        yield "two runs give different tables"
    if not len(frame) and not all(isinstance(panel, Note) for panel in panels):
        yield "there are no rows, and no note why"
    keys = [panel.key for panel in panels]
    if not panels or len(set(keys)) < len(keys):
        yield "it has no panels, or two of one key"
    for panel in panels:
        yield from (f"panel {panel.key}: {what}" for what in ill_formed(panel))
    for finding in first.findings():
        yield from (f"finding {finding.text[:40]!r}: {what}" for what in ill_said(finding, keys))


def ill_formed(panel: Panel) -> Iterator[str]:
    """What keeps a panel from being drawn."""
    if not re.fullmatch(r"[a-z0-9-]+", panel.key):
        yield "its key is not of a-z, 0-9 and -"
    if not panel.title or panel.title.endswith("."):
        yield "its title is empty or ends with a full stop"
    if panel.caption and not panel.caption.rstrip(")\"'").endswith((".", "!", "?")):
        yield f"its caption is no sentence: {panel.caption[-30:]!r}"
    if not _fits(panel):
        yield "its values do not fit its labels"


def _fits(panel: Panel) -> bool:
    match panel:
        case Matrix():
            shapes = [x.shape for x in (panel.values, panel.low, panel.high) if x is not None]
            return set(shapes) == {(len(panel.rows), len(panel.columns))}
        case AttentionGrid():
            return all(map(_is_pattern, panel.patterns, panel.tokens)) and all(
                values.shape == panel.patterns[0].shape[:2] for values in panel.measures.values()
            )
        case TokenGrid():
            shape = (len(panel.rows), len(panel.tokens))
            sized = [len(row) for row in panel.cells] == [shape[1]] * shape[0]
            return sized and all(values.shape == shape for values in panel.measures.values())
        case TokenStrip():
            return isinstance(panel.tokens, Tokens) and len(panel.tokens) == len(panel.values)
        case Lines():
            sized = all(len(values) == len(panel.x) for values in panel.series.values())
            return sized and set(panel.low) == set(panel.high) and set(panel.low) <= set(panel.series)
        case Bars():
            return len(panel.labels) == len(panel.values) and (panel.low is None) == (panel.high is None)
        case Histogram():
            return all(len(counts) == len(panel.edges) - 1 for counts in panel.counts.values())
        case Table():
            return len(panel.frame.columns) > 0 and panel.tokens | panel.diverging <= set(panel.frame.columns)
        case Graph():
            ends = [end for start, stop, _ in panel.edges for end in (start, stop)]
            return len(panel.nodes) == len(panel.columns) and all(0 <= end < len(panel.nodes) for end in ends)
        case CircuitGraph():
            return _is_circuit(panel)
        case Note():
            return bool(panel.text)
    return False


def _is_circuit(panel: CircuitGraph) -> bool:
    """Whether all numbers of edges and sizes are there, and every edge leads upwards between known nodes."""
    count, rows = len(panel.senders), np.asarray(panel.rows)
    of_edges = (panel.receivers, panel.inputs, panel.scores, panel.exact, panel.low, panel.high, panel.stability)
    curves = (panel.measured, panel.measured_low, panel.measured_high)
    sized = len(rows) == len(panel.nodes) and all(len(values) == count for values in of_edges)
    sized &= all(len(values) == len(panel.sizes) for curve in curves for values in curve.values())
    named = set(panel.measured_low) == set(panel.measured_high) and set(panel.measured_low) <= set(panel.measured)
    ends = np.array([*panel.senders, *panel.receivers, *(end for pair in panel.serves for end in pair)], dtype=int)
    counted = count > 0 and 0 <= panel.chosen <= count <= panel.total
    if not (sized and named and counted and 0 <= ends.min() <= ends.max() < len(rows)):
        return False
    rising = (np.diff(panel.sizes) >= 0).all() and (rows[panel.senders] < rows[panel.receivers]).all()
    return bool(rising) and bool(np.isfinite(panel.scores).all())


def _is_pattern(pattern: np.ndarray, tokens: Tokens) -> bool:
    """Whether rows over [.. query key] sum to one and see no later key."""
    sized = pattern.shape[-2:] == (len(tokens), len(tokens))
    return sized and np.allclose(pattern.sum(-1), 1, atol=1e-4) and not np.triu(pattern, 1).any()


def ill_said(finding: Finding, keys: list[str]) -> Iterator[str]:
    """What keeps a finding from standing in a summary."""
    if not finding.text.endswith(".") or not re.search(r"\d", finding.text):
        yield "it is no sentence with a number in it"
    if finding.key not in keys:
        yield f"it points at {finding.key!r}, which is no panel"
    if not 0 <= finding.weight <= 1 or not np.isfinite(finding.value):
        yield "its weight is not within 0 and 1, or its value is no number"
