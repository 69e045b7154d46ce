"""Greedy and beam translation give transformers' tokens, with and without a cache, under hooks too."""

import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encoder_decoder import as_transformers, make_pair

from interp import HookedEncoderDecoder
from interp.errors import InputError
from interp.interventions import Replace
from interp.models.encoder_config import EncoderDecoderConfig
from interp.text.source_target import SentencePiecePair, SharedTokenizer
from interp.translation import translate_tokens

SPECIAL = {"d_vocab": 30, "n_ctx": 16, "pad_token": 29, "start_token": 29, "end_token": 0, "forbidden_tokens": (29,)}


def sources(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random sentences of 3 to 9 tokens that end with the end token, padded: ids and mask."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count,), generator=generator)
    tokens = torch.randint(1, 29, (count, 9), generator=generator)
    places = torch.arange(9)
    tokens = tokens.masked_fill(places == lengths[:, None], 0).masked_fill(places > lengths[:, None], 29)
    return tokens, (places <= lengths[:, None]).long()


@pytest.fixture(scope="module")
def learner() -> HookedEncoderDecoder:
    """A model that has half learnt to write the source backwards: translations of many lengths, some unsure."""
    torch.manual_seed(0)
    model = HookedEncoderDecoder(
        EncoderDecoderConfig(n_encoder_layers=1, n_decoder_layers=2, n_heads=2, d_model=32, **SPECIAL)  # type: ignore[arg-type]
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        source, mask = sources(48, step)
        target = torch.full((48, 10), 29)
        for row, length in enumerate(mask.sum(1).tolist()):
            target[row, 1 : length + 1] = torch.cat([source[row, : length - 1].flip(0), torch.zeros(1)])
        logits = model(source, target[:, :-1], source_mask=mask)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=29)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.double()


def with_options(model: HookedEncoderDecoder, **options: object) -> HookedEncoderDecoder:
    copy = HookedEncoderDecoder(replace(model.config, **options)).double()  # type: ignore[arg-type]
    copy.load_state_dict(model.state_dict())
    return copy


def trim(row: list[int]) -> list[int]:
    """Without the padding that transformers puts behind a finished sentence (the start is the same token)."""
    while len(row) > 1 and row[-1] == 29:
        row = row[:-1]
    return row


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize(
    "options", [{}, {"renormalize": True, "forced_end_token": 0}, {"length_penalty": 0.3}, {"n_ctx": 7}]
)
def test_translations_are_transformers_translations(learner, tmp_path, beams, options) -> None:
    model = with_options(learner, **options)
    twin = as_transformers(model, tmp_path)
    source, mask = sources(12, 1000)
    if "n_ctx" in options:
        source, mask = source[:, :7], mask[:, :7]
    ours = translate_tokens(model, source, mask, num_beams=beams)
    theirs = twin.generate(input_ids=source, attention_mask=mask, num_beams=beams, do_sample=False)
    assert ours == [trim(row) for row in theirs.tolist()]
    assert len({len(row) for row in ours}) > 3


def test_beams_change_translations_and_find_likelier_ones(learner) -> None:
    source, mask = sources(40, 1001)
    model = with_options(learner, length_penalty=0.0)
    greedy, beam = (translate_tokens(model, source, mask, num_beams=beams) for beams in (1, 6))
    pairs = [(i, a, b) for i, (a, b) in enumerate(zip(greedy, beam, strict=True)) if a != b and a[-1] == b[-1] == 0]
    assert len(pairs) > 3

    def score(i: int, row: list[int]) -> float:
        logits = model(source[i : i + 1, : int(mask[i].sum())], torch.tensor([row[:-1]])).log_softmax(-1)[0]
        return float(logits[torch.arange(len(row) - 1), row[1:]].sum().detach())

    better = [score(i, b) - score(i, a) for i, a, b in pairs]
    assert sum(gain > 0 for gain in better) >= 0.9 * len(better)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), beams=st.integers(1, 5), longest=st.integers(2, 16))
def test_the_cache_changes_no_token(learner, seed, beams, longest) -> None:
    options = {"num_beams": beams, "max_length": longest}
    source, mask = sources(3, seed)
    kept, recomputed = (translate_tokens(learner, source, mask, use_cache=cache, **options) for cache in (True, False))
    assert kept == recomputed


@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_changes_no_token_under_hooks(learner, beams) -> None:
    model, (source, _) = learner, sources(8, 2000)
    edits = [
        Replace(name="decoder.1.cross_attn.hook_k", head=1),
        Replace(name="decoder.0.attn.hook_z", head=0, pos=3),
        Replace(name="encoder.0.hook_mlp_out", pos=2),
    ]
    with model.hooks(edits):
        changed = translate_tokens(model, source, num_beams=beams)
        assert changed == translate_tokens(model, source, num_beams=beams, use_cache=False)
    assert changed != translate_tokens(model, source, num_beams=beams)


