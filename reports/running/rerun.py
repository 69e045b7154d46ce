"""Making a page again from what it holds, and comparing the numbers.

The file is not trusted: its JSON is parsed and its form is checked, nothing in it is executed, options must be ones
that the analysis has and numbers of a usual size, and what is to be loaded (`Kept.loads`) can be shown before anything
is. On the page's word alone only what is on this machine is loaded: a bundled model, a directory, a file.
"""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin

from interp.errors import CheckFailed, InputError, InterpError, NotFoundError, check_seed
from interp.models.config import PRESETS
from reports.running import probing, record
from reports.running.asked import Asked, measure, page_of, shape_of
from reports.running.discovery import Analysis, Option, discover, find, keyword_options

if TYPE_CHECKING:
    from interp.loading.any import AnyModel
    from interp.models.gpt import HookedGPT
    from reports.page.html import Report
    from reports.studies import StudyFile

START, END = '<script type="application/json" id="provenance-data">', "</script>"
WITHOUT_WEIGHTS = "no weights"
DEVICES = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")
MOST = 2_000
"""Texts, rows of ids or prompts that are run on a page's word."""
LONGEST = 1_000_000
"""Characters or ids, in all of them; and of any option that is a word."""
LARGEST = 20_000
"""Of a whole number that is an option (how many draws, steps, ...), up or down."""

Step = Callable[[str, int, int], None]
"""Told what is done, how many steps are done, and their total."""


@dataclass(frozen=True)
class Kept:
    """What a page says about how it was made; its form has been checked, its truth has not."""

    path: Path
    command: str
    """What is run again: "report", or an analysis."""
    text: Any
    """A text, several, lists of token ids, or None."""
    options: Mapping[str, Any]
    more: Mapping[str, Any]
    """What else the command was asked."""
    facts: Mapping[str, Any]
    """The provenance that people read."""
    numbers: Mapping[str, Any]
    """Each table as `record.keep` gave it."""

    @property
    def model(self) -> str:
        """As --model names it."""
        return str(self.more.get("model", self.facts["model"]))

    @property
    def own_model(self) -> bool:
        """Whether what is run again makes its own model, so that none is loaded."""
        return self.more.get("own_model") is True

    def loads(self, model: str | None = None) -> list[tuple[str, str]]:
        """What running it again would read from this machine, as (what for, name)."""
        wanted = [] if self.own_model else [("model", model or self.model)]
        if self.command == "probe":
            wanted.append(("store", str(self.options.get("store"))))
        if self.command != "report" and self.command in _commands():
            given = [(o.name, self.options.get(o.name)) for o in find(self.command).options() if o.load is not None]
            wanted += [(name, str(value)) for name, value in given if value is not None]
        return wanted

    @property
    def sweeps(self) -> Any:
        """The dtype of sweeps, where it was lower than the model's."""
        return self.more.get("sweeps")

    @property
    def tolerance(self) -> float:
        """How far a number may be off when nothing else is said: by the dtype it was computed in."""
        return record.TOLERANCE[str(self.sweeps or self.facts["dtype"])]

    def versions(self) -> list[str]:
        """What differs between the machine that wrote the page and this one, such as "torch 2.13.0, then 2.12.0"."""
        from reports.running.report import versions

        then = self.facts.get("versions")
        return [
            f"{name} {now}, then {then[name]}"
            for name, now in versions().items()
            if isinstance(then, dict) and name in then and then[name] != now
        ]


