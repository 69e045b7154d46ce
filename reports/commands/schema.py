"""`interp schema`: the JSON Schema of what a command prints with --format json.

That of an analysis is made from its results: it runs on the bundled models, and the types of its table's columns and of
its facts are read off. A number that may be missing, or infinite, is null in JSON.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, get_args, get_origin

import typer

from interp.errors import InputError, nearest
from reports.commands import models, rerun
from reports.commands.options import DEFAULT_MODEL, Debug
from reports.running.asked import Asked, measure
from reports.running.discovery import Analysis, Option, discover

if TYPE_CHECKING:
    import pandas as pd

    from analyses.shared.panels import Result
    from interp.models.gpt import HookedGPT

EXAMPLE = "Example: interp schema logit-lens"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
TRANSLATION = ("fr-en", "Je suis étudiant.")
"""The bundled model of another kind, and its text."""
MISSING = "What was not measured, or is no finite number, is null."
NUMBERED = re.compile(r"(.*_)[0-9]+(|_.*)$")
Schema = dict[str, Any]


def schema(
    command: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this form in every version
        typer.Argument(metavar="COMMAND", help="Whose JSON; without it, the commands that print JSON are listed."),
    ] = None,
    debug: Debug = False,
) -> None:
    """The JSON Schema of what a command prints with --format json; without a command, the list of those that do."""
    if command is None:
        print("\n".join([*OTHERS, *(analysis.command for analysis in discover().values())]))
    else:
        print(json.dumps(of_command(command), indent=1))


def of_command(name: str) -> Schema:
    """The schema of a command's JSON. Raises InputError for a command that prints none."""
    analysis = discover().get(name.replace("-", "_"))
    if name not in OTHERS and analysis is None:
        known = [*OTHERS, *(one.command for one in discover().values())]
        close = nearest(name, known)
        received = f"{name!r} is no command that prints JSON"
        raise InputError(received, f"nearest: {', '.join(close)}" if close else "", "interp schema lists them")
    title = f"interp {name} --format json" if name != "extract" else "interp extract --plan --format json"
    found = of_analysis(analysis) if analysis is not None and name not in OTHERS else OTHERS[name]()
    return {"$schema": DIALECT, "title": title, "description": MISSING, **found}


# What results hold.


def of_analysis(analysis: Analysis) -> Schema:
    return of_results(_samples(analysis), analysis.options())


def of_results(results: "Sequence[Result]", options: Sequence[Option] = ()) -> Schema:
    """The rows of the table; within an object where there are facts beside it."""
    frames = [result.to_dataframe() for result in results]
    kinds: list[list[pd.DataFrame]] = []  # a translation model's table may be another one
    for frame in sorted((frame for frame in frames if len(frame)), key=lambda frame: -frame.shape[1]) or frames[:1]:
        alike = [kind for kind in kinds if set(frame) <= set(kind[0])]
        alike[0].append(frame) if alike else kinds.append([frame])
    rows = {"type": "array", "items": _either(of_frames(kind, options) for kind in kinds)}
    facts = [result.facts() for result in results]
    return _record([one | {"rows": None} for one in facts], {"rows": rows}) if any(facts) else rows


def of_frames(frames: "Sequence[pd.DataFrame]", options: Sequence[Option] = ()) -> Schema:
    """A row of these tables. Columns top_1, top_2, ... are one pattern, as an option says how many there are."""
    required = [str(name) for name in frames[0] if all(name in frame for frame in frames)]
    properties: dict[str, Schema] = {}
    for frame in frames:
        for name in frame:
            here = [_of_column(frame[name], _choices(str(name), options))]
            properties[str(name)] = _either([properties[str(name)], *here] if str(name) in properties else here)
    numbered = {name: f"^{re.escape(one[1])}[0-9]+{re.escape(one[2])}$" for name in properties
                if (one := NUMBERED.match(name)) and f"{one[1]}1{one[2]}" in properties}  # fmt: skip
    more_than_one = {name: one for name, one in numbered.items() if list(numbered.values()).count(one) > 1}
    patterns = {one: properties[name] for name, one in more_than_one.items()}
    first = list(dict(zip(reversed(more_than_one.values()), reversed(more_than_one), strict=True)).values())
    return {
        "type": "object",
        "properties": {name: one for name, one in properties.items() if name not in more_than_one},
        **({"patternProperties": patterns} if patterns else {}),
        "required": [name for name in required if name not in more_than_one or name in first],
    }


def _choices(column: str, options: Sequence[Option]) -> tuple[Any, ...]:
    """The words that a column of an option's name, or of one of its values, may hold."""
    named = [one for one in options if column in (one.name, one.name.removesuffix("s"))]
    return get_args(named[0].type) if named and get_origin(named[0].type) is Literal else ()


def _of_column(column: "pd.Series[Any]", choices: tuple[Any, ...]) -> Schema:
    from pandas.api import types

    kind: Any = column.dtype
    if types.is_bool_dtype(kind):
        return {"type": "boolean"}
    if types.is_integer_dtype(kind):
        return {"type": ["integer", "null"] if types.is_extension_array_dtype(kind) else "integer"}
    if types.is_float_dtype(kind):
        return {"type": ["number", "null"]}
    known = column.dropna()
    missing = [{"type": "null"}] if len(known) < len(column) else []
    if choices and set(known) <= set(choices):
        return {"enum": [*choices, *([None] if missing else [])]}
    return _either([*(of_value(value) for value in known), *missing]) if len(known) else {}


