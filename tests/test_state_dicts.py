"""Weights from elsewhere give the function that they had there: nanoGPT, TransformerLens, transformers."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import make_gpt
from shapes import SHAPES, tokens_for, toy
from torch import nn

from interp import HookedGPT
from interp.errors import InputError, LoadError
from interp.loading.layouts import to_tensors
from interp.loading.state_dicts import LAYOUTS
from interp.models.config import GPTConfig

TIGHT = {"atol": 1e-5, "rtol": 1e-5}


class NanoGPT(nn.Module):
    """What nanoGPT's checkpoints hold, written anew from its description: GPT-2 with linear layers and exact GELU."""

    def __init__(self, vocab: int, context: int, layers: int, heads: int, width: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab, width),
                "wpe": nn.Embedding(context, width),
                "h": nn.ModuleList(self._block(width, bias) for _ in range(layers)),
                "ln_f": nn.LayerNorm(width, bias=bias),
            }
        )
        self.lm_head = nn.Linear(width, vocab, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def _block(self, width: int, bias: bool) -> nn.ModuleDict:
        attn = {"c_attn": nn.Linear(width, 3 * width, bias=bias), "c_proj": nn.Linear(width, width, bias=bias)}
        mlp = {"c_fc": nn.Linear(width, 4 * width, bias=bias), "c_proj": nn.Linear(4 * width, width, bias=bias)}
        norms = {name: nn.LayerNorm(width, bias=bias) for name in ("ln_1", "ln_2")}
        return nn.ModuleDict({**norms, "attn": nn.ModuleDict(attn), "mlp": nn.ModuleDict(mlp)})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        t = self.transformer
        x = t["wte"](tokens) + t["wpe"](torch.arange(tokens.shape[1]))
        for block in t["h"]:
            parts = block["attn"]["c_attn"](block["ln_1"](x)).chunk(3, -1)
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + block["attn"]["c_proj"](mixed)
            x = x + block["mlp"]["c_proj"](F.gelu(block["mlp"]["c_fc"](block["ln_2"](x))))
        return self.lm_head(t["ln_f"](x))


def nano(bias: bool) -> tuple[NanoGPT, dict]:
    torch.manual_seed(0)
    model = NanoGPT(vocab=40, context=12, layers=2, heads=3, width=24, bias=bias)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    args = {"n_layer": 2, "n_head": 3, "n_embd": 24, "block_size": 12, "vocab_size": 40, "bias": bias, "dropout": 0.0}
    return model, args


TOKENS = torch.randint(0, 40, (3, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_nanogpt_checkpoint(tmp_path, bias) -> None:
    """The state dict and the whole file, as nanoGPT writes it (a compiled model's names too): the same logits."""
    theirs, args = nano(bias)
    state = {**theirs.state_dict(), "transformer.h.0.attn.bias": torch.ones(1, 1, 12, 12).tril()}
    for prefix in ("", "_orig_mod."):
        whole = {"model": {prefix + key: x for key, x in state.items()}, "model_args": args, "iter_num": 7}
        torch.save(whole, tmp_path / "ckpt.pt")
        for source in (tmp_path / "ckpt.pt", tmp_path):
            loaded = HookedGPT.from_pretrained(source)
            torch.testing.assert_close(loaded(TOKENS), theirs(TOKENS), **TIGHT)
    ours = HookedGPT.from_state_dict(theirs.state_dict(), args)
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS), **TIGHT)
    assert ours.W_E.data_ptr() != theirs.lm_head.weight.data_ptr()  # a copy
    ours.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(HookedGPT.from_pretrained(tmp_path / "saved")(TOKENS), ours(TOKENS), atol=0, rtol=0)
    wrong = {**theirs.state_dict(), "transformer.h.0.attn.c_attn.weight": torch.zeros(72, 24)}
    assert (HookedGPT.from_state_dict(wrong, args)(TOKENS) - theirs(TOKENS)).abs().max() > 1e-2  # the control


def bridged(hf):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge import TransformerBridge

        if not isinstance(hf, dict):
            return TransformerBridge.boot_transformers(hf.config._name_or_path, hf_model=hf, device="cpu")
        return TransformerBridge.boot_native(TransformerBridgeConfig(**hf))


@pytest.mark.slow
@torch.no_grad()
def test_transformer_lens(tmp_path) -> None:
    """Version 4's own model and its wrap of GPT-2: state dict and classic names; its config or ours."""
    told = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_head": 8, "d_mlp": 24, "n_ctx": 12, "d_vocab": 40,
            "act_fn": "relu", "normalization_type": "LN"}  # fmt: skip
    gpt2 = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=300, n_positions=12, n_inner=24)
    toy_gpt = transformers.GPT2LMHeadModel(gpt2)
    for parameter in toy_gpt.parameters():
        nn.init.normal_(parameter, std=0.3)
    toy_gpt.save_pretrained(tmp_path)
    HookedGPT.from_pretrained("tiny", device="cpu").tokenizer.save(tmp_path)
    native, wrapped = bridged(told), bridged(transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval())
    for parameter in native.parameters():
        nn.init.normal_(parameter, std=0.3)
    for theirs, tied in ((native, False), (wrapped, True)):
        config = GPTConfig(
            n_layers=2, n_heads=2, d_model=16, d_mlp=24, n_ctx=12, d_vocab=theirs.cfg.d_vocab, tied=False,
            unembed_bias=True, act_fn="relu" if theirs is native else "gelu_new",
        )  # fmt: skip
        expected = theirs(TOKENS)
        for state in (theirs.state_dict(), {name: x.clone() for name, x in theirs.tl_named_parameters()}):
            for given in (config, theirs.cfg, vars(theirs.cfg)):
                ours = HookedGPT.from_state_dict(state, given)
                torch.testing.assert_close(ours(TOKENS), expected, atol=2e-5, rtol=1e-5)
        assert tied == torch.equal(ours.W_U.T, ours.W_E)


