"""Which analyses there are, told from the files in `analyses` without importing them; their options, on demand.

An analysis is a file `analyses/NAME.py` with a function NAME, one in `analyses/lessons`, or a function that another
installed package names as an entry point of the group `interp.analyses` (docs/your_own_analysis.md).
What its signature says is kept in `options.json` too, so that help need not import torch; a file that has changed since
(or is new) is imported. `python -m reports.running.discovery` writes the table anew, and a test compares it.
"""

import ast
import dataclasses
import hashlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import analyses as package
from analyses.shared.declared import PYTHON_ONLY, Declaration, declaration, declared_in
from interp.errors import InputError, nearest
from interp.models.config import GPTConfig

if TYPE_CHECKING:
    from analyses.shared.panels import Result

_DOCSTRING = re.compile(r'\s*[rR]?("""|\'\'\')(.*?)\1', re.DOTALL)
_PLAIN = (int, float, bool, str)


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter of an analysis."""

    name: str
    type: Any
    """int, float, bool, str or a Literal: the type of one value."""
    default: Any
    help: str
    many: bool = False
    """A tuple of any length."""
    optional: bool = False
    """None is a value too, meaning "choose for me"."""
    required: bool = False
    """There is no default; the analysis is then no part of a plain report."""
    load: Callable[[str], Any] | None = None
    """Makes the value of what was typed: a model of its source, translators of their file."""
    beside: str = ""
    """A file of this name beside the model's weights is loaded when nothing was given."""
    alone: bool = False
    """Given, it takes the place of model, text and everything else."""
    hidden: bool = False
    """Of use from Python only: the command line leaves it out."""


@dataclass(frozen=True)
class Analysis:
    """One file in `analyses`."""

    name: str
    """Of the file and the function, such as logit_lens."""
    path: Path
    module: str
    """How the file is imported."""

    @property
    def command(self) -> str:
        """The name on the command line, such as logit-lens."""
        return self.name.replace("_", "-")

    @property
    def title(self) -> str:
        return self.name.replace("_", " ").capitalize()

    @cached_property
    def _text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def doc(self) -> str:
        """The module's docstring, read from the file's text."""
        found = _DOCSTRING.match(self._text)
        if found and "\\" not in found[2]:
            return inspect.cleandoc(found[2])
        return inspect.cleandoc(ast.get_docstring(ast.parse(self._text)) or "")

    @cached_property
    def declared(self) -> Declaration:
        """What its decorator says: where it stands, what it needs, whether it sweeps."""
        if self._written is not None:
            return _declaration(self._written["declared"])
        found = declared_in(self._text, self.name)
        return declaration(self.function()) if found is None else found

    @property
    def help(self) -> str:
        """One line: what the analysis is for."""
        return self.doc.partition("\n")[0].strip()

    def function(self) -> "Callable[..., Result]":
        """The analysis itself; this imports its file, and with it torch."""
        function: Callable[..., Result] = getattr(import_module(self.module), self.name)
        return function

    @property
    def report_options(self) -> dict[str, Any]:
        """What a report asks for beyond the defaults."""
        return dict(self.declared.in_report or {})

    @cached_property
    def _written(self) -> Mapping[str, Any] | None:
        """What the table says, if it was made of this file."""
        found: Mapping[str, Any] | None = _table().get(self.command)
        return found if found is not None and found["file"] == _digest(self._text) else None

    def options(self) -> list[Option]:
        """The function's parameters after model and text. Raises TypeError for a type the contract does not allow."""
        if self._written is not None:
            return [_read(entry) for entry in self._written["options"]]
        return keyword_options(self.name, self.function(), skip=2)

    @property
    def takes_prompts(self) -> bool:
        """Whether a prompt set will do in place of a text, and generated prompts where there is neither."""
        if self._written is not None:
            return bool(self._written["prompts"])
        from analyses.shared.prompts import PromptSet

        _, second, *_ = inspect.signature(self.function()).parameters.values()
        return PromptSet in get_args(second.annotation)

    @property
    def takes_config(self) -> bool:
        """Whether a GPTConfig will do in place of a model: then presets need neither weights nor network."""
        if self._written is not None:
            return bool(self._written["config"])
        first = next(iter(inspect.signature(self.function()).parameters.values()))
        return GPTConfig in get_args(first.annotation)

    @property
    def needs_in_report(self) -> tuple[str, ...]:
        """What a decoder must have for a section in a report, names of `CAPABILITIES`."""
        return (*self.declared.needs, *self.declared.needs_in_report)

    def serves(self, model: object) -> bool:
        """Whether it takes a model of this kind: its first parameter's type says so."""
        first = next(iter(inspect.signature(self.function()).parameters.values()))
        kinds = tuple(kind for kind in get_args(first.annotation) or (first.annotation,) if isinstance(kind, type))
        return not kinds or first.annotation is first.empty or isinstance(model, kinds)

    @property
    def stands_alone(self) -> bool:
        """Whether a model and a text are all it needs."""
        return not any(option.required for option in self.options())

    @property
    def in_report(self) -> bool:
        """Whether it is part of a plain report: it stands alone, and does not declare `in_report=None`."""
        return self.declared.in_report is not None and self.stands_alone


