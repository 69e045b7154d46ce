"""Trained models of other shapes: equal to transformers and to transformer-lens; a story is told word for word.

SmolLM2 and Gemma 3 lie where INTERP_MODELS says (`../shared/get_real_lm.py smollm2 DIR/smollm2` writes one); the story
model in `../shared/zoo`. Neither belongs to the project, and what needs them says so when they are absent.
"""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from interp.config import GPTConfig
from interp.identities import identities
from interp.interventions import ablate_head
from interp.model import HookedGPT
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


@pytest.mark.skipif(not STORIES.exists(), reason="../shared/zoo/stories260K is not there")
def test_the_story_model_tells_its_story() -> None:
    """260 K parameters in llama2.c's layout, 8 heads over 4: the published greedy text, and a control."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pieces = sentencepiece.SentencePieceProcessor(str(STORIES / "tok512.model"))
    expected = (STORIES / "greedy.txt").read_text().strip()
    model = stories()
    told = pieces.decode(story(model, pieces))
    assert told.startswith(expected[:400]) or expected.startswith(told.strip()[:400])
    with torch.no_grad():  # the control: key-value heads in another order
        for block in model.blocks:
            block.attn.W_K_flat.copy_(block.attn.W_K_flat.unflatten(1, (4, 8)).flip(1).flatten(1))
    assert pieces.decode(story(model, pieces))[:100] != told[:100]


def story(model: HookedGPT, pieces) -> list[int]:
    start = torch.tensor([[pieces.bos_id(), *pieces.encode("Once upon a time")]])
    return model.generate(start, max_new_tokens=180, temperature=0)[0, 1:].tolist()


def stories() -> HookedGPT:
    """The model of the file: seven numbers, then float32 arrays, parameter by parameter for all layers."""
    raw = (STORIES / "stories260K.bin").read_bytes()
    width, hidden, layers, heads, kv_heads, vocab, context = np.frombuffer(raw, np.int32, 7).tolist()
    config = GPTConfig(
        n_layers=layers, n_heads=heads, n_kv_heads=kv_heads, d_model=width, d_mlp=hidden, d_vocab=abs(vocab),
        n_ctx=context, norm="rms", gated=True, act_fn="silu", bias=False, positions="rotary", rotary_interleaved=True,
    )  # fmt: skip
    model, place, d_kv = HookedGPT(config), 28, kv_heads * width // heads

    def take(*shape: int) -> torch.Tensor:
        nonlocal place
        size = int(np.prod(shape))
        values = np.frombuffer(raw, np.float32, size, place).reshape(shape)
        place += 4 * size
        return torch.from_numpy(values.copy())

    square, kv, up = (width, width), (d_kv, width), (hidden, width)
    parts = {
        "ln1.w": (width,), "attn.W_Q_flat": square, "attn.W_K_flat": kv, "attn.W_V_flat": kv, "attn.W_O_flat": square,
        "ln2.w": (width,), "mlp.W_gate": up, "mlp.W_out": up[::-1], "mlp.W_in": up,
    }  # fmt: skip
    with torch.no_grad():
        model.W_E.copy_(take(abs(vocab), width))
        for name, shape in parts.items():
            for block in model.blocks:
                values = take(*shape)
                block.get_parameter(name).copy_(values.T if values.ndim == 2 else values)
        model.ln_final.w.copy_(take(width))
    return model