def old_forward(state: dict, tokens: torch.Tensor, causal: bool) -> torch.Tensor:
    """The model of "Progress measures for grokking" (Nanda et al. 2023), from its description, step by step."""
    x = state["embed.W_E"][:, tokens].permute(1, 2, 0) + state["pos_embed.W_pos"][: tokens.shape[1]]
    q, k, v = (torch.einsum("ihd,bpd->biph", state[f"blocks.0.attn.W_{letter}"], x) for letter in "QKV")
    scores = torch.einsum("biph,biqh->biqp", k, q) / math.sqrt(k.shape[-1])
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    z = torch.einsum("biph,biqp->biqh", v, scores.softmax(-1)).transpose(1, 2).flatten(2)
    x = x + torch.einsum("df,bqf->bqd", state["blocks.0.attn.W_O"], z)
    hidden = torch.relu(torch.einsum("md,bpd->bpm", state["blocks.0.mlp.W_in"], x) + state["blocks.0.mlp.b_in"])
    x = x + torch.einsum("dm,bpm->bpd", state["blocks.0.mlp.W_out"], hidden) + state["blocks.0.mlp.b_out"]
    return x @ state["unembed.W_U"]


def old_state(d_vocab: int, d_model: int, heads: int, d_head: int, d_mlp: int) -> dict[str, torch.Tensor]:
    shapes = {
        "embed.W_E": (d_model, d_vocab), "pos_embed.W_pos": (3, d_model), "blocks.0.mlp.b_in": (d_mlp,),
        **{f"blocks.0.attn.W_{letter}": (heads, d_head, d_model) for letter in "QKV"},
        "blocks.0.attn.W_O": (d_model, heads * d_head), "blocks.0.mlp.W_in": (d_mlp, d_model),
        "blocks.0.mlp.W_out": (d_model, d_mlp), "blocks.0.mlp.b_out": (d_model,), "unembed.W_U": (d_model, d_vocab),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(shape, generator=generator) / 3 for name, shape in shapes.items()}


