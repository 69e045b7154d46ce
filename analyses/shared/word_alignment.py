"""Cross-attention as word alignment, measured against a grammar that knows which word stands for which.

For each token that the decoder writes, a head's word is the source word it attends to most when it writes that token
(the end token left out). Sentences come from `interp.training.phrases`, whose links are the truth; marks and words
that stand for nothing in the source are not counted. The best head is chosen on the first half of the sentences and
measured on the second. Two controls: the same attention against the links of another written token of the same
sentence, drawn at random, and the source token at the same place as the written one.

What a pronoun takes up is measured on sentences with two nouns of which it can mean one: in the encoder, whether its
position attends more to the noun it agrees with than to the other one (half, by chance).

What the numbers do not show: that the attention is used. `cross_ablation` shows that for cross-attention as a whole.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from analyses.shared.panels import Bars, Matrix, Panel, Result, Table
from analyses.shared.patterns import read_stacks
from analyses.shared.stacks import attentions, readings
from analyses.shared.translations import SEPARATOR, translations
from interp.errors import InputError
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.training.phrases import Sentence, reference

PLACES = ("subject", "object", "pronoun", "verb", "adjective", "full stop", "end token", "all others")
"""Of a pair's sentences, where the encoder's output is exchanged."""


@dataclass(frozen=True, kw_only=True)
class WordAlignmentResult(Result):
    """How often the word attended to is the word translated."""

    right: np.ndarray
    """[sentence layer head] tokens written whose source word the head finds."""
    shuffled: np.ndarray
    """[sentence layer head] the same against another written token's links."""
    diagonal: np.ndarray
    """[sentence] the same for the source token at the same place."""
    written: np.ndarray
    """[sentence] tokens written that stand for a source word."""

    def share(self, counts: np.ndarray, half: int) -> np.ndarray:
        """Counts [sentence ...] as shares of the tokens, in the first (0) or second (1) half of the sentences."""
        middle = len(self.written) // 2
        part = slice(None, middle) if half == 0 else slice(middle, None)
        shares: np.ndarray = counts[part].sum(0) / self.written[part].sum()
        return shares

    @property
    def best(self) -> tuple[int, int]:
        """Layer and head that align best in the first half."""
        layer, head = divmod(int(self.share(self.right, 0).argmax()), self.right.shape[2])
        return layer, head

    @property
    def name(self) -> str:
        return "L{}H{}".format(*self.best)

    @property
    def accuracy(self) -> float:
        """Of the best head, in the second half."""
        return float(self.share(self.right, 1)[self.best])

    @property
    def control(self) -> float:
        """Of the best head against shuffled words, in the second half."""
        return float(self.share(self.shuffled, 1)[self.best])

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head: layer head accuracy shuffled, in the second half."""
        layer, head = (axis.ravel() for axis in np.indices(self.right.shape[1:]))
        accuracy, shuffled = self.share(self.right, 1).ravel(), self.share(self.shuffled, 1).ravel()
        return pd.DataFrame({"layer": layer, "head": head, "accuracy": accuracy, "shuffled": shuffled})

    def panels(self) -> list[Panel]:
        values = self.share(self.right, 1)
        rows = {
            f"best head, {self.name}": self.accuracy,
            "the same head, words shuffled": self.control,
            "source token at the same place": float(self.share(self.diagonal, 1)),
        }
        return [
            Matrix(
                key="heads",
                title="How often each cross-attention head looks at the word it translates",
                caption=f"Share of {self.written[len(self.written) // 2 :].sum()} tokens written for which the source "
                "word with the most attention is the right one.",
                values=values,
                rows=tuple(map(str, range(values.shape[0]))),
                columns=tuple(map(str, range(values.shape[1]))),
                row_axis="layer",
                column_axis="head",
                unit="share of tokens",
            ),
            Table(
                key="controls",
                title="The best head and two controls",
                caption="The head was chosen on other sentences.",
                frame=pd.DataFrame({"looks at": rows.keys(), "right": rows.values()}),
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class ReferenceResult(Result):
    """What a pronoun looks at in the encoder, when two nouns could be meant."""

    meant: np.ndarray
    """[sentence layer head] attention from the pronoun to the noun it agrees with."""
    other: np.ndarray
    """[sentence layer head] to the other noun."""
    right: np.ndarray
    """[sentence] whether the translation has the right pronoun: it, he, she or they."""

    @property
    def better(self) -> np.ndarray:
        """[sentence layer head] whether the meant noun gets more."""
        return self.meant > self.other

    @property
    def best(self) -> tuple[int, int]:
        """Layer and head that tell the nouns apart best in the first half."""
        shares = self.better[: len(self.right) // 2].mean(0)
        layer, head = divmod(int(shares.argmax()), shares.shape[1])
        return layer, head

    @property
    def accuracy(self) -> float:
        """Of the best head, in the second half."""
        return float(self.better[len(self.right) // 2 :].mean(0)[self.best])

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head: layer head meant other (mean shares of attention) accuracy, over all sentences."""
        layer, head = (axis.ravel() for axis in np.indices(self.meant.shape[1:]))
        columns = {"meant": self.meant, "other": self.other, "accuracy": self.better}
        return pd.DataFrame({"layer": layer, "head": head} | {k: x.mean(0).ravel() for k, x in columns.items()})

    def panels(self) -> list[Panel]:
        values = self.better[len(self.right) // 2 :].mean(0)
        return [
            Matrix(
                key="heads",
                title="Which encoder heads find what il and elle mean",
                caption="Share of sentences with two nouns in which the pronoun attends more to the one it agrees "
                f"with; chance is one half. {len(self.right) - len(self.right) // 2} sentences.",
                values=values,
                rows=tuple(map(str, range(values.shape[0]))),
                columns=tuple(map(str, range(values.shape[1]))),
                row_axis="layer",
                column_axis="head",
                unit="share of sentences",
            )
        ]


@dataclass(frozen=True, kw_only=True)
class PronounPairsResult(Result):
    """Pairs of sentences that differ in what the pronoun means (`interp.training.phrases.pronoun_pairs`)."""

    pairs: tuple[tuple[Sentence, Sentence], ...]
    written: tuple[tuple[str, str], ...]
    """The model's translations of both."""
    places: tuple[str, ...]
    flipped: np.ndarray
    """[pair direction place] whether the decoder prefers the other sentence's pronoun once the encoder's output at this
    place comes from the other sentence."""

    @property
    def right(self) -> np.ndarray:
        """[pair] whether both have the right pronoun."""
        told = [[_after_because(one.english) for one in pair] for pair in self.pairs]
        said = [[_after_because(text) for text in texts] for texts in self.written]
        return np.array([a == b for a, b in zip(told, said, strict=True)])

    def share(self, place: str) -> float:
        """Share of sentences whose pronoun this place alone turns."""
        return float(self.flipped[..., self.places.index(place)].mean())

    def to_dataframe(self) -> pd.DataFrame:
        """One row a sentence: pair french translation right, and for each place whether it turns the pronoun."""
        rows = []
        for number, (pair, texts) in enumerate(zip(self.pairs, self.written, strict=True)):
            for way in range(2):
                turned = dict(zip(self.places, self.flipped[number, way].tolist(), strict=True))
                right = _after_because(texts[way]) == _after_because(pair[way].english)
                rows.append(
                    {"pair": number, "french": pair[way].french, "translation": texts[way], "right": right} | turned
                )
        return pd.DataFrame(rows)

    def panels(self) -> list[Panel]:
        count = self.flipped.shape[0] * 2
        return [
            Table(
                key="pairs",
                title="Pairs that differ in what the pronoun means",
                caption="The first pairs, with the model's translations.",
                frame=self.to_dataframe()[["french", "translation"]].head(6),
            ),
            Bars(
                key="places",
                title="Where the decoder finds what the pronoun means",
                caption=f"The encoder's output at one place is taken from the other sentence of the pair. Share of "
                f"{count} sentences in which this alone turns the pronoun into the other's.",
                labels=self.places,
                values=np.array([self.share(place) for place in self.places]),
                unit="share of sentences",
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class CrossAblationResult(Result):
    """Translations with and without cross-attention."""

    source: tuple[str, ...]
    whole: tuple[str, ...]
    without: tuple[str, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """One row a sentence: source, translation, without cross-attention."""
        columns = {"source": self.source, "translation": self.whole, "without cross-attention": self.without}
        return pd.DataFrame(columns)

    def panels(self) -> list[Panel]:
        caption = "The outputs of all cross-attention layers are set to zero: the decoder no longer knows the source."
        title = "Without cross-attention the source is lost"
        return [Table(key="translations", title=title, caption=caption, frame=self.to_dataframe())]


def word_alignment(model: HookedEncoderDecoder, sentences: Sequence[Sentence], *, seed: int = 0) -> WordAlignmentResult:
    """Every cross-attention head's word alignment on sentences and their right translations.

    Raises InputError for fewer than two sentences, or when the tokens of a sentence do not spell it.
    """
    if len(sentences) < 2:
        raise InputError(
            f"{len(sentences)} sentences", "expected at least two: one to choose a head, one to measure it"
        )
    rng = np.random.default_rng(seed)
    found = _patterns(model, sentences)
    counts: dict[str, list[np.ndarray]] = {"right": [], "shuffled": [], "diagonal": [], "written": []}
    for number, sentence in enumerate(sentences):
        source, target = _words_of(model, sentence)
        pattern = found[number][2][..., : len(source)]  # the end token left out
        links = [_linked(sentence, word) for word in target]
        places = [place for place, linked in enumerate(links) if linked]
        looked = np.array(source)[pattern[:, :, places].argmax(-1)]  # [layer head place]
        straight = [source[min(place, len(source) - 1)] for place in places]
        drawn = rng.permutation(places)
        counts["right"].append(_hits(looked, [links[place] for place in places]))
        counts["shuffled"].append(_hits(looked, [links[place] for place in drawn]))
        counts["diagonal"].append(_hits(np.array(straight), [links[place] for place in places]))
        counts["written"].append(np.array(len(places)))
    return WordAlignmentResult(**{name: np.stack(rows) for name, rows in counts.items()})


def pronoun_reference(model: HookedEncoderDecoder, sentences: Sequence[Sentence]) -> ReferenceResult:
    """What pronouns attend to in the encoder. Raises InputError for fewer than two sentences with two nouns."""
    chosen = [(one, place) for one in sentences if (place := reference(one)) is not None]
    if len(chosen) < 2:
        raise InputError("too few sentences in which a pronoun could take up one of two nouns", "expected at least two")
    found = _patterns(model, [one for one, _ in chosen])
    meant, other, right = [], [], []
    for number, (sentence, places) in enumerate(chosen):
        source = np.array(_words_of(model, sentence)[0])
        pronoun, noun, rival = (np.flatnonzero(source == place) for place in places)
        pattern = found[number][0][:, :, pronoun].mean(2)  # [layer head key]
        meant.append(pattern[..., noun].sum(-1))
        other.append(pattern[..., rival].sum(-1))
    written = model.translate([one.french for one, _ in chosen])
    for text, (sentence, _) in zip(written, chosen, strict=True):
        right.append(_after_because(text) == _after_because(sentence.english))
    return ReferenceResult(meant=np.stack(meant), other=np.stack(other), right=np.array(right))


def pronoun_places(model: HookedEncoderDecoder, pairs: Sequence[tuple[Sentence, Sentence]]) -> PronounPairsResult:
    """Translations of pairs (`phrases.pronoun_pairs`), and which place of the encoder's output turns it.

    Pairs whose sentences differ in length in tokens are left out. Raises InputError when none is left.
    """
    kept, flipped = [], []
    for pair in pairs:
        sources = [model.to_source(one.french) for one in pair]
        if sources[0].shape == sources[1].shape:
            kept.append(pair)
            flipped.append(_turned(model, pair, sources))
    if not kept:
        raise InputError("no pair of sentences has the same number of tokens", "expected at least one pair")
    texts = model.translate([one.french for pair in kept for one in pair])
    written = tuple(zip(texts[::2], texts[1::2], strict=True))
    return PronounPairsResult(pairs=tuple(kept), written=written, places=PLACES, flipped=np.stack(flipped))


@torch.no_grad()
def _turned(
    model: HookedEncoderDecoder, pair: tuple[Sentence, Sentence], sources: Sequence[torch.Tensor]
) -> np.ndarray:
    """[direction place] for one pair."""
    found = reference(pair[0])
    assert found is not None
    pronoun, first, second = found[0], *sorted(found[1:])
    memory = [model.encode(source) for source in sources]
    pronouns = [model.to_single_token(" " + _after_because(one.english)) for one in pair]
    read = model.to_target(pair[0].english[: pair[0].english.index("because") + len("because")])
    words = np.array([*_words_of(model, pair[0])[0], -1])
    groups = [{first}, {second}, {pronoun}, {pronoun + 1}, {pronoun + 2}, {pronoun + 3}]
    at = [np.isin(words, list(group)) for group in groups] + [words == -1]
    at.append(~np.any(at, axis=0))
    rows = []
    for own, other in ((0, 1), (1, 0)):
        taken = torch.from_numpy(np.stack(at)).to(memory[0].device)[..., None]
        mixed = torch.where(taken, memory[other], memory[own])  # [place source_pos d_model]
        logits = model.decode(read.expand(len(at), -1), mixed)[:, -1]
        rows.append((logits[:, pronouns[other]] > logits[:, pronouns[own]]).cpu().numpy())
    return np.stack(rows)


def cross_ablation(model: HookedEncoderDecoder, texts: Sequence[str]) -> CrossAblationResult:
    """Greedy translations of texts as they are, and with every cross-attention output set to zero."""
    whole = model.translate(list(texts))
    with model.hooks([("decoder.*.hook_cross_attn_out", lambda x, hook: torch.zeros_like(x))]):
        without = model.translate(list(texts), max_length=min(32, model.config.n_ctx))
    return CrossAblationResult(source=tuple(texts), whole=tuple(whole), without=tuple(without))


def _patterns(model: HookedEncoderDecoder, sentences: Sequence[Sentence]) -> list[list[np.ndarray]]:
    """Of each sentence, the patterns [layer head query key] of encoder, decoder and cross-attention."""
    texts = [f"{one.french} {SEPARATOR} {one.english}" for one in sentences]
    runs = (read_stacks(model, attentions(model), text.run) for text in readings(model, texts))
    return [[pattern.numpy() for pattern, *_ in stacks] for stacks in runs]


def _words_of(model: HookedEncoderDecoder, sentence: Sentence) -> tuple[list[int], list[int]]:
    """The word that each source token, and each token written, belongs to; end tokens left out."""
    (one,) = translations(model, f"{sentence.french} {SEPARATOR} {sentence.english}")
    return (
        _words(model.to_str_tokens(one.source[:, :-1]), sentence.french, sentence.french_spans),
        _words(model.to_str_tokens(one.target[:, 1:]), sentence.english, sentence.english_spans),
    )


def _words(tokens: Sequence[str], text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    if "".join(tokens).strip() != text:
        raise InputError(f"the tokens spell {''.join(tokens)!r}", f"expected {text!r}")
    ends = np.cumsum([len(token) for token in tokens]) - (len("".join(tokens)) - len(text))
    return [next(n for n, (_, stop) in enumerate(spans) if end <= stop) for end in ends]


def _linked(sentence: Sentence, word: int) -> frozenset[int]:
    """The French words that an English one stands for; none for a mark."""
    start, end = sentence.english_spans[word]
    if not sentence.english[start:end][0].isalpha():
        return frozenset()
    return frozenset(french for french, english in sentence.links if english == word)


def _hits(looked: np.ndarray, links: Sequence[frozenset[int]]) -> np.ndarray:
    """[... place], links of each place -> [...] places where the word looked at is linked."""
    hits = [np.isin(looked[..., place], list(linked)) for place, linked in enumerate(links)]
    total: np.ndarray = np.stack(hits, axis=-1).sum(-1)
    return total


def _after_because(text: str) -> str:
    """The word after "because", where the pronoun stands ("it" of "it's"); "" without one."""
    found = re.search(r"\bbecause ([A-Za-z]+)", text)
    return found[1] if found else ""
