"""Small models that others trained and published figures about: what was published, and how each is measured.

`Zoo.load` reads the files of a directory, which belong to those who made them and are no part of this project;
`measure` takes each figure through the ordinary calls: from_state_dict, from_pretrained, process_weights, ablation,
generate, and cross-entropy of the logits at the last position. A figure agrees when it is the published one to the last
digit printed there.

Palindromes (callummcdougall/ARENA_2.0, July 2023): a causal model without MLPs says at the last position whether twenty
numbers are a palindrome. Heads are replaced on weights with norms and value biases folded and writing weights centred;
"mean" is the mean over the batch, each position its own (`mean_over_texts`).

Modular addition, "clock" (Zhong et al. 2023, "The Clock and the Pizza"): distance irrelevance, their definition 4.2, is
the standard deviation of the correct logit over all pairs with the same a - b, averaged over these differences, divided
by its standard deviation over all pairs. Logits are as they are, not centred.

Modular addition, "grokking" (Nanda et al. 2023): pairs are split as in their training, by Python's random with the
file's seed. The losses in the file were taken before the last update, the weights after it: so the update is taken
back, by the moments of AdamW that the file holds, and the losses are compared to five digits; with the weights as saved
to three. Key frequencies are those with the largest Fourier components of the embedding, cosine and sine together.
"""

import pickle
import random
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from analyses.ablation import ablation
from analyses.shared.panels import Finding, Note, Panel, Result, Table
from interp.errors import LoadError, NotFoundError
from interp.models.config import GPTConfig
from interp.models.gpt import HookedGPT
from interp.processing import process_weights
from interp.progress import track

Measured: TypeAlias = Mapping[str, float | str]
"""Key of a figure -> what was measured: a number, or words."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One published figure."""

    model: str
    key: str
    what: str
    published: str
    """As printed: a number, whose last digit is the tolerance, or words."""
    source: str

    @property
    def tolerance(self) -> float | None:
        """Half a unit of the last digit printed; None for words."""
        if not self.is_number:
            return None
        return 0.5 * 10.0 ** int(Decimal(self.published).as_tuple().exponent)

    @property
    def is_number(self) -> bool:
        return self.published[:1].isdigit() and " " not in self.published

    def agrees(self, measured: float | str) -> bool:
        if self.tolerance is None:
            return measured == self.published
        return abs(float(measured) - float(self.published)) <= self.tolerance

    def shown(self, measured: float | str) -> str:
        """The measured value with one digit more than the published one."""
        if isinstance(measured, str):
            return measured
        mantissa, power, _ = self.published.partition("e")
        places = len(mantissa.partition(".")[2])
        return f"{measured:.{places + 1}e}" if power else f"{measured:.{places + 1}f}" if places else f"{measured:g}"


def _figures(model: str, source: str, *rows: tuple[str, str, str]) -> tuple[Figure, ...]:
    return tuple(Figure(model=model, key=k, what=w, published=p, source=source) for k, w, p in rows)


FIGURES = (
    *_figures(
        "palindromes", "ARENA 2.0, palindromes",
        ("loss", "cross-entropy, nats", "0.008"),
        ("clean", "logit difference", "7.489"),
        ("mean L0H0", "logit difference, L0H0 mean-ablated", "0.614"),
        ("mean L0H1", "logit difference, L0H1 mean-ablated", "6.642"),
        ("mean L1H0", "logit difference, L1H0 mean-ablated", "0.299"),
        ("mean L1H1", "logit difference, L1H1 mean-ablated", "6.815"),
        ("zero L0H0", "logit difference, L0H0 zero-ablated", "1.672"),
        ("zero L0H1", "logit difference, L0H1 zero-ablated", "3.477"),
        ("zero L1H0", "logit difference, L1H0 zero-ablated", "2.847"),
        ("zero L1H1", "logit difference, L1H1 zero-ablated", "7.274"),
    ),
    *_figures("brackets", "ARENA 2.0, brackets", ("loads", "the weights", "load")),
    *_figures("stories260K", "llama2.c, stories260K", ("text", "characters of the greedy text", "565")),
    *_figures(
        "clock", "Zhong et al. 2023",
        ("correct", "right answers of 3,481 (100 %)", "3481"),
        ("irrelevance", "distance irrelevance", "0.848"),
    ),
    *_figures(
        "grokking", "Nanda et al. 2023",
        ("full", "loss of all 12,769 pairs, nats", "3.52e-07"),
        ("frequencies", "key frequencies, largest first", "23 6 37 41 39"),
        ("train saved", "training loss, weights as saved", "9.20e-09"),
        ("test saved", "test loss, weights as saved", "4.99e-07"),
        ("train", "training loss, one update earlier", "9.2025e-09"),
        ("test", "test loss, one update earlier", "4.9915e-07"),
    ),
)  # fmt: skip
"""Every published figure, in the order of the zoo's README."""