def old_config(**sizes: int) -> GPTConfig:
    return GPTConfig(
        n_layers=1, n_ctx=3, norm=None, act_fn="relu", tied=False, bias_qkv=False, bias_out=False, **sizes
    )  # fmt: skip


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_the_older_layout(causal) -> None:
    state = old_state(d_vocab=11, d_model=8, heads=2, d_head=5, d_mlp=12)
    state["blocks.0.attn.mask"] = torch.ones(3, 3).tril()
    config = replace(old_config(n_heads=2, d_model=8, d_head=5, d_mlp=12, d_vocab=11), causal=causal)
    tokens = torch.randint(0, 11, (4, 3), generator=torch.Generator().manual_seed(3))
    for layout in (None, "transformer-lens-old"):
        ours = HookedGPT.from_state_dict(state, config, layout=layout)
        torch.testing.assert_close(ours(tokens), old_forward(state, tokens, causal), **TIGHT)
    assert (ours(tokens) - old_forward(state, tokens, not causal)).abs().max() > 1e-2  # the control


@torch.no_grad()
def test_what_fits_two_ways_is_refused() -> None:
    """Square matrices: TransformerLens 4 turns them one way around GPT-2, the other way elsewhere."""
    for d_mlp, doubtful in ((12, False), (8, True)):
        model = toy("gpt2", d_model=8, n_heads=2, d_mlp=d_mlp, tied=False)
        native, around = LAYOUTS["transformer-lens"][1:]
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        for family in (native, around):
            state = to_tensors(model, family.layout(model.config, shapes), None)
            if not doubtful:
                read = HookedGPT.from_state_dict(state, model.config).state_dict()
                assert all(torch.equal(read[name], x) for name, x in model.state_dict().items())
                continue
            with pytest.raises(InputError, match="these weights fit transformer-lens"):
                HookedGPT.from_state_dict(state, model.config)
        state["blocks.0.mlp.in.weight"] = state["blocks.0.mlp.in.weight"][:-1]
        with pytest.raises(LoadError, match=r"blocks\.0\.mlp\.in\.weight"):
            HookedGPT.from_state_dict(state, model.config)


@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in ("gpt2",)])
@torch.no_grad()
def test_classic_names_hold_every_shape(shape) -> None:
    """Written under the classic names from our own weights, axis by axis, and read back: every bit the same."""
    model = toy(shape)
    c = model.config
    if c.qk_norm == "flat":
        pytest.skip("TransformerLens has no norm over all heads together")
    names = {"W_E": "embed.W_E", "W_pos": "pos_embed.W_pos", "unembed": "unembed.W_U", "b_U": "unembed.b_U"}
    state = {}
    for name, x in model.state_dict().items():
        block, _, last = name.rpartition(".")
        shared = "_" if last[2:3] in ("K", "V") and c.n_kv_heads < c.n_heads else ""
        if last in ("W_Q_flat", "W_K_flat", "W_V_flat"):
            x, name = x.unflatten(1, (-1, c.d_head)).permute(1, 0, 2), f"{block}.{shared}{last[:3]}"
        elif last in ("b_Q_flat", "b_K_flat", "b_V_flat"):
            x, name = x.unflatten(0, (-1, c.d_head)), f"{block}.{shared}{last[:3]}"
        elif last == "W_O_flat":
            x, name = x.unflatten(0, (-1, c.d_head)), f"{block}.W_O"
        elif last == "unembed":
            x = x.T
        state[names.get(name, name)] = x
    read = HookedGPT.from_state_dict(state, c)
    for name, x in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], x), name
    own = HookedGPT.from_state_dict(model.state_dict(), c)
    tokens = tokens_for(model)
    for same in (read, own):
        torch.testing.assert_close(same(tokens), model(tokens), atol=0, rtol=0)


@torch.no_grad()
def test_transformers_own(tmp_path) -> None:
    """Its state dict with its config object, or with a GPTConfig: families are told apart by names and shapes."""
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=40, max_position_embeddings=16, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    first = HookedGPT.from_state_dict(theirs.state_dict(), theirs.config)
    second = HookedGPT.from_state_dict(theirs.state_dict(), first.config, layout="huggingface")
    for ours in (first, second, HookedGPT.from_state_dict(theirs.state_dict(), first.config)):
        torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, **TIGHT)


