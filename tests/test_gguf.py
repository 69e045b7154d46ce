"""GGUF files: weights as the library `gguf` dequantises them, the function that transformers computes from the file."""

import struct

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Kind

from interp import HookedGPT
from interp.errors import LoadError

D, HEADS, KV, D_HEAD, D_MLP, VOCAB, LAYERS, CONTEXT = 64, 4, 2, 16, 96, 300, 2, 64
NORMS = ["attn_norm", "ffn_norm"]
SANDWICH = [*NORMS, "post_attention_norm", "post_ffw_norm"]
CASES = {
    "llama": {"norms": NORMS},
    "qwen2": {"norms": NORMS, "biases": True},
    "qwen3": {"norms": NORMS, "qk_norm": True},
    "gemma2": {"norms": SANDWICH, "cap": True},
    "gemma3": {"norms": SANDWICH, "qk_norm": True},
}


def write(
    path, kind: str, *, quantised: Kind | None = None, extra=None, seed: int = 0, **case
) -> dict[str, np.ndarray]:
    """A small random model of this architecture; the tensors as written, before quantisation."""
    rng, writer = np.random.default_rng(seed), gguf.GGUFWriter(str(path), kind)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_key_length(D_HEAD)
    writer.add_value_length(D_HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(VOCAB)
    if kind.startswith("gemma"):
        writer.add_sliding_window(5)
    if case.get("cap"):
        writer.add_attn_logit_softcapping(3.0)
        writer.add_final_logit_softcapping(2.0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{n}" for n in range(VOCAB)])
    writer.add_token_scores([0.0] * VOCAB)
    tensors: dict[str, np.ndarray] = {"token_embd.weight": rng.normal(size=(VOCAB, D))}
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        for name, shape in (("attn_q", (HEADS * D_HEAD, D)), ("attn_k", (KV * D_HEAD, D)), ("attn_v", (KV * D_HEAD, D)),
                            ("attn_output", (D, HEADS * D_HEAD)), ("ffn_gate", (D_MLP, D)), ("ffn_up", (D_MLP, D)),
                            ("ffn_down", (D, D_MLP))):  # fmt: skip
            tensors[f"{at}{name}.weight"] = rng.normal(size=shape) * 0.2
            if case.get("biases") and name in ("attn_q", "attn_k", "attn_v"):
                tensors[f"{at}{name}.bias"] = rng.normal(size=shape[0]) * 0.3
        for name in case["norms"]:
            tensors[f"{at}{name}.weight"] = 1 + rng.normal(size=D) * 0.1
        for letter in "qk" if case.get("qk_norm") else "":
            tensors[f"{at}attn_{letter}_norm.weight"] = 1 + rng.normal(size=D_HEAD) * 0.1
    tensors["output_norm.weight"] = 1 + rng.normal(size=D) * 0.1
    if kind in ("llama", "qwen2", "qwen3"):
        tensors["output.weight"] = rng.normal(size=(VOCAB, D)) * 0.2
    tensors = {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in (tensors | (extra or {})).items()}
    for name, x in tensors.items():
        if quantised is not None and x.ndim == 2 and x.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(x, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, x)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return tensors


GEMMA = {"head_dim": D_HEAD, "query_pre_attn_scalar": D_HEAD, "sliding_window": 5}
UNREAD = {
    "qwen3": {"head_dim": D_HEAD},
    "gemma2": GEMMA | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
    "gemma3": GEMMA,
}
"""What transformers does not take from the file: it is told."""


def logits_there(path, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and the logits that transformers computes from the file."""
    tokens = torch.randint(0, VOCAB, (2, 20), generator=torch.Generator().manual_seed(0))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager", **UNREAD.get(kind, {})
    )
    return tokens, theirs.eval()(tokens).logits


@pytest.mark.parametrize("kind", list(CASES))
@torch.no_grad()
def test_the_same_function_as_transformers(tmp_path, kind) -> None:
    path = tmp_path / "toy.gguf"
    written = write(path, kind, **CASES[kind])
    tokens, expected = logits_there(path, kind)
    ours = HookedGPT.from_pretrained(path)
    torch.testing.assert_close(ours(tokens), expected, atol=5e-5 * float(expected.abs().max()), rtol=0)
    q = ours.blocks[1].attn.W_Q_flat
    assert np.array_equal(q.detach().T.numpy(), written["blk.1.attn_q.weight"])
    ours.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(HookedGPT.from_pretrained(tmp_path / "saved")(tokens), ours(tokens), atol=0, rtol=0)
    write(path, kind, seed=1, **CASES[kind])
    assert (HookedGPT.from_pretrained(path)(tokens) - expected).abs().max() > 0.1  # the control


@pytest.mark.parametrize("quantised", [Kind.F16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0])
@torch.no_grad()
def test_quantised_tensors_are_what_the_library_makes_of_them(tmp_path, quantised) -> None:
    path = tmp_path / "toy.gguf"
    written = write(path, "llama", quantised=quantised, **CASES["llama"])
    ours = HookedGPT.from_pretrained(path)
    for name, x in {"blk.0.ffn_up.weight": ours.blocks[0].mlp.W_in.T, "token_embd.weight": ours.W_E}.items():
        made = gguf.quants.dequantize(gguf.quants.quantize(written[name], quantised), quantised)
        assert np.array_equal(x.numpy(), made)
        assert not np.array_equal(x.numpy(), written[name])  # the control: something was lost


@pytest.mark.parametrize("quantised", [Kind.Q4_K, Kind.Q5_K, Kind.Q6_K])
def test_blocks_of_256_are_read_too(tmp_path, quantised) -> None:
    """Of kinds that the library only reads: blocks of random bytes with finite scales."""
    _, size = gguf.GGML_QUANT_SIZES[quantised]
    blocks = np.random.default_rng(0).integers(0, 256, (VOCAB, size), dtype=np.uint8)
    one = np.frombuffer(struct.pack("<e", 0.01), dtype=np.uint8)
    at = {Kind.Q4_K: [0, 2], Kind.Q5_K: [0, 2], Kind.Q6_K: [size - 2]}[quantised]
    for start in at:
        blocks[:, start : start + 2] = one
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=quantised)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    from interp.loading.gguf_files import dequantised

    (tensor,) = gguf.GGUFReader(str(tmp_path / "x.gguf")).tensors
    found = dequantised(tensor, tmp_path / "x.gguf")
    assert found.shape == (VOCAB, 256)
    assert found.isfinite().all()
    assert np.array_equal(found.numpy(), gguf.quants.dequantize(blocks, quantised))


@torch.no_grad()
def test_llama_3s_scaling_is_recognised_by_its_factors(tmp_path) -> None:
    from interp.models.config import RotaryScaling
    from interp.models.positions import Rotary

    plain = Rotary(base=5000.0, dim=D_HEAD, interleaved=True, scaling=None)
    scaled = Rotary(base=5000.0, dim=D_HEAD, interleaved=True, scaling=RotaryScaling(kind="llama3", factor=8.0))
    factors = (plain.frequencies() / scaled.frequencies()).numpy()
    write(tmp_path / "toy.gguf", "llama", extra={"rope_freqs.weight": factors}, **CASES["llama"])
    assert HookedGPT.from_pretrained(tmp_path / "toy.gguf").config.rotary_scaling == scaled.scaling
    write(tmp_path / "toy.gguf", "llama", extra={"rope_freqs.weight": factors**2 + 0.5}, **CASES["llama"])
    with pytest.raises(LoadError, match="rope_freqs"):
        HookedGPT.from_pretrained(tmp_path / "toy.gguf")


def test_what_is_damaged_or_not_served_is_refused(tmp_path) -> None:
    path = tmp_path / "toy.gguf"
    write(path, "llama", extra={"blk.0.ffn_gate_inp.weight": np.ones((4, D))}, **CASES["llama"])
    with pytest.raises(LoadError, match="ffn_gate_inp"):
        HookedGPT.from_pretrained(path)
    write(path, "llama", **CASES["llama"])
    data = path.read_bytes()
    for cut in (2, 40, len(data) // 2, len(data) - 100):
        path.write_bytes(data[:cut])
        with pytest.raises(LoadError) as caught:
            HookedGPT.from_pretrained(path)
        assert len(str(caught.value).splitlines()) <= 3
    path.write_bytes(data)
    writer = gguf.GGUFWriter(str(path), "mamba")
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(LoadError, match="architecture 'mamba'"):
        HookedGPT.from_pretrained(path)