@dataclass(frozen=True)
class AtHand(Analysis):
    """One that is given as a function: nothing about it is kept in the table."""

    given: "Callable[..., Result]"

    @cached_property
    def _written(self) -> None:
        return None

    @property
    def doc(self) -> str:
        """The function's own docstring, or that of its module."""
        said = inspect.getdoc(self.given) or getattr(sys.modules[self.module], "__doc__", None)
        return inspect.cleandoc(said or "")

    @cached_property
    def declared(self) -> Declaration:
        return declaration(self.given)

    def function(self) -> "Callable[..., Result]":
        return self.given


def keyword_options(name: str, function: Callable[..., Any], skip: int | None = None) -> list[Option]:
    """The parameters of a function after the first `skip`, or its keyword-only ones, as options.

    Raises TypeError for a type the contract does not allow.
    """
    hints = get_type_hints(function, include_extras=True)
    parameters = list(inspect.signature(function).parameters.values())
    chosen = [p for p in parameters if p.kind is p.KEYWORD_ONLY] if skip is None else parameters[skip:]
    return [_option(name, p, hints.get(p.name, p.annotation)) for p in chosen]


GROUP = "interp.analyses"
"""Entry points of this group are analyses of other packages: `my_question = "my_package.my_file:my_question"`."""


def discover() -> dict[str, Analysis]:
    """All analyses by name, in reading order: by their place, then by name.

    One of another package that is not there, or has the name of one of ours, is left out.
    """
    rooms = [(package.__name__, Path(folder)) for folder in package.__path__]
    rooms.append((f"{package.__name__}.lessons", Path(package.__path__[0]) / "lessons"))
    found = [
        Analysis(path.stem, path, f"{room}.{path.stem}") for room, folder in rooms for path in folder.glob("[!_]*.py")
    ]
    ours = {one.name for one in found}
    found += [
        one for one in map(_outside, metadata.entry_points(group=GROUP)) if one is not None and one.name not in ours
    ]
    return {one.name: one for one in sorted(found, key=lambda one: (one.declared.place, one.name))}


def _outside(point: metadata.EntryPoint) -> Analysis | None:
    """The analysis of another package. Its module is found, not imported; None where there is no such file."""
    with suppress(ImportError, ValueError):
        spec = find_spec(point.module)
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            return Analysis(point.attr, Path(spec.origin), point.module)
    return None


def of_function(function: "Callable[..., Result]") -> Analysis:
    """An analysis that is at hand as a function, of whatever file."""
    name = getattr(function, "__name__", "")
    module = sys.modules.get(getattr(function, "__module__", ""))
    if not callable(function) or not name.isidentifier() or module is None:
        raise InputError(f"an analysis of type {type(function).__name__}", "expected a name or a function")
    path = Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
    if getattr(package, name, None) is function:
        return find(name)
    return AtHand(name, path, module.__name__, function)