def palindromes(state: Mapping[str, Tensor], data: Mapping[str, np.ndarray]) -> Measured:
    """Ten figures: cross-entropy, mean logit difference, and that with each of four heads replaced in two ways."""
    tokens, label = (torch.from_numpy(data[name]).long() for name in ("tokens", "label"))
    config = GPTConfig(
        n_layers=2, n_heads=2, d_model=28, n_ctx=22, d_vocab=33, d_vocab_out=2, attn_only=True, tied=False,
        unembed_bias=True,
    )  # fmt: skip
    model = process_weights(HookedGPT.from_state_dict(state, config))
    found = ablation(
        model, tokens, kinds=("mean_over_texts", "zero"), metrics=("logit_diff",), answer=label, wrong=1 - label
    )
    means = found.values[..., 0].mean(0)
    heads = {
        f"{kind.partition('_')[0]} {part.label}": float(means[p, k])
        for k, kind in enumerate(found.kinds)
        for p, part in enumerate(found.components)
    }
    loss = float(F.cross_entropy(model(tokens)[:, -1], label))
    return {"loss": loss, "clean": float(found.clean.mean()), **heads}


def brackets(state: Mapping[str, Tensor]) -> Measured:
    """Whether the weights load: no figure is published."""
    config = GPTConfig(
        n_layers=3, n_heads=2, d_model=56, d_mlp=56, act_fn="relu", n_ctx=42, d_vocab=5, d_vocab_out=2, causal=False,
        tied=False, unembed_bias=True,
    )  # fmt: skip
    try:
        HookedGPT.from_state_dict(state, config)
    except LoadError as error:
        return {"loads": str(error).splitlines()[0]}
    return {"loads": "load"}


START, STEPS = "Once upon a time", 256
"""llama2.c's own number of tokens, the one that begins a text not counted."""


def stories(model: HookedGPT, _: None, text: str) -> Measured:
    """How many characters of the published greedy text the model writes before it departs from it."""
    prompt = model.to_tokens(START)
    ids = model.generate(prompt, max_new_tokens=STEPS + 1 - prompt.shape[1], temperature=0)[0, 1:]
    same = [ours == theirs for ours, theirs in zip(model.to_string(ids), text.rstrip("\n"), strict=False)]
    return {"text": float(same.index(False) if False in same else len(same))}


def modular_pairs(p: int) -> Int[Tensor, "pair 2"]:
    """All pairs (a, b) below p, b running first."""
    return torch.cartesian_prod(torch.arange(p), torch.arange(p))


def _adder(state: Mapping[str, Tensor], p: int, *, equals: bool) -> HookedGPT:
    """One layer, no norm, no biases but the MLP's; with `equals` causal, and a token p that stands for "="."""
    config = GPTConfig(
        n_layers=1, n_heads=4, d_model=128, d_mlp=512, act_fn="relu", norm=None, n_ctx=2 + equals, d_vocab=p + equals,
        causal=equals, bias_qkv=False, bias_out=False, tied=False,
    )  # fmt: skip
    return HookedGPT.from_state_dict(state, config)


def clock(state: Mapping[str, Tensor]) -> Measured:
    """Right answers, and distance irrelevance (see the top of this file)."""
    p = 59
    pairs = modular_pairs(p)
    answer = pairs.sum(1) % p
    logits = _adder(state, p, equals=False)(pairs)[:, -1]
    right = logits.gather(1, answer[:, None])[:, 0].double()
    table = torch.empty(p, p, dtype=torch.float64)  # [sum difference]
    table[answer, (pairs[:, 0] - pairs[:, 1]) % p] = right
    irrelevance = table.std(0, correction=0).mean() / table.std(correction=0)
    return {"correct": float((logits.argmax(-1) == answer).sum()), "irrelevance": float(irrelevance)}


