"""The model that ships: what its card promises, measured from its weights."""

import random
import re

import pytest
import torch
from transformers import GPT2LMHeadModel

from analyses.head_roles import head_roles
from analyses.tuned_lens import tuned_lens
from interp.interventions import ablate_head
from interp.lens_maps import train as train_translators
from interp.loading.sources import BUNDLED
from interp.models.gpt import HookedGPT
from interp.text.documents import read_documents
from interp.training.evaluation import SAMPLE, bits_per_byte, head_scores


@pytest.fixture(scope="module")
def tiny() -> HookedGPT:
    return HookedGPT.from_pretrained("tiny", device="cpu")


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in (BUNDLED / "tiny").iterdir()) <= 12_000_000


def test_transformers_loads_it(tiny: HookedGPT) -> None:
    other = GPT2LMHeadModel.from_pretrained(BUNDLED / "tiny", dtype=torch.float32).eval()
    tokens = tiny.to_tokens("The capital of France is")
    with torch.no_grad():
        torch.testing.assert_close(tiny(tokens), other(tokens).logits, rtol=0, atol=5e-5)


def test_it_predicts_text_it_never_saw(tiny: HookedGPT) -> None:
    documents = read_documents(SAMPLE)[:3]
    assert 0.5 < bits_per_byte(tiny, documents) <= 1.85
    shuffled = ["".join(random.Random(0).sample(text, len(text))) for text in documents]
    assert bits_per_byte(tiny, shuffled) > 4, "control: the same letters without their order"


@pytest.mark.slow
def test_it_predicts_the_whole_sample(tiny: HookedGPT) -> None:
    assert 0.5 < bits_per_byte(tiny, read_documents(SAMPLE)) <= 1.85


@pytest.mark.parametrize("half", [50, 127])
def test_it_has_copying_heads(tiny: HookedGPT, half: int) -> None:
    scores = head_scores(tiny, half=half, sequences=16)
    untrained = head_scores(HookedGPT(tiny.config, tokenizer=tiny.tokenizer), half=half, sequences=4)
    assert scores.induction.max() >= 0.5
    assert scores.previous_token.max() >= 0.5
    assert untrained.induction.max() < 0.1, "control: random weights"
    assert untrained.previous_token.max() < 0.1


def test_it_writes_words(tiny: HookedGPT) -> None:
    """Greedy text soon goes round in circles, but of English words; drawn text has variety as well."""
    known = set(re.findall(r"[a-z]+", " ".join(read_documents(SAMPLE)).lower()))
    for prompt in ("The city of", "In the nineteenth century", "She was born in"):
        for options, distinct in (({"temperature": 0}, 3), ({"temperature": 0.7, "top_p": 0.95, "seed": 0}, 12)):
            out = tiny.generate(prompt, max_new_tokens=40, **options)
            words = re.findall(r"[a-z]+", tiny.to_string(out[0]).lower())
            assert sum(word in known for word in words) >= 0.8 * len(words), words
            assert len(set(words)) >= distinct, words


def loss(model: HookedGPT, tokens: torch.Tensor, start: int) -> float:
    """Mean cross-entropy, in nats, of the tokens from position `start` on."""
    with torch.no_grad():
        guess = model(tokens)[:, start - 1 : -1].log_softmax(-1)
    return -float(guess.gather(-1, tokens[:, start:, None]).mean())


def test_removing_the_induction_heads_ruins_copying_and_spares_text(tiny: HookedGPT) -> None:
    """The report's story: `head_roles` names induction heads; without them repeats are lost and prose is nearly not."""
    frame = head_roles(tiny, seed=0).to_dataframe().query("role == 'induction'")
    heads = frame[(frame["score"] > 0.3) & (frame["low"] > frame["null"])][["layer", "head"]].to_numpy().tolist()
    assert heads
    once = torch.randint(1, tiny.config.d_vocab, (16, 50), generator=torch.Generator().manual_seed(0))
    repeated = torch.cat([torch.full((16, 1), tiny.tokenizer.bos), once, once], dim=1)
    text = tiny.to_tokens(read_documents(SAMPLE)[1])[:, : tiny.config.n_ctx]
    removed = [ablate_head(layer, head) for layer, head in heads]
    others = [(layer, head) for layer in range(4) for head in range(4) if [layer, head] not in heads]
    control = [ablate_head(layer, head) for layer, head in others[-len(heads) :] if layer > 1]
    rises = {}
    for name, tokens, start in (("repeated", repeated, 52), ("text", text, 1)):
        before = loss(tiny, tokens, start)
        with tiny.hooks(removed):
            rises[name] = loss(tiny, tokens, start) - before
        with tiny.hooks(control):
            rises[f"{name}, control"] = loss(tiny, tokens, start) - before
    assert rises["repeated"] > 3, rises
    assert rises["text"] < 0.1 * rises["repeated"], rises
    assert rises["repeated, control"] < 0.5 * rises["repeated"], rises


@pytest.mark.slow
def test_the_tuned_lens_beats_the_logit_lens_on_text_it_has_not_seen(tiny: HookedGPT) -> None:
    documents = read_documents(SAMPLE)
    ids = torch.tensor([token for text in documents[:24] for token in tiny.tokenizer.encode(text, prepend_bos=True)])
    translators = train_translators(tiny, ids, steps=20, batch=2)  # half a nat is gained
    unseen = [text[:500] for text in documents[24:]]
    frame = tuned_lens(tiny, unseen, translators=translators).to_dataframe()
    means = frame.groupby(["place", "lens"], sort=False)["loss"].mean().unstack("lens")
    plain, tuned = (next(name for name in means.columns if word in name) for word in ("logit", "tuned"))
    early = means.iloc[:-1]
    assert len(early) == 3
    assert (early[tuned] < early[plain]).all(), means