def of_value(value: Any) -> Schema:
    """A value of a result's facts. Keys of a mapping are names of a model's parts: only their values are told."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, Mapping):
        return {"type": "object", "additionalProperties": _either(map(of_value, value.values()))}
    if isinstance(value, (list, tuple)):
        return {"type": "array", "items": _either(map(of_value, value))}
    if value is None:
        return {"type": "null"}
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number")):
        if isinstance(value, kind):
            return {"type": ["number", "null"] if kind is float else name}
    return {"type": "string"}


def _record(records: Sequence[Mapping[str, Any]], known: Mapping[str, Schema]) -> Schema:
    """An object with the keys that all have. What was None everywhere may be anything else under other options."""
    keys = dict.fromkeys(key for one in records for key in one)
    found = {key: _either(of_value(one[key]) for one in records if key in one) for key in keys if key not in known}
    open = {key: {} if one == {"type": "null"} else one for key, one in found.items()}
    required = [key for key in keys if all(key in one for one in records)]
    return {"type": "object", "properties": open | dict(known), "required": required}


def _either(schemas: Iterable[Schema]) -> Schema:
    """What fits one of them; plain types are joined in one list. Without any, everything fits."""
    different = list({json.dumps(one, sort_keys=True): one for one in schemas}.values())
    plain = [one for one in different if set(one) == {"type"} and one["type"] not in ("object", "array")]
    rest = [one for one in different if one not in plain]
    if plain:
        names = [name for one in plain for name in ([one["type"]] if isinstance(one["type"], str) else one["type"])]
        types = [name for name in dict.fromkeys(names) if not (name == "integer" and "number" in names)]
        rest.append({"type": types[0] if len(types) == 1 else types})
    return rest[0] if len(rest) == 1 else {"anyOf": rest} if rest and {} not in rest else {}


def _samples(analysis: Analysis) -> "list[Result]":
    """Its results on the bundled models; on a longer text too where a short one gives no rows."""
    from analyses.shared.contract import TEXT
    from interp.loading.any import load

    options = {o.name: DEFAULT_MODEL if o.load else 1 for o in analysis.options() if o.required}
    found = []
    for name, text in ((DEFAULT_MODEL, TEXT), TRANSLATION):
        model = load(name, device="cpu")
        for words in (text, " ".join([text] * 16)) if analysis.serves(model) else ():
            with suppress(InputError):
                found.append(measure(analysis, model, Asked(name, words, options)).result)
                if len(found[-1].to_dataframe()):
                    break
    return found or [measure(analysis, _few_tokens(), Asked("few", None, options)).result]


def _few_tokens() -> "HookedGPT":
    """For what lists all states of a model, and so wants few."""
    from interp.models.config import GPTConfig
    from interp.models.gpt import HookedGPT

    return HookedGPT(GPTConfig(n_layers=1, n_heads=1, d_model=4, d_vocab=3, n_ctx=4))


# What the other commands print.


def _of_models() -> Schema:
    import pandas as pd

    from interp.models.identities import Identity

    checked = of_frames([pd.DataFrame(models.verdicts([Identity("", 0.0, 0.0)]))])
    checked["properties"]["verdict"] = {"enum": list(models.VERDICTS)}
    listed = of_frames([pd.DataFrame(models.known_models())])
    return {
        "type": "array",
        "anyOf": [{"title": "the list", "items": listed}, {"title": "with --check", "items": checked}],
    }


def _of_rerun() -> Schema:
    from reports.running.record import Difference

    row = of_frames([rerun.comparison([Difference("", 0, 0, "identical", 0.0)])])
    row["properties"]["outcome"] = {"enum": ["identical", "empty", "close", "differs"]}
    return {"type": "array", "items": row}


def _of_plan() -> Schema:
    from interp.store.cost import ExtractionPlan

    kinds: dict[Any, Schema] = {
        int: {"type": "integer"},
        float: {"type": "number"},
        dict[str, int]: {"type": "object", "additionalProperties": {"type": "integer"}},
    }
    properties = {field.name: kinds[field.type] for field in fields(ExtractionPlan)}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _of_probe() -> Schema:
    """Made from probes of activations that are written for it; with --causal two results stand side by side."""
    from interp.models.gpt import HookedGPT
    from interp.store.reading import ActivationStore
    from interp.store.writing import extract_activations
    from interp.text.documents import read_documents
    from interp.training.evaluation import SAMPLE
    from reports.running import probing

    model = HookedGPT.from_pretrained(DEFAULT_MODEL, device="cpu")
    with TemporaryDirectory() as folder:
        texts = [text[:300] for text in read_documents(SAMPLE)]
        extract_activations(model, texts, ["blocks.1.hook_resid_post"], folder, split=(0.6, 0.2, 0.2))
        request = probing.asked(store=folder, label="capital", probe="lda", causal="best")
        sections = probing.run(request, ActivationStore(folder), model, lambda what, done, total: None)
        alone, causal = (of_results([section.result]) for section in sections)
    both = {"probe": alone, "causal": causal}
    pair = {"title": "with --causal", "type": "object", "properties": both, "required": list(both)}
    return {"anyOf": [alone, pair]}


OTHERS = {"rerun": _of_rerun, "extract": _of_plan, "probe": _of_probe, "models": _of_models}
"""By command; the analyses' own are made from their results."""