def test_with_enough_beams_the_search_is_exhaustive() -> None:
    """With every hypothesis followed, no sequence of up to three tokens scores higher."""
    model = make_pair(seed=3, d_vocab=6, n_ctx=8, pad_token=5, start_token=5, end_token=0, length_penalty=0.0)
    source = torch.randint(1, 5, (1, 4))
    found = translate_tokens(model, source, num_beams=36, max_length=4)[0]

    def score(row: list[int]) -> float:
        logits = model(source, torch.tensor([row[:-1]])).log_softmax(-1)[0]
        return float(sum(logits[at, token] for at, token in enumerate(row[1:])).detach())

    every = []
    for a in range(6):
        every.append([5, a] if a == 0 else None)
        for b in range(6) if a else ():
            every.append([5, a, b] if b == 0 else None)
            every += [[5, a, b, c] for c in range(6)] if b else []
    best = max((row for row in every if row), key=score)
    assert found == best


def test_a_translation_depends_on_the_source_only_through_cross_attention(learner) -> None:
    model, (source, _) = learner, sources(8, 3000)
    first, second = source[:4], source[4:]
    assert translate_tokens(model, first) != translate_tokens(model, second)
    with model.hooks([Replace(name=name) for name in model.match("cross_attn_out")]):
        assert translate_tokens(model, first) == translate_tokens(model, second)
        assert translate_tokens(model, first, num_beams=3) == translate_tokens(model, second, num_beams=3)


def test_shuffling_the_encoder_s_positions_changes_translations(learner) -> None:
    source, mask = sources(8, 4000)
    order = torch.tensor([3, 0, 6, 1, 8, 5, 2, 7, 4])
    clean = translate_tokens(learner, source, mask)
    with learner.hooks([("hook_source_pos_embed", lambda x, hook: x[:, order])]):
        shuffled = translate_tokens(learner, source, mask)
    assert sum(a != b for a, b in zip(shuffled, clean, strict=True)) >= 6
    target = torch.randint(1, 29, (8, 5))
    with learner.hooks([("hook_source_pos_embed", lambda x, hook: torch.zeros_like(x))]):  # now order is invisible
        moved = learner(source[:, order], target, source_mask=mask[:, order])
        torch.testing.assert_close(moved, learner(source, target, source_mask=mask), atol=1e-10, rtol=0)


def test_bad_options_are_refused() -> None:
    for options in ({"num_beams": 0}, {"max_length": 1}, {"max_length": 41}):
        with pytest.raises(InputError):
            translate_tokens(make_pair(), torch.ones(1, 3, dtype=torch.long), **options)


def test_one_tokenizer_for_both_languages(toy_tokenizer, tmp_path) -> None:
    pair = SharedTokenizer(toy_tokenizer.backend)
    model = make_pair(d_vocab=300, dtype=torch.float32)
    model.tokenizer = pair
    assert pair.to_string(pair.encode_source("The cat sat.")) == "The cat sat."
    source, target = model.to_pair("The cat sat.", "The dog")
    assert source[0, -1] == model.config.end_token
    assert target[0, 0] == model.config.start_token
    written = model.translate("The cat sat.", max_length=6)
    assert isinstance(written, str)
    assert model.translate(["The cat sat.", "The dog"], max_length=6)[0] == written
    with pytest.raises(InputError, match="empty"):
        model.translate(" ")
    model.save_pretrained(tmp_path)
    assert (
        HookedEncoderDecoder.from_pretrained(tmp_path, device="cpu").translate("The cat sat.", max_length=6) == written
    )


