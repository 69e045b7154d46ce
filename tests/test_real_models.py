"""Trained models of other shapes: equal to transformers and to transformer-lens; a story is told word for word.

SmolLM2 and Gemma 3 lie where INTERP_MODELS says (`../shared/get_real_lm.py smollm2 DIR/smollm2` writes one); the story
model in `../shared/zoo`. Neither belongs to the project, and what needs them says so when they are absent.
"""

import os
import random
import re
import warnings
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from interp.interventions import ablate_head
from interp.models.gpt import HookedGPT
from interp.models.identities import identities
from interp.sweep import slow_sweep, sweep

MODELS = Path(os.environ.get("INTERP_MODELS", "/nowhere"))
STORIES = Path(__file__).parent.parent.parent / "shared" / "zoo" / "stories260K"
TEXT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module", params=["smollm2", "gemma3"])
def real(request):
    """Our model, transformers' eager one and its tokenizer."""
    directory = MODELS / request.param
    if not directory.exists():
        pytest.skip(f"INTERP_MODELS names no directory that holds {request.param}")
    transformers.logging.set_verbosity_error()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    return HookedGPT.from_pretrained(directory), theirs.eval(), transformers.AutoTokenizer.from_pretrained(directory)


@torch.no_grad()
def test_logits_streams_and_forty_greedy_tokens(real) -> None:
    ours, theirs, tokenizer = real
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    expected = theirs(tokens, output_hidden_states=True)
    logits, (_, cache) = ours(tokens), ours.run_with_cache(tokens)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0)
    for layer, stream in enumerate(expected.hidden_states[:-1]):  # the last one is normed
        limit = 5e-5 * max(1.0, float(stream.abs().max()))
        torch.testing.assert_close(cache["resid_pre", layer], stream, atol=limit, rtol=0)
    assert ours.to_string(logits[0, -1:].argmax(-1)) == " Mary"
    theirs_greedy = theirs.generate(tokens, max_new_tokens=40, do_sample=False)
    for use_cache in (True, False):
        greedy = ours.generate(tokens, max_new_tokens=40, temperature=0, stop_at_end=False, use_cache=use_cache)
        assert torch.equal(greedy[:, : theirs_greedy.shape[1]], theirs_greedy)


def test_tokens_are_the_tokenizers(real) -> None:
    ours, _, tokenizer = real
    texts = [TEXT, "naïve 🦊\n\n  two\tspaces ", "русский текст", "中文测试", " leading", "x = {1: 'a'}\r\n"]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ours.tokenizer.encode(text) == ids
        assert ours.to_string(ids) == text
    assert ours.tokenizer.bos == tokenizer.bos_token_id


def test_identities_hold_and_a_broken_weight_breaks_one(real) -> None:
    ours, _, _ = real
    tokens = ours.to_tokens(TEXT)
    found = identities(ours, tokens)
    assert all(one.holds for one in found), found
    assert any("transformers" in one.name for one in found)
    weight = ours.blocks[3].attn.W_O_flat
    with torch.no_grad():
        before = weight[:, :1].clone()
        weight[:, :1] += 0.1
        broken = identities(ours, tokens)
        weight[:, :1] = before
    assert not all(one.holds for one in broken)


