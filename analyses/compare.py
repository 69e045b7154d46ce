"""Two models or checkpoints side by side: weights, what heads do, the logit lens, the loss; which heads changed.

Question: what differs between this model and another one, and which heads do something else?

Method: the same text goes through both. Weights: the length of the difference relative to the first model's weights,
for every head and every part. Heads: how much of each attention pattern moved (half the sum of absolute differences,
0 to 1, mean over queries after the first), and the difference of each role's score (`head_roles`) on the same random
sequences, with an interval and a corrected q-value over sequences. Lens: at each depth how far both are from their own
final prediction. Loss: of each next token in both models, and their paired difference over texts.

What the numbers do not show: weights can differ while the function is the same (scaling a head's values and undoing it
in its output), and a head is compared with the one in the same place: training from another start gives no head the
same place, so for such models compare the lists of roles, not head with head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from analyses.head_roles import Measurement, head_roles
from analyses.shared.axes import Axes, largest_first, lines, said_mean
from analyses.shared.capabilities import analysis, require
from analyses.shared.inputs import sequences, token_labels
from analyses.shared.metrics import token_loss
from analyses.shared.panels import Finding, Held, Note, Panel, Result, Table, Tokens, TokenStrip
from analyses.shared.statistics import bootstrap, held_out, methods, paired_t_p_value, q_values
from interp.errors import InputError
from interp.lens_maps import divergence, read, streams
from interp.loading.digests import non_finite
from interp.models.gpt import HookedGPT

PIECE = 1 << 22
"""Weights that are compared at a time, in float64."""
CHANGED = 0.1
"""Least change of a role's score, or share of a pattern, by which a head counts as changed."""