def find(name: str) -> Analysis:
    """The analysis of that name, written with underscores or hyphens. Raises InputError, with the nearest names."""
    known = discover()
    found = known.get(name.strip().replace("-", "_"))
    if found is None:
        commands = [analysis.command for analysis in known.values()]
        close = nearest(name.replace("_", "-"), commands)
        raise InputError(
            f"no analysis is called {name!r}",
            f"{'nearest' if close else 'expected one of'}: {', '.join(close or commands)}",
        )
    return found


def _offered(kind: Any) -> bool:
    """Whether the command line can take a value of this type."""
    one = get_args(kind)[0] if get_origin(kind) is tuple else kind
    return one in _PLAIN or get_origin(one) is Literal or hasattr(one, "from_pretrained") or hasattr(one, "load")


def _option(analysis: str, parameter: inspect.Parameter, hint: Any) -> Option:
    wrong = TypeError(f"{analysis}: option {parameter.name} has type {hint}, which the command line cannot offer")
    required = parameter.default is parameter.empty
    if get_origin(hint) is not Annotated:
        raise TypeError(f"{analysis}: option {parameter.name} needs Annotated[type, help]")
    kind, help, *marks = get_args(hint)
    optional = NoneType in get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        kinds = [part for part in get_args(kind) if part is not NoneType]
        kind = next((part for part in kinds if _offered(part)), kinds[0])  # the others are for Python callers
    many = get_origin(kind) is tuple
    if many:
        if len(get_args(kind)) != 2 or get_args(kind)[1] is not Ellipsis:
            raise wrong
        kind = get_args(kind)[0]
    load = getattr(kind, "from_pretrained", None) or getattr(kind, "load", None)
    beside, alone = getattr(kind, "FILE_NAME", ""), getattr(kind, "ALONE", False)
    if load is not None:
        kind = str
    if kind not in _PLAIN and get_origin(kind) is not Literal:
        raise wrong
    default = None if required else parameter.default
    return Option(
        parameter.name, kind, default, str(help), many, optional, required, load, beside, alone,
        PYTHON_ONLY in marks,
    )  # fmt: skip


# The table of all options.

TABLE = Path(__file__).parent / "options.json"


@cache
def _table() -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def table() -> dict[str, Any]:
    """What all analyses' signatures say, as JSON holds it; this imports them."""
    found = {}
    for one in (one for one in discover().values() if one.module.startswith(f"{package.__name__}.")):
        fresh = Analysis(one.name, one.path, one.module)
        fresh.__dict__["_written"] = None
        found[one.command] = {
            "file": _digest(one._text),
            "declared": _said(fresh.declared),
            "prompts": fresh.takes_prompts,
            "config": fresh.takes_config,
            "options": [_entry(option) for option in fresh.options()],
        }
    return found


def _declaration(said: Mapping[str, Any]) -> Declaration:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(one) for name, one in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return Declaration(**{name: plain(value) for name, value in said.items()})


def _said(declared: Declaration) -> dict[str, Any]:
    """The fields that are not as they would be anyway."""
    usual = Declaration()
    return {name: value for name, value in vars(declared).items() if value != getattr(usual, name)}


def _entry(option: Option) -> dict[str, Any]:
    """The fields that are not as they would be anyway."""
    kind = {"words": list(get_args(option.type))} if get_origin(option.type) is Literal else option.type.__name__
    fields = {**vars(option), "type": kind}
    if option.load is not None:
        owner = option.load.__self__  # type: ignore[attr-defined]
        fields["load"] = [owner.__module__, owner.__qualname__, option.load.__name__]
    usual = {field.name: field.default for field in dataclasses.fields(Option)}
    return {name: value for name, value in fields.items() if value != usual[name]}


def _read(entry: Mapping[str, Any]) -> Option:
    fields = dict(entry)
    kind, load = fields["type"], fields.pop("load", None)
    fields["type"] = Literal[tuple(kind["words"])] if isinstance(kind, dict) else {k.__name__: k for k in _PLAIN}[kind]
    if isinstance(fields.setdefault("default", None), list):
        fields["default"] = tuple(fields["default"])
    if load is not None:
        fields["load"] = lambda source: getattr(getattr(import_module(load[0]), load[1]), load[2])(source)
    return Option(**fields)


def write_table() -> None:
    TABLE.write_text(json.dumps(table(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_table()