def test_a_sweep_is_the_slow_sweep(real) -> None:
    ours, _, _ = real
    tokens = ours.to_tokens(TEXT)
    last = ours.config.n_layers - 1
    variants = [ablate_head(layer, head) for layer in (0, last // 2, last) for head in (0, ours.config.n_heads - 1)]
    fast, slow = (
        run(ours, tokens, variants, lambda logits: {"x": logits}, read=[-1])["x"] for run in (sweep, slow_sweep)
    )
    torch.testing.assert_close(fast, slow, atol=1e-4, rtol=0)
    assert (fast[0] - fast[1]).abs().max() > 1e-3


@torch.no_grad()
def test_activations_are_transformer_lenss(real) -> None:
    """Every name that both have: the streams, what is added, queries, keys, values, patterns, MLPs."""
    from transformer_lens.model_bridge import TransformerBridge

    ours, theirs, tokenizer = real
    tokens = tokenizer(TEXT, return_tensors="pt").input_ids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = TransformerBridge.boot_transformers(theirs.config._name_or_path, hf_model=theirs, tokenizer=tokenizer)
        _, peer = bridge.run_with_cache(tokens)
    _, cache = ours.run_with_cache(tokens)
    short = (
        "resid_pre",
        "resid_mid",
        "resid_post",
        "attn_out",
        "mlp_out",
        "q",
        "k",
        "v",
        "z",
        "pattern",
        "rot_q",
        "pre",
    )
    compared = 0
    for name in [name for name in cache if name.rsplit("hook_", 1)[-1] in short and name in peer]:
        given = peer[name].reshape(cache[name].shape)
        limit = 1e-4 * max(1.0, float(given.abs().max()))
        torch.testing.assert_close(cache[name], given, atol=limit, rtol=0, msg=name)
        compared += 1
    assert compared > 9 * ours.config.n_layers


SCRIPTS = (
    "The quick brown fox jumps over the lazy dog", "naïve façade coöperation", "Быстрая лиса прыгает",
    "中文测试句子在这里", "日本語の文章です", "한국어 문장입니다", "هذا نص عربي", "זה טקסט בעברית", "यह हिन्दी पाठ है",
    "ภาษาไทย", "Ελληνικό κείμενο", "ქართული ტექსტი", "Հայերեն տեքստ", "বাংলা পাঠ্য", "தமிழ் உரை",
    "Tiếng Việt có dấu", "🦊🚀 👩\u200d👩\u200d👧 ∑∫√", "def f(x): return {x: 'a'}", "3.14159 and 1,000,000 in 2023",
    "\t tabs\n\nand  two  spaces\r\n", "ﬁ ǅ İ ẞ e\u0301", "<|endoftext|> <bos> </s>",
)  # fmt: skip


def thousand_texts() -> list[str]:
    """Pieces of several scripts, cut and joined at random places."""
    rng, texts = random.Random(0), []
    for _ in range(1000):
        parts = [rng.choice(SCRIPTS)[rng.randrange(5) : rng.randrange(5, 30)] for _ in range(rng.randrange(1, 6))]
        texts.append(rng.choice(("", " ", "\n")).join(parts) or "a")
    return texts


def test_the_gguf_file_is_the_converted_directory(real) -> None:
    """Its own tokenizer (1,000 texts), its dequantised weights, the directory's logits."""
    ours, theirs, tokenizer = real
    (file,) = Path(theirs.config._name_or_path).glob("*.gguf")
    loaded = HookedGPT.from_pretrained(file)
    if file.stem == "smollm2":
        # The file asks for SmolLM's way, each digit apart before all else; transformers' conversion left that out,
        # which shows where two spaces or more stand before a digit.
        texts = [text for text in thousand_texts() if not re.search(r"\s\s\d", text)]
        assert len(texts) > 900
        for text, ids in zip(texts, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
            assert loaded.tokenizer.encode(text) == ids, text
        split = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tokenizer.backend_tokenizer.pre_tokenizer = split
    expected = tokenizer(thousand_texts(), add_special_tokens=False).input_ids
    assert sum(map(len, expected)) > 10_000
    for text, ids in zip(thousand_texts(), expected, strict=True):
        assert loaded.tokenizer.encode(text) == ids, text
    assert (loaded.tokenizer.bos, loaded.tokenizer.ends) == (ours.tokenizer.bos, ours.tokenizer.ends)
    reader = gguf.GGUFReader(str(file))
    there = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    block = loaded.blocks[2]
    pairs = {"attn_q": block.attn.W_Q_flat, "ffn_gate": block.mlp.W_gate, "attn_output": block.attn.W_O_flat}
    for name, x in pairs.items():
        assert np.array_equal(x.detach().T.numpy(), there[f"blk.2.{name}.weight"])
    with torch.no_grad():
        tokens = ours.to_tokens(TEXT)
        torch.testing.assert_close(loaded(tokens), ours(tokens), atol=1e-4, rtol=0)


@pytest.mark.skipif(not STORIES.exists(), reason="../shared/zoo/stories260K is not there")
def test_the_story_model_tells_its_story(tmp_path) -> None:
    """260 K parameters in llama2.c's file, 8 heads over 4, its vocabulary beside it: the published greedy text."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pieces = sentencepiece.SentencePieceProcessor(str(STORIES / "tok512.model"))
    expected = (STORIES / "greedy.txt").read_text().strip()
    model = HookedGPT.from_pretrained(STORIES / "stories260K.bin", device="cpu")
    texts = [text for text in thousand_texts()[:200] if "<" not in text]  # there, no token is found whole in a text
    for text in texts:
        assert model.tokenizer.encode(text) == pairs_by_score(text, pieces), text
    assert story(model).strip() == expected
    model.save_pretrained(tmp_path)  # in our own layout, with the tokenizer
    assert story(HookedGPT.from_pretrained(tmp_path, device="cpu")).strip() == expected
    with torch.no_grad():  # the control: key-value heads in another order
        for block in model.blocks:
            block.attn.W_K_flat.copy_(block.attn.W_K_flat.unflatten(1, (4, 8)).flip(1).flatten(1))
    assert story(model)[:100] != expected[:100]


def pairs_by_score(text: str, pieces) -> list[int]:
    """llama2.c's own way, slowly: characters or their bytes, then again and again the neighbours of the best score."""
    known = {pieces.id_to_piece(token): token for token in range(pieces.get_piece_size())}
    words: list[str] = []
    for character in "\u2581" + text.replace(" ", "\u2581"):
        words += [character] if character in known else [f"<0x{byte:02X}>" for byte in character.encode()]
    while True:
        joined = [(pieces.get_score(known[one + two]), -at) for at, (one, two) in enumerate(pairwise(words))
                  if one + two in known]  # fmt: skip
        if not joined:
            return [known[word] for word in words]
        at = -max(joined)[1]
        words[at : at + 2] = ["".join(words[at : at + 2])]


def story(model: HookedGPT) -> str:
    tokens = model.generate("Once upon a time", max_new_tokens=252, temperature=0)
    return model.to_string(tokens[0, 1:])