@dataclass(frozen=True, kw_only=True)
class CompareResult(Result):
    """Everything is first model, then other; head by head only where both have the same shape."""

    names: tuple[str, str]
    """Sources of the two models; made different where they are the same."""
    config: pd.DataFrame
    """Columns field, first, other: what differs in the shape."""
    weights: pd.DataFrame
    """Columns part, layer (-1 outside blocks), change (relative), cosine; empty when shapes differ."""
    head_weights: np.ndarray | None
    """[layer head] relative change of a head's own weights."""
    patterns: np.ndarray | None
    """[text layer head] share of the attention pattern that moved, mean over queries after the first."""
    roles: tuple[Measurement, Measurement]
    """Scores on random sequences; the same sequences for both when their vocabularies agree."""
    role_changes: pd.DataFrame
    """Columns layer, head, role, first, other, change, low, high, q; empty when heads cannot be paired."""
    tokens: Tokens
    """[pos] the first text."""
    losses: tuple[tuple[np.ndarray, np.ndarray], ...]
    """[text] -> loss of each next token in nats, [pos-1] for both; empty when the texts' tokens differ."""
    lens: tuple[np.ndarray, np.ndarray]
    """KL(final || logit lens) before each block, mean over positions, nats: [text place] for each model."""
    between: np.ndarray | None
    """[text] KL(first || other) of the final predictions, mean over positions, nats."""
    identical: bool
    """Whether every weight is equal."""
    remarks: tuple[str, ...]
    """What could not be compared, and why."""
    seed: int

    def to_dataframe(self) -> pd.DataFrame:
        """Tidy: one row a number, columns measure, part, layer, head, first, other, change."""
        columns = ["part", "layer", "head", "first", "other", "change"]
        frames = {"weights": self.weights[["part", "layer", "change"]]}
        moved = None if self.patterns is None else self.patterns.mean(0)
        for measure, values in (("head weights", self.head_weights), ("attention moved", moved)):
            if values is not None:
                frames[measure] = Axes.of(values, layer=None, head=None).frame("change")
        frames["role"] = self.role_changes.rename(columns={"role": "part"}).reindex(columns=columns)
        if self.role_changes.empty:  # heads that cannot be paired stand for themselves
            each = [Axes.of(some.scores.mean(0), part=some.roles, layer=None, head=None) for some in self.roles]
            frames["role"] = pd.concat([one.frame(of) for one, of in zip(each, ("first", "other"), strict=True)])
        if self.losses:
            first, other = self._losses.mean(0)
            frames["loss"] = pd.DataFrame({"first": [first], "other": [other], "change": [other - first]})
        known = [frame.assign(measure=measure) for measure, frame in frames.items() if len(frame)]
        return pd.concat([pd.DataFrame(columns=["measure", *columns]), *known], ignore_index=True).infer_objects()

    @property
    def _losses(self) -> np.ndarray:
        """[text model] mean loss over tokens, nats."""
        return np.array([[one.mean() for one in pair] for pair in self.losses])

    @property
    def changed(self) -> pd.DataFrame:
        """Heads that do something else: columns head, what, first, other, change, q; the largest change first."""
        frame = self.role_changes[(self.role_changes["change"].abs() >= CHANGED) & (self.role_changes["q"] < 0.05)]
        head = [f"L{layer}H{head}" for layer, head in zip(frame["layer"], frame["head"], strict=True)]
        frame = frame.assign(head=head, role=frame["role"].str.replace("_", " "))
        frame = frame[["head", "role", "first", "other", "change", "q"]]
        return largest_first(frame, "change", len(frame))[0]

    def panels(self) -> list[Panel]:
        panels: list[Panel] = []
        if self.identical:
            text = f"{self.names[0]} and {self.names[1]} have the same weights: everything below is equal."
            panels.append(Note("identical", "The same model", text=text))
        panels += self._head_panels() + self._weight_panels() + self._loss_panels() + self._lens_panels()
        if not self.config.empty:
            panels.append(Table("config", "Shapes", "Where the two models' shapes differ.", frame=self.config))
        if self.remarks:
            panels.append(Note("remarks", "Not compared", text="\n".join(self.remarks)))
        return [*panels, *self._methods()]

    def _methods(self) -> list[Note]:
        texts = len(self.losses) or len(self.lens[0])
        about = f" Losses and distances are means over {texts} texts, with such intervals." * (texts > 1)
        if self.role_changes.empty:
            return methods(texts, seed=self.seed)
        return methods(
            len(self.roles[0].scores), unit="random sequences", test="t", seed=self.seed,
            tests=int(self.role_changes["q"].notna().sum()), chosen_of=len(self.role_changes), more=about.strip(),
        )  # fmt: skip

    def _head_panels(self) -> list[Panel]:
        if self.patterns is None:
            return [self._role_table(i) for i in range(2)]
        changed, what = self.changed, self.roles[0].what
        none = f"No head's role changed by {CHANGED:g} or more beyond chance on {what}."
        first: Panel = Note("changed", "Heads that changed", text=none)
        if not changed.empty:
            first = Table(
                "changed", "Heads that changed", f"Roles whose score changed by {CHANGED:g} or more on {what}; q is "
                "corrected over all heads and roles (paired t test over sequences, Benjamini-Hochberg).",
                frame=changed, diverging=frozenset({"change"}),
            )  # fmt: skip
        moved = Axes.of(self.patterns.mean(0), layer=None, head=None).matrix(
            "patterns", "Attention that moved", "0: the same pattern; 1: none of it. Mean over queries after the "
            f"first, on the given text{'s.' if len(self.patterns) > 1 else ', one text.'}", unit="share of the pattern",
        )  # fmt: skip
        return [first, moved, *self._role_matrices()]

    def _role_matrices(self) -> list[Panel]:
        panels: list[Panel] = []
        caption = f"Score of {self.names[1]} minus that of {self.names[0]}, with 95 % intervals."
        first, other = self.roles
        for i, role in enumerate(first.roles):
            found = bootstrap((other.scores - first.scores)[:, i], seed=self.seed)
            if np.nanmax(np.abs(found.value), initial=0) >= CHANGED:
                key, title = f"role-{role.replace('_', '-')}", f"Change of {role.replace('_', ' ')}"
                grid = Axes.of(found, layer=None, head=None)
                panels.append(grid.matrix(key, title, caption, unit="share", diverging=True))
        return panels

    def _role_table(self, which: int) -> Panel:
        frame = self.roles[which].named
        key, title = f"roles-{('first', 'other')[which]}", f"Heads with a role in {self.names[which]}"
        if frame.empty:
            return Note(key, title, text="No head is above its null.")
        return Table(key, title, f"Measured on {self.roles[which].what}.", frame=frame)

    def _weight_panels(self) -> list[Panel]:
        if self.head_weights is None:
            return []
        worst, _ = largest_first(self.weights, "change", 40)
        return [
            Axes.of(self.head_weights, layer=None, head=None).matrix(
                "head-weights", "Change of each head's weights", "Length of the difference of a head's query, key, "
                "value and output weights, relative to the first model. Keys and values that several heads read count "
                "for each of them.", unit="relative change",
            ),
            Table(
                "weights", "Change of each part", "Relative change, and cosine of the two models' weights (1 means the "
                "same direction). The largest first; up to 40.", frame=worst.replace({"layer": {-1: np.nan}}),
            ),
        ]  # fmt: skip

    def _lens_panels(self) -> list[Panel]:
        found = {name: bootstrap(lens, seed=self.seed) for name, lens in zip(self.names, self.lens, strict=True)}
        title, keys = "Distance to the final prediction", ("lens-first", "lens-other")
        shown = {key: (f"{title}: {name}", {name: found[name]}) for key, name in zip(keys, self.names, strict=True)}
        if self.lens[0].shape[1] == self.lens[1].shape[1]:
            shown = {"lens": (title, found)}
        caption = (
            "Logit lens: divergence of the model's own final prediction from what is read before each block, mean "
            f"over positions. {said_mean(len(self.lens[0]))}"
        )
        return [
            lines(
                key, title, caption, curves, x=[f"L{i}" for i in range(len(next(iter(curves.values())).value))],
                x_axis="residual stream before", y_axis="KL(final || here), nats",
            )
            for key, (title, curves) in shown.items()
        ]  # fmt: skip

    def _loss_panels(self) -> list[Panel]:
        if not self.losses:
            return []
        found = bootstrap(self._losses, seed=self.seed)
        difference = bootstrap(self._losses @ (-1, 1), seed=self.seed)
        spread = said_mean(1)
        if difference.low is not None:
            ends = f"{difference.low:+.3f} to {difference.high:+.3f}, paired by text"
            spread = f"Difference {difference.value:+.3f} nats ({ends})."
        first, other = self.losses[0]
        return [
            Axes.of(found, model=self.names).bars(
                "loss", "Loss on the text", f"Mean over tokens, then over texts. {spread}", unit="nats per token"
            ),
            TokenStrip(
                "loss-by-token", "Where the losses differ", f"Loss of {self.names[1]} minus that of {self.names[0]} on "
                f"each token of the first text: negative where {self.names[1]} expects it more.",
                tokens=Tokens(self.tokens[1:]), values=other - first, unit="nats", diverging=True,
            ),
        ]  # fmt: skip

    def _largest(self, head: str, role: str) -> tuple[tuple[float | None, float | None], float, Held | None]:
        """The interval and the p of a change that is told because it is the largest of all (Bonferroni), and what half
        of the sequences say."""
        layer, number = (int(part) for part in head[1:].split("H"))
        first, other = self.roles
        place = first.roles.index(role.replace(" ", "_")), layer, number
        differences, of = other.scores - first.scores, len(self.role_changes)
        difference = differences[:, *place]
        held = held_out(
            differences, place, unit="random sequences", seed=self.seed,
            called=lambda role, layer, head: f"L{layer}H{head}, {first.roles[role].replace('_', ' ')}",
        )  # fmt: skip
        return bootstrap(difference, chosen_of=of).ends(), min(of * float(paired_t_p_value(difference)), 1.0), held

    def findings(self) -> list[Finding]:
        if self.identical:
            text = f"{self.names[0]} and {self.names[1]} are the same model: every weight is equal."
            return [Finding(text, "identical", 0.9, 0.0, "relative change", kind="size")]
        found, changed = [], self.changed
        if self.losses:
            mean = bootstrap(self._losses @ (-1, 1))
            difference, (low, high) = float(mean.value), mean.ends()
            word = "lower" if difference < 0 else "higher"
            text = f"{self.names[1]} has a loss {abs(difference):.3f} nats a token {word} than {self.names[0]}."
            p = float(paired_t_p_value(self._losses @ (-1, 1)))
            if p <= 0.05:
                null = "no difference, over texts"
                found.append(Finding(text, "loss", 0.6, difference, "nats", low, high, kind="effect", null=null, p=p))
            else:
                weight = 0.6 if np.isnan(p) else 0.1  # of one text the difference is a plain fact
                found.append(Finding(text, "loss", weight, difference, "nats", low, high, kind="size"))
        if len(changed):
            top, heads = changed.iloc[0], changed["head"].nunique()
            text = (
                f"{heads} head{'s' * (heads != 1)} changed role; most of all {top['head']}, whose {top['role']} score "
                f"goes from {top['first']:.2f} to {top['other']:.2f}."
            )
            ends, p, held = self._largest(str(top["head"]), str(top["role"]))
            found.append(Finding(
                text, "changed", 0.8, float(top["change"]), "share", *ends, kind="effect", p=p, held=held,
                null="no change, over random sequences", about=str(top["head"]),
                short=f"{top['role']} score {top['first']:.2f} before, {top['other']:.2f} after",
            ))  # fmt: skip
        elif self.patterns is not None:
            moved = self.patterns.mean(0)
            layer, head = np.unravel_index(int(moved.argmax()), moved.shape)
            where = f"L{layer}H{head} ({moved.max():.0%} of its pattern)"
            text = f"No head changed its role; attention moved most in {where}."
            found.append(Finding(text, "patterns", 0.4, float(moved.max()), "share", kind="negative"))
        return found