def grokking(file: Mapping[str, Any]) -> Measured:
    """Losses of the file's own split, loss of the whole table, and the key frequencies of the embedding."""
    p, saved = int(file["config"]["p"]), {k: x for k, x in file["model"].items() if isinstance(x, Tensor)}
    order = list(range(p * p))
    random.Random(file["config"]["seed"]).shuffle(order)
    train = int(file["config"]["frac_train"] * p * p)
    model = _adder(saved, p, equals=True)
    out: dict[str, float | str] = {"full": float(_losses(model.to(torch.float64), p).mean())}
    for key, state in ((" saved", saved), ("", before_last_update(saved, file["optimizer"]))):
        losses = _losses(_adder(state, p, equals=True), p)[order]
        out |= {f"train{key}": float(losses[:train].mean()), f"test{key}": float(losses[train:].mean())}
    power = torch.fft.rfft(model.W_E[:p].double(), dim=0).abs().square().sum(1)[1:]
    out["frequencies"] = " ".join(str(i + 1) for i in power.argsort(descending=True)[:5].tolist())
    return out


def _losses(model: HookedGPT, p: int) -> Float[Tensor, " pair"]:
    """Cross-entropy of a + b mod p after "a b =", in nats, in float64: in float32 it would round to zero."""
    pairs = modular_pairs(p)
    logits = model(F.pad(pairs, (0, 1), value=p))[:, -1]
    return F.cross_entropy(logits.double(), pairs.sum(1) % p, reduction="none")


def before_last_update(state: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights before AdamW's last step, from its moments after it; float32, as in training.

    A step is w <- (1 - lr decay) w - lr m / (sqrt(v) + eps), with m and v corrected for their start at zero.
    """
    group, out = optimizer["param_groups"][0], dict(state)
    rate, decay, eps, (beta_1, beta_2) = (group[name] for name in ("lr", "weight_decay", "eps", "betas"))
    names = [name for name in state if not name.endswith("mask")]
    for name, number in zip(names, group["params"], strict=True):
        moments = optimizer["state"][number]
        steps = int(moments["step"])
        mean = moments["exp_avg"] / (1 - beta_1**steps)
        size = (moments["exp_avg_sq"] / (1 - beta_2**steps)).sqrt() + eps
        out[name] = (state[name] + rate * mean / size) / (1 - rate * decay)
    return out


def _torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


READERS: Mapping[str, Callable[[Path], Any]] = {
    "arena/palindrome_classifier.pt": _torch,
    "arena/palindromes.npz": _arrays,
    "arena/brackets_model_state_dict.pt": _torch,
    "stories260K/stories260K.bin": HookedGPT.from_pretrained,
    "stories260K/tok512.bin": lambda path: None,  # read with the model
    "stories260K/greedy.txt": lambda path: path.read_text(encoding="utf-8"),
    "pizza/model_l8k1hzciux.pt": _torch,
    "grokking/wd_10-1_mod_addition.pth": _torch,
}
"""Each file of the zoo that is read, and how."""

DEFINITIONS = (
    "Logits are read at the last position. Palindromes: correct - wrong, the mean of 2,500 sequences, on weights with "
    "norms and value biases folded and writing weights centred; mean-ablated is the head's mean over these sequences, "
    "each position its own (mean_over_texts). Distance irrelevance (Zhong et al. 2023, definition 4.2): the standard "
    "deviation of the correct logit over pairs with the same a - b, averaged over these differences, by that over all "
    "pairs. Grokking: the file's own split (30 % of the pairs, Python's random, the file's seed); its losses were "
    "recorded before the last update of its weights, which is taken back by AdamW's moments in the file."
)

MEASURES: Mapping[str, tuple[Callable[..., Measured], tuple[str, ...]]] = {
    "palindromes": (palindromes, ("arena/palindrome_classifier.pt", "arena/palindromes.npz")),
    "brackets": (brackets, ("arena/brackets_model_state_dict.pt",)),
    "stories260K": (stories, ("stories260K/stories260K.bin", "stories260K/tok512.bin", "stories260K/greedy.txt")),
    "clock": (clock, ("pizza/model_l8k1hzciux.pt",)),
    "grokking": (grokking, ("grokking/wd_10-1_mod_addition.pth",)),
}
"""Model -> what measures its figures, and the files that this takes, in the order of its arguments."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Zoo:
    """The files of a zoo that are there, read."""

    ALONE = True  # on the command line it takes the place of model and text

    directory: str
    files: Mapping[str, Any]
    """Path in the directory -> content."""

    @classmethod
    def load(cls, directory: str) -> "Zoo":
        """Raises NotFoundError where none of the files is there, LoadError for one that cannot be read."""
        root = Path(directory).expanduser()
        there = [name for name in READERS if (root / name).is_file()]
        if not there:
            raise NotFoundError(
                f"{directory} has no file of the zoo", f"expected some of {', '.join(list(READERS)[:2])}, ..."
            )
        return cls(directory=directory, files={name: _read(root / name, READERS[name]) for name in there})

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in READERS if name not in self.files)


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise LoadError(f"{path} cannot be read: {why}", "expected the file as it was published") from None


