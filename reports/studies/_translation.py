"""The items of the illustrated study that need an encoder: translation (S2.4), and models of other kinds (S2.5)."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from analyses.attention_patterns import attention_patterns
from analyses.shared.panels import Note, Panel, Result, Table
from analyses.shared.word_alignment import cross_ablation, pronoun_places, pronoun_reference, word_alignment
from interp.errors import InputError
from interp.models.encoder import HookedEncoder
from interp.models.encoder_config import EncoderConfig
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.training.phrases import Sentence, pronoun_pairs, reference, sentences
from interp.training.translation import exact_share
from reports.studies._parts import Claim, Item, Range, at_least, exactly

SMALL = "fr-en"
"""The bundled translation model."""
SENTENCE, MEANING = "Je suis étudiant.", "I am a student."
PRONOUN = "La pomme est rouge et elle est bonne."
LONGER = "L'animal n'a pas traversé la rue parce qu'il était trop fatigué."
PAIRS = 60
READ = "The animal did not cross the street because it was too tired."


def given(option: str, name: str) -> str:
    """The directory of a larger model: as asked for, or of this name in the folder INTERP_MODELS; else empty."""
    folder = os.environ.get("INTERP_MODELS", "")
    found = Path(folder) / name
    return option or (str(found) if folder and found.is_dir() else "")


@cache
def translator(source: str) -> HookedEncoderDecoder:
    return HookedEncoderDecoder.from_pretrained(source, device="cpu")


def held_out(seed: int, count: int = 200, *, refers: bool = False) -> list[Sentence]:
    """Sentences that training never saw; those in which a pronoun could take up one of two nouns, if asked for."""
    drawn = sentences(f"study {seed}", "held out")
    return list(islice((one for one in drawn if not refers or reference(one) is not None), count))


def runs(larger: str, encoder: str, seed: int) -> dict[str, Callable[[], Result]]:
    """What the two items show."""
    found: dict[str, Callable[[], Result]] = {
        "alignment": lambda: word_alignment(translator(SMALL), held_out(seed), seed=seed),
        "pronoun": lambda: pronoun_reference(translator(SMALL), held_out(seed, refers=True)),
        "agreement": lambda: pronoun_places(translator(SMALL), list(islice(pronoun_pairs(seed), PAIRS))),
        "meaning": lambda: pronoun_places(
            translator(SMALL), list(islice(pronoun_pairs(seed, same_pronoun=True), PAIRS))
        ),
        "blind": lambda: cross_ablation(translator(SMALL), [one.french for one in held_out(seed)[:12]]),
        "small": lambda: attention_patterns(translator(SMALL), PRONOUN),
    }
    if larger:
        found["larger"] = lambda: attention_patterns(translator(larger), LONGER)
        found["larger_alignment"] = lambda: word_alignment(translator(larger), held_out(seed, 40), seed=seed)
    if encoder:
        found["bert"] = lambda: attention_patterns(HookedEncoder.from_pretrained(encoder, device="cpu"), READ)
    return found


def translation_item(larger: str, seed: int = 0) -> Item:
    """S2.4."""
    small = translator(SMALL)
    config = translator(larger or SMALL).config
    shows: list[Any] = [
        _said("small-says", "What the small model writes", small, (SENTENCE, PRONOUN)),
        "small.encoder-patterns",
        "small.decoder-patterns",
        "small.cross-patterns",
        "alignment.heads",
        "alignment.controls",
        "pronoun.heads",
        "agreement.pairs",
        _renamed("agreement.places", "The pronoun changed: where the decoder finds it"),
        _renamed("meaning.places", "The same pronoun, other nouns: where the decoder finds what it means"),
        "blind.translations",
    ]
    claims = [
        Claim(
            text=f"\u201c{SENTENCE[:-1]}\u201d becomes \u201c{MEANING[:-1]}\u201d.",
            value=lambda r: float(small.translate(SENTENCE) == MEANING),
            measured="1 if the small model writes just that; training never joined these words",
            holds=exactly(1),
        ),
        Claim(
            text="Six encoders feed six decoders.",
            value=lambda r: float(config.n_encoder_layers + config.n_decoder_layers),
            measured=f"encoder and decoder layers of the {'larger' if larger else 'small'} model",
            holds=exactly(12),
            corrected=at_least(2),
            correction=f"it is the paper's; this one has {config.n_encoder_layers} and {config.n_decoder_layers}.",
        ),
        Claim(
            text="It translates sentences that it has never seen.",
            value=lambda r: exact_share(small, held_out(seed, 300)),
            measured="share of 300 held-out sentences translated word for word",
            holds=at_least(0.98),
        ),
        Claim(
            text="An encoder looks at the whole sentence, ahead as well as back.",
            value=lambda r: float(np.triu(r["small"].stacks[0].patterns[0], 1).sum(-1).mean()),
            measured="mean weight on tokens behind the one that looks, all heads",
            holds=at_least(0.05),
        ),
        Claim(
            text="The decoder finds the word to translate through cross-attention.",
            value=lambda r: r["alignment"].accuracy - r["alignment"].control,
            measured="share of right words, best head, less the same with words shuffled",
            holds=at_least(0.2),
        ),
        Claim(
            text="What a pronoun stands for is seen in the encoder's attention.",
            value=lambda r: r["pronoun"].accuracy,
            measured="sentences in which the best head prefers the noun meant to the other one (chance 0.5)",
            holds=at_least(0.7),
        ),
        Claim(
            text="Agreement alone decides it: where il and elle change places, so do it and she or he.",
            value=lambda r: float(r["agreement"].right.mean()),
            measured="share of pairs of sentences that differ only in agreement with both pronouns right",
            holds=at_least(0.95),
        ),
        Claim(
            text="The encoder writes what a pronoun means into the pronoun's own place.",
            value=lambda r: r["meaning"].share("pronoun"),
            measured="share of sentences whose pronoun turns when the encoder's output at the pronoun comes from a "
            "sentence where the same word means the other noun",
            holds=at_least(0.5),
        ),
        Claim(
            text="The pronoun is translated by what it stands for: il and elle become it, he or she.",
            value=lambda r: float(r["pronoun"].right.mean()),
            measured="share of held-out sentences with the right pronoun",
            holds=at_least(0.95),
        ),
        Claim(
            text="What the source says reaches the decoder in no other way.",
            value=lambda r: float(len(set(r["blind"].without))),
            measured="different translations of 12 sentences without cross-attention",
            holds=exactly(1),
        ),
    ]
    if larger:
        real = translator(larger)
        shows += [
            _said("larger-says", "What the larger model writes", real, (SENTENCE, LONGER)),
            _renamed("larger.encoder-patterns", "The larger model's encoder"),
            _renamed("larger.cross-patterns", "The larger model's cross-attention"),
            _renamed("larger_alignment.heads", "How often the larger model's heads look at the word they translate"),
        ]
        claims.append(
            Claim(
                text="In a real model too, a cross-attention head finds the word to translate.",
                value=lambda r: r["larger_alignment"].accuracy - r["larger_alignment"].control,
                measured="share of right words, the larger model's best head, less the same with words shuffled",
                holds=at_least(0.5),
            )
        )
        claims.append(
            Claim(
                text="A real model of six and six layers says what the article's does.",
                value=lambda r: float(_shared(real.translate(SENTENCE), MEANING)),
                measured="share of the article's words in what the larger model writes",
                holds=at_least(0.99),
                corrected=at_least(0.5),
                correction="contractions count as the same words: I'm a student.",
            )
        )
    else:
        shows.append(
            Note(
                key="larger-missing",
                title="No larger model here",
                text="With --translator DIR, such as a directory of opus-mt-fr-en, this page also shows a real model "
                "of six and six layers.",
            )
        )
    return Item(
        address="S2.4",
        title="Encoder and decoder",
        words="The encoder reads the French sentence; the decoder writes the English one, looking at what it has "
        "written (self-attention) and at what the encoder has made of the source (cross-attention).\n\n"
        "Look at the cross-attention heads: rows are English tokens, columns French ones. Some heads follow the "
        "sentence word by word. Then look at the pronoun: the translation is right, so the model knows what it stands "
        "for, but the encoder's attention need not show it.\n\n"
        "The bar charts say how the small model knows. They take the encoder's output at one place from another "
        "sentence. Where il and elle change places, the pronoun's own place decides. Where the same word means another "
        "noun, the subject's place does: the decoder compares the subject with the pronoun itself.",
        shows=tuple(shows),
        claims=tuple(claims),
        differs="The article's model was trained on millions of sentences. This one has learned a small grammar of "
        "generated sentences in minutes, and knows no other words; its architecture is the same.",
    )


def others_item(encoder: str) -> Item:
    """S2.5."""
    missing = Note(
        key="bert-missing",
        title="No trained encoder here",
        text="With --encoder DIR, a directory of a BERT, this page shows its attention too.",
    )
    return Item(
        address="S2.5",
        title="Relatives: encoders alone",
        words="BERT is the encoder alone, trained to fill in masked words. ViT is the same encoder over patches of an "
        "image instead of words.\n\n"
        "Look at the measurements: what stands behind a token changes what an encoder makes of it. In a GPT it cannot.",
        shows=(reach_table(), "bert.encoder-patterns" if encoder else missing),
        claims=(
            Claim(
                text="BERT reads in both directions.",
                value=lambda r: _reached(_words_encoder()),
                measured="change of the first output when the last token changes, over its length; random weights",
                holds=at_least(1e-4),
            ),
            Claim(
                text="ViT cuts the image into patches and lets all of them meet.",
                value=lambda r: _reached(_patch_encoder()),
                measured="change of the first output when the last patch changes, over its length; random weights",
                holds=at_least(1e-4),
            ),
            Claim(
                text="An image of 224 x 224 in patches of 16 x 16 is 196 tokens.",
                value=lambda r: float(_patches(224, 16)),
                measured="patches, without the class token",
                holds=Range(196, 196),
            ),
        ),
        differs="DETR, CLIP and DALL-E join such parts to other networks; they are out of this project's scope.",
    )


def reach_table() -> Table:
    """How far a change at the end of the input reaches back, in an encoder over words and one over patches."""
    cases = {"words (BERT's architecture)": _words_encoder(), "patches (ViT's architecture)": _patch_encoder()}
    rows = []
    for name, (model, one, other) in cases.items():
        with torch.no_grad():
            before, after = model(one)[0], model(other)[0]
        moved = ((after - before).norm(dim=-1) / before.norm(dim=-1)).numpy()
        rows.append({"encoder over": name, "first": moved[0], "middle": moved[len(moved) // 2], "last": moved[-1]})
    return Table(
        key="reach",
        title="How far a change of the last token moves each output",
        caption="Length of the change over the output's own, random weights. In a GPT all but the last would be zero.",
        frame=pd.DataFrame(rows),
    )


def _renamed(show: str, title: str) -> Callable[[Any], Panel]:
    """A panel of a run under another title."""
    run, _, key = show.partition(".")
    return lambda r: replace(
        next(x for x in r[run].panels() if x.key == key), key=f"{run.replace('_', '-')}-{key}", title=title
    )


def _said(key: str, title: str, model: HookedEncoderDecoder, texts: tuple[str, ...]) -> Callable[[Any], Panel]:
    return lambda r: Note(key=key, title=title, text=" ".join(f"{text} → {model.translate(text)}" for text in texts))


def _shared(said: str, meant: str) -> float:
    """Share of the words meant that are said."""
    words = set(said.strip(".").lower().split())
    wanted = meant.strip(".").lower().split()
    return sum(word in words for word in wanted) / len(wanted)


def _words_encoder() -> tuple[HookedEncoder, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HookedEncoder(EncoderConfig(n_layers=2, n_heads=4, d_model=32, n_ctx=16, d_vocab=50, init_std=0.2))
        tokens = torch.randint(0, 50, (1, 12))
    other = tokens.clone()
    other[0, -1] = (tokens[0, -1] + 1) % 50
    return model, tokens, other


def _patch_encoder() -> tuple[HookedEncoder, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = EncoderConfig(
            n_layers=2, n_heads=4, d_model=32, image_size=(16, 16), patch_size=(4, 4), post_norm=False, init_std=0.2
        )
        model, image = HookedEncoder(config), torch.rand(1, 3, 16, 16)
    other = image.clone()
    other[:, :, -4:, -4:] = 0.0
    return model, image, other


@torch.no_grad()
def _reached(case: tuple[HookedEncoder, torch.Tensor, torch.Tensor]) -> float:
    """How far the first output moves when only the end of the input changes, over its length."""
    model, one, other = case
    first, second = (model(x)[:, 0] for x in (one, other))
    return float((first - second).norm() / first.norm())


def _patches(side: int, patch: int) -> int:
    config = EncoderConfig(
        n_layers=1, n_heads=1, d_model=4, image_size=(side, side), patch_size=(patch, patch), post_norm=False
    )
    return config.n_ctx - 1


def check(larger: str, encoder: str) -> None:
    """Raises InputError for a folder that is not there."""
    for option, folder in (("--translator", larger), ("--encoder", encoder)):
        if folder and not Path(folder).is_dir():
            raise InputError(f"{option} {folder}", "expected a directory in Hugging Face layout")