@analysis(needs=("next token",))
@torch.no_grad()
def compare(
    model: HookedGPT,
    tokens: str | Sequence[str] | Tensor,
    *,
    other: Annotated[HookedGPT, "the model to compare with: a bundled name, a directory, or a hub id"],
    samples: Annotated[int, "random sequences on which heads' roles are measured"] = 16,
    seed: Annotated[int, "of the random sequences and of the intervals"] = 0,
) -> CompareResult:
    """Compare a model with another one on the same text.

    Raises InputError when the text does not fit one of them, NotApplicable when one of them predicts no next token.
    """
    if not isinstance(other, HookedGPT):
        raise InputError(f"other = {other!r}", "expected a model, such as HookedGPT.from_pretrained(...)")
    require(other, ("next token",))
    remarks = []
    names = _names(model, other)
    same_shape, comparable = model.config == other.config, _same_heads(model, other)
    if not comparable:
        remarks.append("The models have different numbers of layers or heads: no head is compared with another.")
    if not same_shape:
        remarks.append("Their shapes differ: weights are not compared.")
    if bad := non_finite(other):
        remarks.append(f"Weights of {names[1]} are not finite: {bad[0]}. Nothing made of them is a number.")
    rows, other_rows = sequences(model, tokens, at_least=2), sequences(other, tokens, at_least=2)
    same_tokens = len(rows) == len(other_rows) and all(
        a.shape == b.shape and torch.equal(a.cpu(), b.cpu()) for a, b in zip(rows, other_rows, strict=True)
    )
    same_tokens = same_tokens and model.config.d_vocab == other.config.d_vocab
    if not same_tokens:
        remarks.append("Their tokens for this text differ: losses are not compared token by token.")
    roles = head_roles(model, samples=samples, seed=seed).random, head_roles(other, samples=samples, seed=seed).random
    weights, head_weights = weight_changes(model, other) if same_shape else (pd.DataFrame(columns=WEIGHT_COLUMNS), None)
    runs = [(_run(model, a), _run(other, b)) for a, b in zip(rows, other_rows, strict=True)]
    return CompareResult(
        names=names,
        config=_config_differences(model, other),
        weights=weights,
        head_weights=head_weights,
        patterns=pattern_changes(model, other, rows) if comparable and same_tokens else None,
        roles=roles,
        role_changes=role_changes(*roles, seed=seed) if comparable else pd.DataFrame(columns=ROLE_COLUMNS),
        tokens=token_labels(model, rows[0]),
        losses=tuple((a["loss"].numpy(), b["loss"].numpy()) for a, b in runs) if same_tokens else (),
        lens=(np.stack([a["kl"].numpy() for a, _ in runs]), np.stack([b["kl"].numpy() for _, b in runs])),
        between=np.array([float(divergence(a["final"], b["final"]).mean()) for a, b in runs]) if same_tokens else None,
        identical=same_shape and float(weights["change"].max(skipna=False)) == 0,
        remarks=tuple(remarks),
        seed=seed,
    )