def read(path: Path) -> Kept:
    """The request and the numbers of a page.

    Raises NotFoundError when there is no such file, InputError when it is no page that can be run again, CheckFailed
    when it was changed since it was written.
    """
    try:
        path = path.expanduser()
        if path.exists() and not path.is_file():
            raise _no_page(path)
        page = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise _no_page(path) from None
    except OSError as error:
        hint = "expected a page that interp wrote, such as report.html"
        raise NotFoundError(f"{path} cannot be read: {error.strerror}", hint) from None
    start = page.find(START)
    if start < 0 or page.find(START, start + 1) >= 0:
        raise _no_page(path)
    try:
        facts = json.loads(page[start + len(START) : page.index(END, start)])
        json.dumps(facts, ensure_ascii=False).encode()  # fails for half a character
        said = facts.pop("page_sha256")
        request, numbers = facts.pop("request"), facts.pop("numbers")
        command, text, options = request.pop("command"), request.pop("text"), request.pop("options")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise _no_page(path) from None
    if not record.is_intact(page, str(said)):
        raise CheckFailed(
            f"{path} was changed after it was written",
            f"its SHA-256 is no longer {str(said)[:16]}…, which it holds",
            "the command in its last section makes it anew",
        )
    names = ("model", "weights_sha256", "device", "dtype")
    formed = (
        isinstance(command, str)
        and isinstance(options, dict)
        and isinstance(numbers, dict)
        and all(isinstance(facts.get(name), str) for name in names)
        and facts["dtype"] in record.TOLERANCE
        and request.get("sweeps") in (None, *record.TOLERANCE)
    )
    if not formed:
        raise _no_page(path)
    return Kept(path, command, _text(path, text), options, request, facts, numbers)


def _no_page(path: Path) -> InputError:
    return InputError(
        f"{path} holds no record that can be run again",
        "expected a page written by interp report, or with --format html",
        "a page of another version may show its command in its last section",
    )


def _text(path: Path, text: Any) -> Any:
    """A text, several, rows of token ids or nothing; whatever else a file says is an error."""
    if text is None:
        return text
    parts = [text] if isinstance(text, str) else text
    words = isinstance(parts, list) and all(isinstance(one, str) for one in parts)
    rows = isinstance(parts, list) and all(
        isinstance(row, list) and row and all(type(i) is int for i in row) for row in parts
    )
    if not parts or not (words or rows):
        raise InputError(f"{path}: the text that it was made of is damaged", "expected text or token ids")
    _check_amount(path, len(parts), sum(map(len, parts)))
    return text


def _check_amount(path: Path, parts: int, length: int) -> None:
    if parts > MOST or length > LONGEST:
        raise InputError(
            f"{path} asks for {parts:,} texts, {length:,} long together",
            f"expected at most {MOST:,} and {LONGEST:,} on a page's word",
            "the command in its last section makes it anew, if you trust it",
        )