@dataclass(frozen=True, kw_only=True)
class ZooResult(Result):
    """What was published about each model of a zoo, and what was measured."""

    directory: str
    measured: Mapping[str, Measured]
    """Model -> its measured figures; a model whose files are not all there is left out."""
    missing: tuple[str, ...]
    """Files that are not there."""

    @property
    def passed(self) -> bool:
        """Whether everything that ran agreed."""
        return all(figure.agrees(value) for figure, value in self._ran())

    def _ran(self) -> list[tuple[Figure, float | str]]:
        return [(f, self.measured[f.model][f.key]) for f in FIGURES if f.model in self.measured]

    @property
    def remark(self) -> str:
        """What was not run, and why; may be empty."""
        lines = []
        for model, (_, files) in MEASURES.items():
            if lacking := [name for name in files if name in self.missing]:
                lines.append(f"{self.directory} lacks {' and '.join(lacking)}: the rows of {model} were not run.")
        return " ".join(lines)

    def facts(self) -> dict[str, Any]:
        """Whether everything that ran agreed, and what was not run."""
        return {"passed": self.passed, "missing": list(self.missing), "remark": self.remark}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a published figure: model, what, published, measured, difference, tolerance, agrees, source.

        `published` and `measured` are text; what was not run has no measured value.
        """
        rows = []
        for figure in FIGURES:
            value = self.measured.get(figure.model, {}).get(figure.key)
            number = value if figure.is_number and not isinstance(value, str) else None
            rows.append({
                "model": figure.model, "what": figure.what, "published": figure.published,
                "measured": None if value is None else figure.shown(value),
                "difference": None if number is None else number - float(figure.published),
                "tolerance": figure.tolerance, "agrees": None if value is None else figure.agrees(value),
                "source": figure.source,
            })  # fmt: skip
        return pd.DataFrame(rows).astype({"difference": float, "tolerance": float})

    def panels(self) -> list[Panel]:
        frame = self.to_dataframe().dropna(subset=["measured"]).reset_index(drop=True)
        frame["verdict"] = frame["agrees"].map({True: "agrees", False: "DIFFERS"})
        caption = "A figure agrees when it is the published one to the last digit printed."
        shown = frame[["source", "what", "published", "measured", "verdict"]]
        left = [Note("not-run", "Not run here", text=self.remark)] if self.remark else []
        return [
            Table("figures", "Published and measured", caption, frame=shown), *left,
            Note("definitions", "How they are measured", text=DEFINITIONS),
        ]  # fmt: skip

    def findings(self) -> list[Finding]:
        ran = self._ran()
        good = sum(figure.agrees(value) for figure, value in ran)
        text = f"{good} of {len(ran)} figures known of the models of {self.directory} are reproduced to the last digit "
        if good < len(ran):
            share = good / len(ran)
            return [Finding(f"{text}printed.", "figures", 1.0, share, "share of figures", kind="warning")]
        return [Finding(f"{text}printed.", "figures", 0.6, 1.0, "share of figures", kind="size")]


@torch.no_grad()
def measure(zoo: Zoo) -> ZooResult:
    """Every published figure of the models whose files are there. Raises LoadError for a file of other contents."""
    there = [model for model, (_, files) in MEASURES.items() if not set(files) & set(zoo.missing)]
    measured = {}
    for model in track(there):
        function, files = MEASURES[model]
        try:
            measured[model] = function(*(zoo.files[name] for name in files))
        except KeyError as error:
            raise LoadError(
                f"{zoo.directory}/{files[0]} has no {error}", "expected the file as it was published"
            ) from None
    return ZooResult(directory=zoo.directory, measured=measured, missing=zoo.missing)