WEIGHT_COLUMNS = ["part", "layer", "change", "cosine"]
ROLE_COLUMNS = ["layer", "head", "role", "first", "other", "change", "low", "high", "q"]


def _names(model: HookedGPT, other: HookedGPT) -> tuple[str, str]:
    if model.source != other.source:
        return model.source, other.source
    return f"{model.source} (first)", f"{other.source} (other)"


def _same_heads(model: HookedGPT, other: HookedGPT) -> bool:
    a, b = model.config, other.config
    return (a.n_layers, a.n_heads) == (b.n_layers, b.n_heads)


def _config_differences(model: HookedGPT, other: HookedGPT) -> pd.DataFrame:
    first, second = asdict(model.config), asdict(other.config)
    rows = [(name, str(first[name]), str(second[name])) for name in first if first[name] != second[name]]
    return pd.DataFrame(rows, columns=["field", "first", "other"])


@torch.no_grad()
def weight_changes(model: HookedGPT, other: HookedGPT) -> tuple[pd.DataFrame, np.ndarray]:
    """Relative change and cosine of every parameter; the relative change of each head's own weights [layer head]."""
    theirs = dict(other.named_parameters())
    rows = []
    for name, mine in model.named_parameters():
        sums = torch.zeros(4, dtype=torch.float64)  # of squares: change, first, other; and of the product
        for a, b in zip(mine.flatten().split(PIECE), theirs[name].flatten().split(PIECE), strict=True):
            a, b = a.double().cpu(), b.double().cpu()
            sums += torch.stack([(b - a) @ (b - a), a @ a, b @ b, a @ b])
        change, first, second, product = sums.tolist()
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else -1
        part = name.split(".", 2)[2] if layer >= 0 else name
        cosine = product / max((first * second) ** 0.5, 1e-300)
        rows.append((part, layer, _relative(change**0.5, first**0.5), cosine))
    changes, sizes = (torch.zeros(model.config.n_layers, model.config.n_heads, dtype=torch.float64) for _ in range(2))
    for weight in ("W_Q", "W_K", "W_V", "W_O"):
        a, b = getattr(model, weight).double().cpu(), getattr(other, weight).double().cpu()
        group = model.config.n_heads // a.shape[1]  # keys and values count for every head that reads them
        changes += (b - a).pow(2).sum((-1, -2)).repeat_interleave(group, 1)
        sizes += a.pow(2).sum((-1, -2)).repeat_interleave(group, 1)
    return pd.DataFrame(rows, columns=WEIGHT_COLUMNS), (changes / sizes.clamp(min=1e-300)).sqrt().numpy()