def make(
    kept: Kept,
    *,
    model: str | None = None,
    device: str | None = None,
    loads: Mapping[str, str] | None = None,
    step: Step | None = None,
) -> "Report":
    """The report again.

    Args:
        model: where the model is now; by default where the page says it was.
        device: by default the page's.
        loads: option -> name, in place of what the page's options load.
        step: called before each part, to show progress.

    Raises CheckFailed when the model's weights are not those of the page, InputError for a request that this version
    cannot carry out, NotFoundError when the model is not there.
    """
    how = RUNNERS.get(kept.command) or (_one if kept.command in _commands() else None)
    if how is None:
        raise InputError(
            f"{kept.path} was made by {kept.command!r}"[:200] + ", which this version cannot run again",
            f"expected report or an analysis, such as {', '.join(sorted(_commands())[:3])}",
        )
    kept = _trusted(kept, model, loads or {})
    device = device or kept.facts["device"]
    if device == "meta" and kept.facts["weights_sha256"] == WITHOUT_WEIGHTS:
        device = "cpu"
    if not DEVICES.fullmatch(device):
        raise InputError(f"device {device[:80]!r}", "expected auto, cpu, cuda, cuda:N or mps", "--device names one")
    source = "" if kept.own_model else model or kept.model
    try:
        return how(kept, source, device, step or (lambda what, done, total: None))
    except (InterpError, MemoryError, OSError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise InputError(
            f"what {kept.path} asks for fails: {type(error).__name__}: {str(error)[:200]}".splitlines()[0],
            "expected a request that this version of interp can carry out",
            "the command in its last section makes it anew; --debug shows the traceback",
        ) from error


def _commands() -> set[str]:
    return {analysis.command for analysis in discover().values()}


def _trusted(kept: Kept, model: str | None, loads: Mapping[str, str]) -> Kept:
    """The page with what the user names in place of what it names. Raises NotFoundError for what is not here."""
    from interp.loading.sources import bundled_models

    wanted = dict(kept.loads(model))
    written = {name: name.strip("_") for name in wanted}  # as on the command line: from_ is --from
    loads = {next((name for name, word in written.items() if word == said), said): loads[said] for said in loads}
    for name in loads:
        if name not in wanted or name == "model":
            others = ", ".join(word for word in written.values() if word != "model") or "none"
            raise InputError(f"--load {name}=..."[:80], f"expected what the page's options load: {others}")
    without = kept.facts["weights_sha256"] == WITHOUT_WEIGHTS
    for what, name in wanted.items():
        said = model is not None if what == "model" else what in loads
        shape = what == "model" and without and name in PRESETS
        if not (said or shape or name in bundled_models() or _is_here(name)):
            option = "--model" if what == "model" else f"--load {written[what]}="
            raise NotFoundError(
                f"{kept.path} asks for the {written[what]} {name!r}"[:200] + ", which is not here",
                "expected a bundled model, or a directory or file that is there",
                f"{option} says where it is; a name or hub id that you trust may be given there too",
            )
    return replace(kept, options={**kept.options, **loads})


def _is_here(name: str) -> bool:
    try:
        path = Path(name).expanduser()
        return path.is_dir() or path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, nobody's home
        return False


def load(kept: Kept, source: str, device: str) -> "AnyModel":
    """The page's model, at its precision. Raises CheckFailed when the weights are others."""
    import torch

    from interp.loading.any import load
    from interp.loading.digests import weights_sha256

    model = load(source, device=device, dtype=getattr(torch, kept.facts["dtype"]))
    found, wanted = weights_sha256(model), kept.facts["weights_sha256"]
    if found != wanted:
        raise CheckFailed(
            f"the weights of {source} are not those of {kept.path}",
            f"SHA-256 {found[:16]}…, the page has {wanted[:16]}…",
            "--model names the directory that holds the page's weights",
        )
    model.source = kept.facts["model"]
    return model


def _report(kept: Kept, source: str, device: str, step: Step) -> "Report":
    """`interp report` again."""
    from reports.running import report

    names, seed = kept.more.get("analyses"), kept.more.get("seed", 0)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) > len({*names}):
        raise _no_page(kept.path)
    check_seed(seed)
    options = {}
    for name in names:
        given = kept.options.get(name, {})
        options[name] = _checked(find(name), given if isinstance(given, dict) else {}, loads=False)
    step("loading the model", 0, 1)
    loaded = load(kept, source, device)
    done = iter(range(len(names) + 1))
    return report.report(
        loaded,
        tensor(kept.text),
        analyses=names,
        options=options,
        seed=seed,
        title=str(kept.more.get("title", "")),
        command=str(kept.facts.get("command", "")),
        before=lambda analysis: step(analysis.title.lower(), next(done), len(names)),
    )


def _one(kept: Kept, source: str, device: str, step: Step) -> "Report":
    """The command of an analysis again."""
    analysis = find(kept.command)
    prompts = kept.more.get("prompts")
    if prompts is not None and not isinstance(prompts, str):
        raise _no_page(kept.path)
    _check_amount(kept.path, (prompts or "").count("\n"), len(prompts or ""))
    asked = Asked(source, tensor(kept.text), _checked(analysis, kept.options), prompts, sweeps=kept.sweeps)
    shape = shape_of(source) if kept.facts["weights_sha256"] == WITHOUT_WEIGHTS else None
    if shape is not None and not analysis.takes_config:
        raise _no_page(kept.path)
    step("loading the model", 0, 1)
    loaded = load(kept, source, device) if shape is None else None
    step(analysis.title.lower(), 0, 1)
    with _lowered(kept.sweeps):
        section = measure(analysis, loaded or shape, asked)
    return page_of(section, loaded, analysis, asked, str(kept.facts.get("command", "")))


def _lowered(dtype: str | None) -> AbstractContextManager[object]:
    """Sweeps in this dtype, if one is given."""
    if dtype is None:
        return nullcontext()
    import torch

    from interp.sweep import lowered

    return lowered(getattr(torch, dtype))


