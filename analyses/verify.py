"""Published figures against measured ones: of GPT-2 small, or of a directory of small trained models.

Question: does this code find on GPT-2 small, and on small models that others trained, what was published about them?

Method: tables read off the plots of two public notebooks ship with the package, each with its source, settings and a
tolerance fixed in advance. Where the real weights are given, each table is measured anew from its prompts and compared
entry by entry; every difference must be within the tolerance. The model counts as GPT-2 small when its shape is and its
embeddings begin with the known numbers, to all digits in which these are published; nothing is compared otherwise.

The prompts are the indirect-object task (Wang et al. 2022, "Interpretability in the Wild"): "When John and Mary went to
the shops, John gave the bag to", answered by " Mary" rather than " John". Direct effects are read with folded weights
and value biases; patching puts an activation of the run on these prompts into the run with the two names swapped.

With a zoo (`--zoo DIR`) the models in that directory are measured instead: ten figures of a classifier of palindromes
with heads ablated, a story model's greedy text, two models of modular addition. Each must agree to the last digit
printed. `analyses/shared/zoo.py` has the definitions.

What agreement does not show: that the published interpretation is right; only that the numbers are those of the model.
A model that is not GPT-2 small cannot be verified this way, and the result then says that nothing was run.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.shared.axes import Axes
from analyses.shared.capabilities import analysis
from analyses.shared.metrics import logit_difference
from analyses.shared.panels import Finding, Matrix, Note, Panel, Result, Table
from analyses.shared.zoo import Zoo, measure
from interp.errors import InputError
from interp.interventions import Replace, patch
from interp.models.config import PRESETS
from interp.models.gpt import HookedGPT
from interp.processing import process_weights
from interp.residual import decompose, decompose_names
from interp.sweep import sweep

PROMPTS = (
    ("When John and Mary went to the shops,{} gave the bag to", (" Mary", " John")),
    ("When Tom and James went to the park,{} gave the ball to", (" Tom", " James")),
    ("When Dan and Sid went to the shops,{} gave an apple to", (" Dan", " Sid")),
    ("After Martin and Amy went to the park,{} gave a drink to", (" Martin", " Amy")),
)
"""Each is used twice, with either name as the one to whom something is given."""
PAIR = ("After John and Mary went to the store,{} gave a bottle of milk to", (" John", " Mary"))
"""The one prompt of the other notebook."""


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """One published table."""

    key: str
    title: str
    source: str
    settings: str
    axes: tuple[str, ...]
    tolerance: float
    """Largest difference allowed, in the table's own unit."""
    slow: bool
    """Whether measuring it takes a sweep of patched runs."""
    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class VerifyResult(Result):
    """What was published and, for the model it was published for, what was measured."""

    model: str
    """Source of the model given."""
    identity: pd.DataFrame
    """Columns what, expected, found, agrees: how the model was told to be GPT-2 small, or not."""
    expectations: tuple[Expectation, ...]
    measured: dict[str, np.ndarray]
    """Expectation's key -> what this model gives; empty for another model."""
    remark: str
    """What was not run, and why; may be empty."""

    @property
    def is_reference(self) -> bool:
        """Whether the model is the one the figures were published for."""
        return bool(self.identity["agrees"].all())

    @property
    def passed(self) -> bool | None:
        """Whether everything that ran agreed; None when nothing ran."""
        return all(row["agrees"] for row in self._rows() if row["agrees"] is not None) if self.measured else None

    def facts(self) -> dict[str, Any]:
        """Whether the model is the reference, whether everything that ran agreed, and what was not run."""
        return {"is_reference": self.is_reference, "passed": self.passed, "remark": self.remark}

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for one in self.expectations:
            found = self.measured.get(one.key)
            worst = None if found is None else float(np.abs(found - one.values).max())
            rows.append(
                {
                    "key": one.key,
                    "table": one.title,
                    "numbers": one.values.size,
                    "worst_difference": worst,
                    "tolerance": one.tolerance,
                    "agrees": None if worst is None else worst <= one.tolerance,
                    "source": one.source,
                    "settings": one.settings,
                }
            )
        return rows

    def to_dataframe(self) -> pd.DataFrame:
        """One row a published number: table, row, column, published, measured, difference, tolerance, agrees.

        What was not run has no measured value.
        """
        frames = []
        for one in self.expectations:
            grid = one.values if one.values.ndim == 2 else one.values[:, None]
            measured = self.measured.get(one.key, np.full(grid.shape, np.nan)).reshape(grid.shape)
            within = np.where(np.isnan(measured), None, np.abs(measured - grid) <= one.tolerance)
            frame = Axes.of(grid[None], table=[one.key], row=None, column=None)
            frames.append(frame.frame(
                "published", measured=measured, difference=measured - grid, tolerance=one.tolerance, agrees=within
            ))  # fmt: skip
        return pd.concat(frames, ignore_index=True)

    def panels(self) -> list[Panel]:
        rows = pd.DataFrame(self._rows())
        remark: list[Panel] = [Note("not-run", "Not run here", text=self.remark)]
        if not self.is_reference:
            caption = "Published tables that ship with the package. None of them was compared with this model."
            frame = rows[["table", "numbers", "tolerance", "source"]]
            return [*remark, Table("tables", "What would be checked on GPT-2 small", caption, frame=frame)]
        shown = rows[["table", "numbers", "worst_difference", "tolerance", "agrees", "source", "settings"]]
        shown = shown.rename(columns={"worst_difference": "worst difference"})
        table = Table(
            "tables", "Published and measured", "Every number of a table must be within its tolerance, which was fixed "
            "in advance. A table without a difference was not run.",
            frame=shown.replace({"agrees": {True: "yes", False: "no", None: "not run"}}),
        )  # fmt: skip
        failed = [self._differences(one) for one in self.expectations if self._fails(one)]
        return [table, *remark * bool(self.remark), *failed]

    def _fails(self, one: Expectation) -> bool:
        found = self.measured.get(one.key)
        return found is not None and bool(np.abs(found - one.values).max() > one.tolerance)

    def _differences(self, one: Expectation) -> Matrix:
        difference = np.atleast_2d(self.measured[one.key] - one.values)
        axes = one.axes if len(one.axes) == 2 else ("", *one.axes)
        return Axes.of(difference, **dict.fromkeys(axes)).matrix(
            f"differences-{one.key.replace('_', '-')}", f"Measured minus published: {one.title}",
            f"{one.settings} Tolerance {one.tolerance:g}.", unit="difference", diverging=True,
        )  # fmt: skip

    def findings(self) -> list[Finding]:
        ran = [row for row in self._rows() if row["agrees"] is not None]
        if not ran:
            return []
        good, numbers = (sum(row[name] for row in ran) for name in ("agrees", "numbers"))
        worst = max(ran, key=lambda row: row["worst_difference"] / row["tolerance"])
        text = (
            f"{good} of {len(ran)} tables published for GPT-2 small are reproduced within their tolerance "
            f"({numbers:,} numbers); the largest difference for its tolerance is {worst['worst_difference']:.2g} "
            f"({worst['table'][0].lower()}{worst['table'][1:]}, {worst['tolerance']:g} allowed)."
        )
        if good < len(ran):
            return [Finding(text, "tables", 1.0, good / len(ran), "share of tables", kind="warning")]
        return [Finding(text, "tables", 0.6, 1.0, "share of tables", kind="size")]