def _relative(change: float, size: float) -> float:
    """change / size; a change from nothing counts as one."""
    return change / size if size > 0 else float(change > 0)


def pattern_changes(model: HookedGPT, other: HookedGPT, rows: Sequence[Tensor]) -> np.ndarray:
    """[text layer head] total variation between the two attention patterns, mean over queries after the first."""
    out = []
    for row in rows:
        first, second = (
            which.run_with_cache(row.to(which.device), names="pattern", device="cpu")[1].stack("pattern")[:, 0].double()
            for which in (model, other)
        )
        out.append(((first - second).abs().sum(-1) / 2)[:, :, 1:].mean(-1).numpy())
    return np.stack(out)


def role_changes(first: Measurement, other: Measurement, *, seed: int) -> pd.DataFrame:
    """The difference of every head's score in every role, with interval and q-value, over the same sequences."""
    difference = other.scores - first.scores
    found = Axes.of(bootstrap(difference, seed=seed), role=first.roles, layer=None, head=None)
    before, after = first.interval.value, other.interval.value
    frame = found.frame("change", first=before, other=after, q=q_values(paired_t_p_value(difference)))
    return frame.reindex(columns=ROLE_COLUMNS)


def _run(model: HookedGPT, row: Tensor) -> Mapping[str, Tensor]:
    """Loss of next tokens [pos-1], KL of the lens before each block [place], final log-probabilities [pos d_vocab]."""
    places = streams(model, row)[:, 0]
    final = read(model, places[-1])
    kl = torch.stack([divergence(final, read(model, x)).mean() for x in places[:-1]])
    return {"loss": token_loss(final, row[0]).double().cpu(), "kl": kl.double().cpu(), "final": final.cpu()}