def _study(kept: Kept, source: str, device: str, step: Step) -> "Report":
    """`interp study` again."""
    from reports.running import study
    from reports.studies import find_study

    file = find_study(str(kept.more.get("study")))
    if file.takes_model == kept.own_model:
        raise _no_page(kept.path)
    options = _checked(file, kept.options)
    step("loading the model", 0, 1)
    loaded = load(kept, source, device) if file.takes_model else None
    declared = study.made(file, loaded, options)
    return study.carry_out(
        declared,
        file=file,
        command=str(kept.facts.get("command", "")),
        options=options,
        before=lambda item, number: step(f"{item.address} {item.title}", number, len(declared.items)),
    )


class _Probe:
    """What `_checked` asks of a command: its name and options."""

    command = "probe"

    @staticmethod
    def options() -> list[Option]:
        return keyword_options("probe", probing.asked)


def _probe(kept: Kept, source: str, device: str, step: Step) -> "Report":
    """`interp probe` again."""
    request = probing.asked(**_checked(_Probe(), kept.options))
    step("opening the store", 0, 1)
    data = probing.opened(request, str(kept.more.get("activations")))
    loaded = None if kept.own_model else cast("HookedGPT", load(kept, source, device))
    if request.causal is not None and loaded is None:
        raise _no_page(kept.path)
    sections = probing.run(request, data, loaded, step)
    return probing.page_of(request, data, sections, loaded, str(kept.facts.get("command", "")))


RUNNERS: dict[str, Callable[[Kept, str, str, Step], "Report"]] = {
    "report": _report,
    "study": _study,
    "probe": _probe,
}
"""How commands are run again, by name, given the page, the model's name, the device and who shows progress.

Analyses need no entry.
"""


def tensor(text: Any) -> Any:
    """Rows of token ids as a tensor [batch pos] or a Batch; a text or several as they are. Raises InputError for ids
    that are out of all range."""
    if not isinstance(text, list) or isinstance(text[0], str):
        return text
    from interp.models.gpt import Batch

    try:
        return Batch.of(text)
    except (ValueError, OverflowError, RuntimeError):
        raise InputError("the token ids of the page are damaged", "expected whole numbers") from None


def _checked(
    analysis: "Analysis | StudyFile | _Probe", given: Mapping[str, Any], *, loads: bool = True
) -> dict[str, Any]:
    """Options from a file as the analysis takes them. Raises InputError for one that it does not have."""
    known = {option.name: option for option in analysis.options()}
    out = {}
    for name, value in given.items():
        option = known.get(name)
        fits = option is not None and _fits(option, value) and (value is None or loads or option.load is None)
        fits = fits and _is_modest(name, value)
        if option is None or not fits:
            raise InputError(
                f"the page gives {analysis.command} the option {name} = {value!r}"[:200],
                f"expected {'a value of its type and usual size' if option else 'one of ' + ', '.join(known)}",
                "the page may be of another version of interp",
            )
        if name == "seed":
            check_seed(value)
        out[name] = tuple(value) if option.many and value is not None else value
    return out


def _fits(option: Option, value: Any) -> bool:
    if value is None:
        return option.optional or option.default is None
    if option.many:
        return isinstance(value, list) and all(_is_one(option.type, item) for item in value)
    return _is_one(option.type, value)


def _is_modest(name: str, value: Any) -> bool:
    """Whether an option is no larger than somebody would want it to be, so that nothing runs for ever."""
    if isinstance(value, list):
        return len(value) <= MOST and all(_is_modest(name, item) for item in value)
    if isinstance(value, str):
        return len(value) <= LONGEST
    if name in ("seed", "memory") and isinstance(value, int):
        return 0 <= value < 2**48
    return value is None or abs(value) <= (1e9 if isinstance(value, float) else LARGEST)  # not so for NaN


def _is_one(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return type(value) is kind or (kind is float and type(value) is int)


def check(kept: Kept, made: "Report", tolerance: float | None = None) -> list[record.Difference]:
    """How every table of the page compares with the one made again, in the page's order.

    Args:
        tolerance: share of a column's largest value by which a number may differ; by default that of the dtype.
    """
    allowed = kept.tolerance if tolerance is None else tolerance
    frames = {section.name: section.result.to_dataframe() for section in made.sections}
    for name in kept.numbers:
        if not isinstance(kept.numbers[name], dict):
            raise _no_page(kept.path)
    return [record.compare(name, kept.numbers[name], frames.get(name), allowed) for name in kept.numbers]