@analysis(place=95, sweeps=True, runs=True)
@torch.no_grad()
def verify(
    model: HookedGPT | None,
    tokens: str | Sequence[str] | Tensor | None = None,
    *,
    full: Annotated[bool, "also the patching tables: several hundred runs, a minute or more"] = False,
    zoo: Annotated[
        Zoo | None, "a directory of small models with published figures, which are measured in place of --model"
    ] = None,
) -> Result:
    """Measure what was published for GPT-2 small and compare; for any other model, say that nothing was run.

    The published figures have prompts of their own: `tokens` is not used.

    Args:
        zoo: `Zoo.load(directory)`: its models are measured in place of `model`, which is None then.

    Returns a VerifyResult, or a ZooResult for a zoo. Raises InputError for a zoo beside a model or `full`, or neither
    model nor zoo; LoadError for a file of the zoo with other contents.
    """
    if zoo is not None:
        if model is not None or tokens is not None or full:
            raise InputError("a zoo beside a model, a text or full=True", "expected verify(None, zoo=...) alone")
        return measure(zoo)
    if model is None:
        raise InputError("neither a model nor a zoo", "expected one of the two")
    known, identity = published(), identify(model)
    if not identity["agrees"].all():
        wrong = identity[~identity["agrees"]].iloc[0]
        numbers = sum(one.values.size for one in known)
        remark = (
            f"These figures were published for GPT-2 small, and {model.source} is another model ({wrong['what']}: "
            f"{wrong['found']}, GPT-2 small has {wrong['expected']}). None of the {numbers:,} numbers was compared. "
            "With the weights at hand: interp verify --model gpt2, or --model with the path of their directory."
        )
        return VerifyResult(model=model.source, identity=identity, expectations=known, measured={}, remark=remark)
    if model.tokenizer is None:
        raise InputError("GPT-2 small without its tokenizer", "expected tokenizer.json, or vocab.json and merges.txt")
    chosen = [one for one in known if full or not one.slow]
    figures = Figures(model)
    left = len(known) - len(chosen)
    return VerifyResult(
        model=model.source,
        identity=identity,
        expectations=known,
        measured={one.key: figures.measure(one.key) for one in chosen},
        remark=f"{left} tables need several hundred patched runs and were left out; full=True (--full) runs them."
        if left
        else "",
    )