def test_what_cannot_be_understood_is_refused() -> None:
    theirs, args = nano(True)
    state = theirs.state_dict()
    for given, config, words in (
        ({}, args, "dict of tensors"),
        (theirs, args, "dict of tensors"),
        ({"a": 1}, args, "dict of tensors"),
        (state, {"layers": 2}, "expected a GPTConfig"),
        (state, 3, "expected a GPTConfig"),
        (state, {**args, "n_layer": 3}, "missing"),
        (state, {k: v for k, v in args.items() if k != "n_embd"}, "n_embd"),
        ({**state, "extra.weight": torch.ones(2)}, args, "extra.weight"),
        ({"model_type": torch.ones(1)}, {"model_type": "mamba"}, "state-space"),
    ):
        with pytest.raises((InputError, LoadError), match=words) as caught:
            HookedGPT.from_state_dict(given, config)
        assert len(str(caught.value).splitlines()) <= 3
    with pytest.raises(InputError, match="expected one of huggingface, nanogpt"):
        HookedGPT.from_state_dict(state, args, layout="jax")
    assert list(LAYOUTS) == ["huggingface", "nanogpt", "transformer-lens", "transformer-lens-old", "interp"]


def test_files_that_are_no_models_are_refused(tmp_path) -> None:
    theirs, args = nano(True)
    bare, empty, words = tmp_path / "bare.pt", tmp_path / "a.bin", tmp_path / "b.gguf"
    torch.save(theirs.state_dict(), bare)
    empty.write_bytes(b"\x00" * 40)
    words.write_text("no model at all")
    for file, said in ((bare, "without a config"), (empty, "llama2.c"), (words, "GGUF")):
        with pytest.raises(LoadError, match=said) as caught:
            HookedGPT.from_pretrained(file)
        assert len(str(caught.value).splitlines()) <= 3
    torch.save({"model": theirs.state_dict(), "model_args": args}, tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(LoadError):
        HookedGPT.from_pretrained(tmp_path / "cut.pt")
    with pytest.raises(InputError, match="dict of tensors"):
        HookedGPT.from_state_dict({"model": theirs.state_dict()}, args)


def lens_state(model: HookedGPT) -> dict[str, torch.Tensor]:
    """Our weights under the classic names."""
    c, outside = (
        model.config,
        {"W_E": "embed.W_E", "W_pos": "pos_embed.W_pos", "unembed": "unembed.W_U", "b_U": "unembed.b_U"},
    )
    state = {}
    for name, x in model.state_dict().items():
        last = name.rpartition(".")[2]
        if last.endswith("_flat"):
            x = x.unflatten(1 if last[2] in "QKV" and x.ndim == 2 else 0, (-1, c.d_head))
            x = x.permute(1, 0, 2) if last.startswith(("W_Q", "W_K", "W_V")) else x
            shared = "_" if last[2] in "KV" and c.n_kv_heads < c.n_heads else ""
            name = name.removesuffix("_flat").replace(f".{last[:3]}", f".{shared}{last[:3]}")
        state[outside.get(name, name)] = x.T if last == "unembed" else x
    return state


CFG = {"n_layers": 2, "n_heads": 4, "d_model": 32, "d_head": 8, "d_mlp": 128, "n_ctx": 64, "d_vocab": 300,
       "act_fn": "gelu_new",
       "normalization_type": "LN", "eps": 1e-5}  # fmt: skip


def test_one_tensor_of_a_kind_is_not_left_out_in_silence() -> None:
    """All norms folded away are gains of one; one of them missing is a mistake, as is a cfg that has them."""
    model = make_gpt(tied=False, unembed_bias=True)
    state, tokens = lens_state(model), tokens_for(model)
    torch.testing.assert_close(HookedGPT.from_state_dict(state, CFG)(tokens), model(tokens), **TIGHT)
    for gone in ("blocks.0.ln1.w", "ln_final.b", "blocks.1.ln2.w"):
        with pytest.raises(LoadError, match=f"{gone} is missing"):
            HookedGPT.from_state_dict({k: v for k, v in state.items() if k != gone}, CFG)
    bare = {key: x for key, x in state.items() if ".ln" not in key and not key.startswith("ln")}
    with pytest.raises(LoadError, match="no norm among the tensors"):
        HookedGPT.from_state_dict(bare, CFG)
    folded = HookedGPT.from_state_dict(bare, CFG | {"normalization_type": "LNPre"})
    assert bool((folded.blocks[0].ln1.w == 1).all())
    with pytest.raises(LoadError, match="final_rms"):
        HookedGPT.from_state_dict(state, CFG | {"final_rms": True})


def test_gated_models_of_transformer_lens_have_no_gate_bias() -> None:
    model = make_gpt(
        gated=True, norm="rms", act_fn="silu", positions="rotary", tied=False, unembed_bias=True, n_kv_heads=2
    )
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.b_gate.zero_()
    state = {key: x for key, x in lens_state(model).items() if not key.endswith("b_gate")}
    cfg = CFG | {"gated_mlp": True, "act_fn": "silu", "normalization_type": "RMS", "final_rms": True,
                 "positional_embedding_type": "rotary", "n_key_value_heads": 2}  # fmt: skip
    tokens = tokens_for(model)
    for prefix in ("", "module.", "_orig_mod."):
        read = HookedGPT.from_state_dict({prefix + key: x for key, x in state.items()}, cfg)
        torch.testing.assert_close(read(tokens), model(tokens), **TIGHT)


def test_tensors_that_no_weights_can_be_are_refused_and_dtypes_are_made_one() -> None:
    theirs, args = nano(True)
    state = {key: x.detach() for key, x in theirs.state_dict().items()}
    half = {**state, "transformer.wte.weight": state["transformer.wte.weight"].half()}
    half["lm_head.weight"] = half["transformer.wte.weight"]
    assert {p.dtype for p in HookedGPT.from_state_dict(half, args).parameters()} == {torch.float32}
    for wrong in (torch.int64, torch.bool, torch.complex64):
        with pytest.raises(InputError, match=r"ln_f\.weight"):
            HookedGPT.from_state_dict({**state, "transformer.ln_f.weight": torch.ones(24, dtype=wrong)}, args)
    with pytest.raises(LoadError, match=r"two tensors called ln_f\.weight"):
        HookedGPT.from_state_dict({**state, "ln_f.weight": torch.zeros(24)}, args)
    for given, layout in ((state, ["nanogpt"]), ({3: torch.ones(1)}, None)):
        with pytest.raises(InputError):
            HookedGPT.from_state_dict(given, args, layout=layout)


@torch.no_grad()
def test_an_untied_nanogpt_and_a_live_pythia(tmp_path) -> None:
    theirs, args = nano(True)
    theirs.lm_head.weight = nn.Parameter(torch.randn(40, 24))
    torch.testing.assert_close(HookedGPT.from_state_dict(theirs.state_dict(), args)(TOKENS), theirs(TOKENS), **TIGHT)
    config = transformers.GPTNeoXConfig(
        vocab_size=40, hidden_size=64, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, attn_implementation="eager",
    )  # fmt: skip
    pythia = transformers.GPTNeoXForCausalLM(config).eval()
    ours = HookedGPT.from_state_dict(pythia.state_dict(), config)
    torch.testing.assert_close(ours(TOKENS), pythia(TOKENS).logits, **TIGHT)
    ours.save_pretrained(tmp_path)  # in the family's own layout
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    torch.testing.assert_close(back(TOKENS).logits, pythia(TOKENS).logits, **TIGHT)


def test_what_cannot_be_saved_is_refused(tmp_path) -> None:
    model = make_gpt()
    for wrong in (torch.int32, "float16"):
        with pytest.raises(InputError, match="dtype"):
            model.save_pretrained(tmp_path / "a", dtype=wrong)
    (tmp_path / "file").write_text("x")
    for path in (42, tmp_path / "file"):
        with pytest.raises(InputError, match="path of a folder"):
            model.save_pretrained(path)
    assert not (tmp_path / "a").exists()