@pytest.fixture(scope="module")
def spm(tmp_path_factory) -> Path:
    """Two small sentencepiece models and their vocabulary, as Marian keeps them."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from conftest import TEXT

    directory = tmp_path_factory.mktemp("spm")
    (directory / "text.txt").write_text(TEXT.replace(". ", ".\n"))
    pieces: list[str] = []
    for side in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(directory / "text.txt"), model_prefix=str(directory / side), vocab_size=38, minloglevel=2
        )
        (directory / f"{side}.model").rename(directory / f"{side}.spm")
        model = sentencepiece.SentencePieceProcessor(model_file=str(directory / f"{side}.spm"))
        pieces += [model.id_to_piece(n) for n in range(3, len(model))]
    names = ["</s>", "<unk>", *dict.fromkeys(pieces), "<pad>"]
    (directory / "vocab.json").write_text(json.dumps({name: n for n, name in enumerate(names)}))
    return directory


def test_sentencepiece_pairs_are_transformers_marian_tokenizer(spm) -> None:
    ours = SentencePiecePair(spm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends sacremoses, which changes unusual punctuation only
        theirs = transformers.MarianTokenizer.from_pretrained(str(spm))
    for text in ("The cat sat on the mat.", "Mary gave", "zebra!", "  a   drink  "):
        ids = ours.encode_source(text)
        assert [*ids, ours.ids["</s>"]] == theirs(text).input_ids
        assert [*ours.encode_target(text), ours.ids["</s>"]] == theirs(text_target=text).input_ids
        if ours.ids["<unk>"] not in ids:
            assert ours.to_string(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_a_missing_package_is_named(spm, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match="pip install sentencepiece"):
        SentencePiecePair(spm).encode_source("The cat")


SENTENCES = """Je suis étudiant.
L'animal n'a pas traversé la rue parce qu'il était trop fatigué.
L'animal n'a pas traversé la rue parce qu'elle était trop large.
Il pleut depuis ce matin.
Où est la gare, s'il vous plaît ?
Nous avons acheté du pain et du fromage.
Le chat dort sur le canapé.
Elle ne m'a jamais répondu.
Pouvez-vous répéter plus lentement ?
La réunion aura lieu demain à neuf heures.
Les enfants jouent dans le jardin.
Je n'ai pas compris la question.
Ce livre est plus intéressant que l'autre.
Paris est la capitale de la France.
Il faudrait que tu viennes avant midi.
Mon frère travaille dans une banque.
Le train est parti sans nous.
Qui a cassé la fenêtre ?
Ils ont vécu dix ans au Japon.
Cette robe coûte trop cher.
Je voudrais une tasse de thé.
Le médecin lui a conseillé de se reposer.
Nous partirons dès que tu seras prêt.
Il y a un problème avec l'ordinateur.
La neige a couvert toute la ville.
Elle chante mieux que sa sœur.
On ne peut pas être et avoir été.
Le musée est fermé le mardi.
J'ai oublié mes clés à la maison.
Les prix ont augmenté de cinq pour cent.
Fermez la porte, il fait froid.
Le professeur a expliqué la leçon deux fois.
Son père est mort pendant la guerre.
Je pense, donc je suis.
Le gouvernement a annoncé une nouvelle loi.
Tu aurais dû me le dire plus tôt.
La voiture rouge appartient à mon voisin.
Personne ne sait ce qui s'est passé.
Le soleil se lève à l'est.
Nous sommes très heureux de vous revoir.
Elle a mangé une pomme et bu de l'eau.
Cet homme parle cinq langues.
Il est interdit de fumer ici.
La police cherche encore le voleur.
Les oiseaux volent vers le sud en hiver.
Combien coûte un billet aller-retour ?
Je me lève toujours à six heures.
La mer était calme ce jour-là.
Il a gagné le premier prix.
Merci beaucoup pour votre aide.""".splitlines()


@pytest.fixture(scope="module")
def real() -> tuple[HookedEncoderDecoder, transformers.MarianMTModel]:
    if "INTERP_MODELS" not in os.environ:
        pytest.skip("INTERP_MODELS names no directory of real models")
    directory = Path(os.environ["INTERP_MODELS"]) / "opus-mt-fr-en"
    twin = transformers.MarianMTModel.from_pretrained(directory, attn_implementation="eager").eval()
    return HookedEncoderDecoder.from_pretrained(directory, device="cpu"), twin


def test_the_real_model_s_logits_are_transformers_logits(real) -> None:
    model, twin = real
    source, mask = model.to_batch(SENTENCES[:8])
    target = model.to_target("I am a student and I live in a small town near the sea.").expand(8, -1)
    with torch.no_grad():
        theirs = twin(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
        assert (model(source, target, source_mask=mask) - theirs).abs().max() < 5e-5


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 4])
def test_fifty_real_translations_are_transformers_translations(real, beams) -> None:
    model, twin = real
    assert len(SENTENCES) == 50
    directory = Path(os.environ["INTERP_MODELS"]) / "opus-mt-fr-en"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.MarianTokenizer.from_pretrained(directory)
    expected = []
    for text in SENTENCES:
        given_tokens = tokenizer(text, return_tensors="pt")
        row = twin.generate(**given_tokens, num_beams=beams, do_sample=False)[0]
        expected.append(tokenizer.decode(row, skip_special_tokens=True))
    assert model.translate(SENTENCES, num_beams=beams) == expected
    assert model.translate(SENTENCES[0], num_beams=beams) == "I'm a student."