@cache
def _data() -> dict[str, Any]:
    file = resources.files("analyses").joinpath("data", "gpt2_small_published.json")
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data


def published() -> tuple[Expectation, ...]:
    """The published tables, in order."""
    return tuple(
        Expectation(**{**table, "axes": tuple(table["axes"]), "values": np.array(table["values"], dtype=float)})
        for table in _data()["tables"]
    )


def identify(model: HookedGPT) -> pd.DataFrame:
    """Whether the model is GPT-2 small: its shape, and numbers of its embeddings as torch prints them in public.

    Columns what, expected, found, agrees.
    """
    rows: list[tuple[str, str, str, bool]] = []
    for field in ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "n_ctx", "d_vocab", "positions"):
        expected, found = (getattr(config, field) for config in (PRESETS["gpt2"], model.config))
        rows.append((field, str(expected), str(found), expected == found))
    if all(agrees for *_, agrees in rows):
        facts = _data()["identity"]
        for name in ("W_E", "W_pos"):
            for row, (first, last) in facts[name].items():
                vector = getattr(model, name)[int(row)].detach().double().cpu().numpy()
                found = np.concatenate([vector[:3], vector[-3:]])
                expected = np.array([*first, *last])
                agrees = bool(np.abs(found - expected).max() <= facts["tolerance"])
                what = f"first and last numbers of {name}[{row}]"
                rows.append((what, _numbers(expected), _numbers(found), agrees))
    return pd.DataFrame(rows, columns=["what", "expected", "found", "agrees"])


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


