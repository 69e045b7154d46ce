"""What an analysis declares of itself. Nothing heavy is imported here: help and completion read it."""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PYTHON_ONLY = "python only"
"""Marks an option that the command line leaves out: `Annotated[type, "help", PYTHON_ONLY]`."""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What an analysis says of itself (`@analysis(...)`), beside what its signature says."""

    place: int = 50
    """Where a report shows it, low numbers first."""
    needs: tuple[str, ...] = ()
    """Names of `CAPABILITIES` that a decoder must have."""
    needs_in_report: tuple[str, ...] = ()
    """What its defaults need besides, so that a report has the section."""
    in_report: Mapping[str, Any] | None = field(default_factory=dict)
    """Options that a report asks for beyond the defaults; None: it is a command alone, no section."""
    sweeps: bool = False
    """Whether it runs variants of a model by `sweep`: such a run can be taken up again, and run in another dtype."""
    scales: bool = False
    """Whether it shares its texts out by `scale.map_items`."""
    runs: bool = False
    """Whether it measures the model's own runs (or weights alone), as hooks and changed parts leave them. Others take
    sums apart, compare with weights or sweep, and are refused then; all are at the final norm, which the lens applies
    itself."""
    weights_only: bool = False
    """Whether the result depends on weights, tokenizer and options alone, whatever the text: within
    `interp.keeping.remembered` it is computed once a model."""
    saves: bool = False
    """Whether its result is a file for other programs too (`Result.saved`)."""
    translation: tuple[str, ...] | None = None
    encoder: tuple[str, ...] | None = None
    """Options that it reads for a translation model, for an encoder; None is all of them."""

    def read_by(self, model: object) -> tuple[str, tuple[str, ...] | None]:
        """What kind of model it is, in words, and the options that are read for it; None is all of them."""
        kinds = {
            "HookedEncoderDecoder": ("a translation model", self.translation),
            "HookedEncoder": ("an encoder", self.encoder),
        }
        return kinds.get(type(model).__name__, ("a decoder", None))


def declaration(function: Callable[..., Any]) -> Declaration:
    """What a function declares; the defaults where it declares nothing."""
    declared = getattr(function, "declared", None)
    return declared if isinstance(declared, Declaration) else Declaration()


def declared_in(source: str, name: str) -> Declaration | None:
    """The declaration of the function `name`, read off a file's text; None where it is not written in plain values."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            calls = [one for one in node.decorator_list if isinstance(one, ast.Call)]
            found = [one for one in calls if getattr(one.func, "id", getattr(one.func, "attr", "")) == "analysis"]
            try:
                return Declaration(**{str(k.arg): ast.literal_eval(k.value) for one in found for k in one.keywords})
            except (TypeError, ValueError):
                return None
    return None
