"""Probes on activations from disk: run, written as a page, and run again from what the page keeps."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Literal

from interp.errors import CheckFailed, InputError, check_seed

if TYPE_CHECKING:
    from analyses.shared.panels import Result
    from interp.models.gpt import HookedGPT
    from interp.store.reading import ActivationStore
    from reports.page.html import Report, Section

KINDS = Literal["logistic", "ridge", "lda", "mass-mean", "nearest-centroid", "mlp"]
Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Probing:
    """What `interp probe` was asked."""

    store: str
    label: str
    probe: KINDS
    names: tuple[str, ...] | None
    causal: str | None
    towards: str | None
    description_length: bool
    seed: int


def asked(
    *,
    store: Annotated[str, "folder of activations"],
    label: Annotated[str, "what is read off"] = "seen-before",
    probe: Annotated[KINDS, "kind of probe"] = "logistic",
    names: Annotated[tuple[str, ...] | None, "hook points"] = None,
    causal: Annotated[str | None, "hook point at which the label is erased; best: where it reads best"] = None,
    towards: Annotated[str | None, "class to steer to"] = None,
    description_length: Annotated[bool, "code the labels"] = True,
    seed: Annotated[int, "of controls, shuffling and intervals"] = 0,
) -> Probing:
    """The request; its signature says what a page may ask for."""
    if towards is not None and causal is None:
        raise InputError("--towards without --causal", "expected both", "try --causal best")
    check_seed(seed)
    return Probing(store, label, probe, names, causal, towards, description_length, seed)


def run(request: Probing, data: "ActivationStore", model: "HookedGPT | None", step: Step) -> "list[Section]":
    """The probes, and what erasing and steering did where that was asked for."""
    from analyses.probes import causal, causal_check, probe_layers
    from reports.page.html import Section

    about = import_module("analyses.probes.probe_layers").__doc__ or ""
    step(f"probing for {request.label}", 0, 2 if request.causal else 1)
    found = probe_layers(
        data,
        request.label,
        probe=request.probe,
        names=None if request.names is None else list(request.names),
        model=model,
        description_length=request.description_length,
        seed=request.seed,
    )
    sections = [Section("probe", "Probes at every layer", about.strip(), found, 0.0)]
    if request.causal is not None and model is not None:
        step("erasing and steering", 1, 2)
        place = found.names[_last_best(found)] if request.causal == "best" else request.causal
        done: Result = causal_check(model, data, request.label, place, towards=request.towards, seed=request.seed)
        sections.append(Section("causal", "Does the model use it?", (causal.__doc__ or "").strip(), done, 0.0))
    return sections


def _last_best(found: Any) -> int:
    """Of hook points of the residual stream the best on the validation texts."""
    residual = [i for i, name in enumerate(found.names) if "hook_resid" in name or name == "hook_embed"]
    if not residual:
        raise InputError("--causal best", "expected a hook point of the residual stream among those stored")
    return min(residual, key=lambda i: found.validation_loss[i])


def page_of(
    request: Probing, data: "ActivationStore", sections: "list[Section]", model: "HookedGPT | None", command: str
) -> "Report":
    """The page, which keeps the request, the identity of the activations, and every number."""
    from interp.store.reading import identity
    from reports.page.html import Report
    from reports.running import record
    from reports.running.report import provenance, versions

    if model is not None:
        facts = provenance(model, [], seed=request.seed, command=command)
    else:
        known = {"weights_sha256": str(data.header["weights_sha256"]), "device": "cpu", "versions": versions()}
        named = {"command": command, "seed": request.seed, "model": str(data.header["model"])}
        facts = named | known | {"dtype": str(data.header["dtype"])}
    facts |= {"activations": f"{data.n_texts:,} texts, {data.n_rows:,} positions, {data.header['dtype']}"}
    more = {"activations": identity(data.header), "own_model": model is None}
    facts |= record.kept(sections, record.request("probe", None, asdict(request), **more))
    return Report(f"{data.header['model']}: {request.label}", (), tuple(sections), facts)


def opened(request: Probing, identity_then: str) -> "ActivationStore":
    """The activations that a page was made of. Raises CheckFailed for others."""
    from interp import ActivationStore
    from interp.store.reading import identity

    data = ActivationStore(request.store)
    if identity(data.header) != identity_then:
        raise CheckFailed(
            f"the activations in {request.store} are not those of the page",
            "expected the folder that the page was made of",
            "--load store=DIR names it",
        )
    return data