class Figures:
    """Measures the published quantities on a model. Every table has a method of its key's name."""

    def __init__(self, model: HookedGPT) -> None:
        self.model = model

    @torch.no_grad()
    def measure(self, key: str) -> np.ndarray:
        """One table. Patching keys are patch_ and the hook's short name."""
        if key == "patch_main":
            clean, answers = prompts(self.model, [PAIR])
            return self._patched(clean[:1], clean[1:], answers[:1], "resid_pre")
        if key.startswith("patch_"):
            clean, answers = self._prompts
            swapped = clean.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
            return self._patched(clean, swapped, answers, key.removeprefix("patch_"))
        methods: dict[str, Callable[[], np.ndarray]] = {
            "accumulated": self.accumulated,
            "by_layer": self.by_layer,
            "by_head": self.by_head,
            "previous_token": lambda: self._attention(2, 100, 0, 100, 20000, 1),
            "duplicate_token": lambda: self._attention(2, 100, 0, 100, 20000, 100),
            "induction": lambda: self._attention(2, 100, 0, 100, 20000, 99),
            "induction_main": lambda: self._attention(10, 50, 0, 1000, 10000, 49),
            "ov_copying": lambda: self._copying(full=False),
            "ov_copying_full": lambda: self._copying(full=True),
        }
        return methods[key]()

    @cached_property
    def _prompts(self) -> tuple[Tensor, Tensor]:
        return prompts(self.model, PROMPTS)

    @cached_property
    def _processed(self) -> HookedGPT:
        return process_weights(self.model)

    @cached_property
    def _parts(self) -> tuple[Tensor, list[str]]:
        """[component] share of the logit difference written by each part, mean over prompts, and the parts' names."""
        model, (tokens, answers) = self._processed, self._prompts
        _, kept = model.run_with_cache(tokens, names=[*decompose_names(model), "ln_final.hook_scale"], pos=-1)
        parts, names = decompose(model, kept)
        shares = model.ln_final.share(parts, kept["ln_final.hook_scale"])[:, :, -1]
        direction = (model.W_U[:, answers[:, 0]] - model.W_U[:, answers[:, 1]]).T
        return torch.einsum("cbd,bd->c", shares, direction) / len(tokens), names

    def by_head(self) -> np.ndarray:
        """[layer head]"""
        values, names = self._parts
        heads = [v for v, name in zip(values.tolist(), names, strict=True) if name.startswith("L")]
        return np.array(heads).reshape(self.model.config.n_layers, self.model.config.n_heads)

    def by_layer(self) -> np.ndarray:
        """[component] embed, pos_embed, then attention and MLP of every block."""
        values, names = self._parts
        known = dict(zip(names, values.tolist(), strict=True))
        out = [known["embed"], known["pos_embed"]]
        for layer, heads in enumerate(self.by_head().sum(1)):
            out += [float(heads) + known.get(f"bias {layer}", 0.0), known[f"mlp {layer}"]]
        return np.array(out)

    def accumulated(self) -> np.ndarray:
        """[place] before and inside each block, and at the end."""
        out: np.ndarray = np.cumsum(self.by_layer())[1:]
        return out

    def _attention(self, batch: int, length: int, seed: int, low: int, high: int, back: int) -> np.ndarray:
        """[layer head] mean attention `back` positions back, on random tokens repeated once."""
        generator = torch.Generator().manual_seed(seed)
        half = torch.randint(low, high, (batch, length), generator=generator)
        tokens = torch.cat([half, half], 1).to(self.model.device)
        _, kept = self.model.run_with_cache(tokens, names="pattern")
        scores = kept.stack("pattern").diagonal(-back, dim1=-2, dim2=-1).mean((1, -1))
        return scores.double().cpu().numpy()

    def _copying(self, *, full: bool) -> np.ndarray:
        """[layer head] sum of the eigenvalues of W_V W_O (full: W_E W_V W_O W_U) over the sum of their sizes.

        The non-zero eigenvalues of a product do not change when its factors are turned round, so matrices of the
        head's width suffice.
        """
        model = self._processed
        between = model.W_U @ model.W_E if full else torch.eye(model.config.d_model, device=model.device)
        small = model.W_O @ between.to(model.W_O) @ model.W_V  # [layer head d_head d_head]
        values = torch.linalg.eigvals(small.cpu())
        scores: np.ndarray = (values.sum(-1).real / values.abs().sum(-1)).double().numpy()
        return scores

    def _patched(self, clean: Tensor, swapped: Tensor, answers: Tensor, name: str) -> np.ndarray:
        """Share of the logit difference that comes back when a clean activation is put into the swapped run.

        [layer pos] for activations without heads, [layer head] for the others.
        """
        model, config = self.model, self.model.config
        hooks = model.match(name)
        _, source = model.run_with_cache(clean, names=hooks)
        by_head = name in ("z", "v", "pattern")
        places = range(config.n_heads if by_head else clean.shape[1])
        edits: list[Replace] = [
            patch(hook, source, head=place) if by_head else patch(hook, source, pos=place)
            for hook in hooks
            for place in places
        ]

        def metric(logits: Tensor) -> dict[str, Tensor]:
            return {"difference": logit_difference(logits[:, -1], answers[:, 0], answers[:, 1])}

        found = sweep(model, swapped, [(), *edits], metric, read=[-1])["difference"].double().mean(-1).cpu()
        best = float(metric(model(clean))["difference"].double().mean())
        shares: np.ndarray = ((found[1:] - found[0]) / (best - found[0])).view(config.n_layers, -1).numpy()
        return shares


def prompts(model: HookedGPT, formats: Sequence[tuple[str, tuple[str, str]]]) -> tuple[Tensor, Tensor]:
    """Token ids [prompt pos] and (answer, wrong) ids [prompt 2]: each format with either name as the answer."""
    texts, answers = [], []
    for text, names in formats:
        for answer, wrong in (names, names[::-1]):
            texts.append(text.format(wrong))
            answers.append([model.to_single_token(answer), model.to_single_token(wrong)])
    return model.to_tokens(texts), torch.tensor(answers, device=model.device)
