"""Every decoder family is the same function here as in `transformers`: logits, streams, generation, files, refusals."""

import json
import shutil
import warnings
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from families import (
    CASES,
    LENGTH,
    Case,
    all_in_float64,
    build,
    difference,
    edited,
    oracle,
    output_projection,
    run,
    sparse,
    tokens_and_mask,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.errors import LoadError
from interp.interventions import ablate_head
from interp.loading.families import FAMILIES
from interp.models.gpt import HookedGPT
from interp.models.positions import KVCache
from interp.residual import decompose

EXACT, SINGLE = 1e-10, 5e-5
"""Largest differences allowed in float64 and float32, in units of the largest value."""
BY_NAME = {case.name: case for case in CASES}
GROUPED = [
    case.name for case in CASES if case.config.get("text_config", case.config).get("num_key_value_heads") in (2, 3)
]


@dataclass(frozen=True, eq=False)
class Twin:
    """A directory that both sides load."""

    case: Case
    directory: Path

    @cache  # noqa: B019 (a handful of tiny models, gone with the test session)
    def theirs(self, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        return oracle(self.directory, dtype)

    @cache  # noqa: B019
    def ours(self, dtype: torch.dtype = torch.float32) -> HookedGPT:
        return HookedGPT.from_pretrained(self.directory, dtype=dtype, device="cpu")

    def copy(self, to: Path, changes: dict[str, object]) -> Path:
        """The same files with another `config.json`."""
        shutil.copytree(self.directory, to, dirs_exist_ok=True)
        data = edited(json.loads((self.directory / "config.json").read_text()), changes)
        (to / "config.json").write_text(json.dumps(data))
        return to


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Name of a case -> its twin, made when it is first asked for."""
    transformers.utils.logging.disable_progress_bar()
    made: dict[str, Twin] = {}

    def twin(name: str) -> Twin:
        if name not in made:
            directory = tmp_path_factory.mktemp("family")
            build(BY_NAME[name]).save_pretrained(directory)
            made[name] = Twin(BY_NAME[name], directory)
        return made[name]

    return twin


@pytest.fixture(params=list(BY_NAME))
def twin(request, twins) -> Twin:
    return twins(request.param)


@torch.no_grad()
def run_ours(model: HookedGPT, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """As `families.run`, with nothing but the residual streams listened to."""
    logits, cache = model.run_with_cache(tokens, names=["resid_pre", "resid_post"], attention_mask=mask)
    layers = model.config.n_layers
    return logits, [*(cache["resid_pre", layer] for layer in range(layers)), cache["resid_post", layers - 1]]


def apart(ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]], mask: Tensor | None = None) -> float:
    """Largest difference of logits and streams, at real positions."""
    pairs = [(ours[0], theirs[0]), *zip(ours[1], theirs[1], strict=True)]
    real = torch.ones_like(pairs[0][0][..., 0]).bool() if mask is None else mask.bool()
    return max(difference(a[real], b[real]) for a, b in pairs)


def test_every_family_of_the_table_is_tested() -> None:
    assert {case.model_type for case in CASES} == set(FAMILIES) - {"interp"}


@pytest.mark.parametrize("padded", [False, True], ids=["", "left padding"])
def test_logits_and_streams(twin, padded) -> None:
    tokens, mask = tokens_and_mask(3 if padded else 2, padded=padded)
    given = mask if padded else None
    single = run(twin.theirs(), tokens, mask)
    assert 0.5 < float(single[0].std()) < 20
    with torch.no_grad():  # nobody listening: the fused ways
        fused = difference(twin.ours()(tokens, attention_mask=given)[mask.bool()], single[0][mask.bool()])
    observed = apart(run_ours(twin.ours(), tokens, given), single, mask)
    assert max(fused, observed) < SINGLE
    with all_in_float64():
        double = run(twin.theirs(torch.float64), tokens, mask)
    exact = apart(run_ours(twin.ours(torch.float64), tokens, given), double, mask)
    assert exact < EXACT


@pytest.mark.parametrize("name", [case.name for case in CASES if case.model_type != "gpt2"])
def test_what_transformers_casts_is_all_that_is_left(twins, name) -> None:
    """A control of `all_in_float64`: left as it is, `transformers` differs by what float32 rounds (GPT-2 has no casts).

    Not with padding: there its scores' lowest value becomes -inf in the cast, and rows of padding NaN.
    """
    tokens, _ = tokens_and_mask()
    found = apart(run_ours(twins(name).ours(torch.float64), tokens), run(twins(name).theirs(torch.float64), tokens))
    assert 100 * EXACT < found < SINGLE


@pytest.mark.parametrize(("name", "fault"), [(case.name, fault) for case in CASES for fault in case.faults])
def test_a_wrong_entry_of_the_config_is_seen(twins, tmp_path, name, fault) -> None:
    wrong = twins(name).copy(tmp_path, {fault: BY_NAME[name].faults[fault]})
    tokens, _ = tokens_and_mask()
    found = apart(run_ours(HookedGPT.from_pretrained(wrong), tokens), run(twins(name).theirs(), tokens))
    assert found > SINGLE


@pytest.mark.parametrize("name", GROUPED)
def test_another_order_of_heads_is_seen(twins, name) -> None:
    """Query head h reads kv head h // group; h % n_kv_heads, the plausible wrong guess, is another function."""
    model = HookedGPT.from_pretrained(twins(name).directory)
    heads, width = model.config.n_heads, model.config.d_head
    tiled = torch.arange(heads).view(-1, model.config.n_kv_heads).T.flatten()
    columns = (tiled[:, None] * width + torch.arange(width)).flatten()
    tokens, _ = tokens_and_mask()
    theirs = run(twins(name).theirs(), tokens)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q_flat.copy_(block.attn.W_Q_flat[:, columns])
            block.attn.W_O_flat.copy_(block.attn.W_O_flat[columns])
            if block.attn.b_Q_flat is not None:
                block.attn.b_Q_flat.copy_(block.attn.b_Q_flat[columns])
            if block.attn.flat_norm:
                block.attn.q_norm.w.copy_(block.attn.q_norm.w[columns])
    found = apart(run_ours(model, tokens), theirs)
    assert found > 100 * SINGLE


@torch.no_grad()
def test_every_weight_matters(twin) -> None:
    """So parity shows that each was read. Only a key's bias shifts whole rows of scores, which changes nothing."""
    model, (tokens, _) = HookedGPT.from_pretrained(twin.directory, dtype=torch.float64), tokens_and_mask()
    before = model(tokens)
    for name, parameter in model.named_parameters():
        kept = parameter.clone()
        parameter += 0.2 * torch.randn(kept.shape, generator=torch.Generator().manual_seed(1))
        moved = difference(model(tokens), before)
        parameter.copy_(kept)
        if name.endswith("b_K_flat") and model.config.positions == "learned":
            assert moved < EXACT, name
        else:
            assert moved > 4 * SINGLE, name


def reads_the_same(twin: Twin, changed: Path) -> None:
    """Both sides take these files for what the twin's say."""
    tokens, _ = tokens_and_mask()
    expected = run(twin.theirs(), tokens)
    theirs = apart(run(oracle(changed), tokens), expected)
    assert theirs == 0, "the case says the same in another way"
    ours = apart(run_ours(HookedGPT.from_pretrained(changed), tokens), expected)
    assert ours < SINGLE


@pytest.mark.parametrize("name", [case.name for case in CASES if case.old])
def test_files_of_older_versions(twins, tmp_path, name) -> None:
    reads_the_same(twins(name), twins(name).copy(tmp_path, dict(BY_NAME[name].old)))


def test_files_that_leave_the_usual_unsaid(twin, tmp_path) -> None:
    twin.copy(tmp_path, {})
    (tmp_path / "config.json").write_text(json.dumps(sparse(twin.theirs().config)))
    reads_the_same(twin, tmp_path)


def test_sizes_that_the_multimodal_files_leave_unsaid(tmp_path) -> None:
    """The smaller Gemma 3 checkpoints say neither heads nor vocabulary."""
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 7, "sliding_window": 3}
    multimodal = BY_NAME["gemma3 of the multimodal files"]
    hf = build(replace(multimodal, config=multimodal.config | {"text_config": text}))
    hf.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text()) | {"text_config": text | {"model_type": "gemma3_text"}}
    (tmp_path / "config.json").write_text(json.dumps(data))
    tokens, _ = tokens_and_mask(1)
    found = apart(run_ours(HookedGPT.from_pretrained(tmp_path), tokens), run(hf, tokens))
    assert found < SINGLE


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "language_model.", "model.", ""])
def test_names_of_the_multimodal_files(twins, tmp_path, prefix) -> None:
    twin = twins("gemma3 of the multimodal files")
    twin.copy(tmp_path, {})
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(key.startswith("language_model.model.") for key in tensors) > 20
    renamed = {key.replace("language_model.model.", prefix): x for key, x in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    tokens, _ = tokens_and_mask()
    found = apart(run_ours(HookedGPT.from_pretrained(tmp_path), tokens), run(twin.theirs(), tokens))
    assert found < SINGLE


def test_an_untied_multimodal_model(tmp_path) -> None:
    """What counts is the outer entry."""
    multimodal = BY_NAME["gemma3 of the multimodal files"]
    hf = build(replace(multimodal, config=multimodal.config | {"tie_word_embeddings": False}))
    hf.save_pretrained(tmp_path)
    tokens, _ = tokens_and_mask()
    found = apart(run_ours(HookedGPT.from_pretrained(tmp_path), tokens), run(hf, tokens))
    assert found < SINGLE


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox", "phi3"])
def test_sharded_files(twins, tmp_path, name) -> None:
    twins(name).theirs().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    reads_the_same(twins(name), tmp_path)


@torch.no_grad()
def test_half_precision(twin, tmp_path) -> None:
    """As near to the truth as `transformers` in bfloat16; "auto" keeps the files' dtype."""
    oracle(twin.directory, torch.bfloat16).save_pretrained(tmp_path)
    tokens, _ = tokens_and_mask(32)
    truth = run(oracle(tmp_path, torch.float64), tokens)[0]
    model = HookedGPT.from_pretrained(tmp_path, dtype="auto")
    assert model.dtype == torch.bfloat16
    theirs, ours = (run(oracle(tmp_path, torch.bfloat16), tokens)[0] - truth).norm(), (model(tokens) - truth).norm()
    assert ours < 1.1 * theirs


@pytest.mark.parametrize("padded", [False, True], ids=["", "left padding"])
def test_greedy_generation(twin, padded) -> None:
    tokens, mask = tokens_and_mask(3, padded=padded)
    theirs = twin.theirs().generate(
        tokens, attention_mask=mask, do_sample=False, max_new_tokens=12, min_new_tokens=12, pad_token_id=0
    )
    assert theirs[:, LENGTH:].unique().numel() > 1
    for use_cache in (True, False):
        ours = twin.ours().generate(
            tokens, attention_mask=mask if padded else None, max_new_tokens=12, temperature=0, use_cache=use_cache
        )
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("padded", [False, True], ids=["", "left padding"])
@torch.no_grad()
def test_a_kv_cache_gives_the_same_logits(twin, padded) -> None:
    """However the text is cut; greedy tokens of small random models repeat and would show little."""
    model, (tokens, mask) = twin.ours(torch.float64), tokens_and_mask(3, padded=padded)
    past, pieces = KVCache(), (slice(0, 4), slice(4, 5), slice(5, 8), slice(8, LENGTH))
    given = [mask[:, piece] if padded else None for piece in pieces]
    parts = [model(tokens[:, piece], attention_mask=m, past=past) for piece, m in zip(pieces, given, strict=True)]
    whole = model(tokens, attention_mask=mask if padded else None)
    assert difference(torch.cat(parts, 1)[mask.bool()], whole[mask.bool()]) < EXACT


@torch.no_grad()
def test_identities_of_the_parts(twin) -> None:
    """What no wrong wiring satisfies: who writes to the stream, which head reads which values, what is unembedded."""
    model, (tokens, _) = twin.ours(torch.float64), tokens_and_mask()
    logits, cache = model.run_with_cache(tokens, names="*")
    stream = cache["embed"] + (cache["pos_embed"] if model.config.positions == "learned" else 0)
    for layer, block in enumerate(model.blocks):
        assert difference(cache["resid_pre", layer], stream) < EXACT
        stream = stream + cache["attn_out", layer]
        if f"blocks.{layer}.hook_resid_mid" in model.hook_points:
            assert difference(cache["resid_mid", layer], stream) < EXACT
        stream = stream + cache["mlp_out", layer]
        kv_head = torch.arange(model.config.n_heads) // block.attn.group
        q, k = ("rot_q", "rot_k") if block.attn.prepares else ("q", "k")
        scores = torch.einsum("bqhd,bkhd->bhqk", cache[q, layer], cache[k, layer][:, :, kv_head]) * block.attn.scale
        scores = scores if block.attn.softcap is None else block.attn.softcap * torch.tanh(scores / block.attn.softcap)
        seen = cache["attn_scores", layer].isfinite()
        assert difference(cache["attn_scores", layer][seen], scores[seen]) < EXACT
        assert difference(cache["pattern", layer], scores.masked_fill(~seen, -torch.inf).softmax(-1)) < EXACT
        mixed = torch.einsum("bhqk,bkhd->bqhd", cache["pattern", layer], cache["v", layer][:, :, kv_head])
        assert difference(cache["z", layer], mixed) < EXACT
        written = torch.einsum("bqhd,hdm->bqm", mixed, block.attn.W_O)
        written = block.ln1_post(written if block.attn.b_O is None else written + block.attn.b_O)
        assert difference(cache["attn_out", layer], written) < EXACT
    assert difference(cache["resid_post", model.config.n_layers - 1], stream) < EXACT
    assert difference(decompose(model, cache)[0].sum(0), stream) < EXACT
    normed = model.ln_final(stream)
    raw = normed @ model.W_U + (0 if model.b_U is None else model.b_U)
    cap = model.config.logit_softcap
    assert difference(logits, raw if cap is None else cap * torch.tanh(raw / cap)) < EXACT
    assert ("blocks.0.hook_resid_mid" in model.hook_points) == (not model.config.parallel)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox", "gpt_bigcode", "phi3"])
def test_ablating_a_query_head(twins, name) -> None:
    """The same as zeroing, inside transformers, its slice of what the output projection reads; no other is touched."""
    model, hf, (tokens, _) = twins(name).ours(), twins(name).theirs(), tokens_and_mask()
    before, width, moved = run(hf, tokens)[0], model.config.d_head, []
    for layer in range(model.config.n_layers):
        for head in range(model.config.n_heads):

            def zero(_, args, head=head):
                z = args[0].clone()
                z[..., head * width : (head + 1) * width] = 0
                return (z, *args[1:])

            handle = output_projection(hf, layer).register_forward_pre_hook(zero)
            theirs = run(hf, tokens)[0]
            handle.remove()
            with torch.no_grad(), model.hooks([ablate_head(layer, head)]):
                assert difference(model(tokens), theirs) < SINGLE
            moved.append(difference(theirs, before))
    assert min(moved) > 20 * SINGLE


def test_saved_files_are_theirs_again(twin, tmp_path) -> None:
    twin.ours().save_pretrained(tmp_path)
    tokens, _ = tokens_and_mask()
    found = apart(run(oracle(tmp_path), tokens), run(twin.theirs(), tokens))
    assert found == 0
    again = HookedGPT.from_pretrained(tmp_path)
    assert again.config == twin.ours().config
    for name, parameter in twin.ours().named_parameters():
        assert torch.equal(again.get_parameter(name), parameter), name


@pytest.fixture(scope="module")
def bridged(twins, tmp_path_factory):
    """Name of a case -> the same weights in transformer-lens' bridge."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<end>": 1}, "a"))
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<end>")
    directory = tmp_path_factory.mktemp("tokenizer")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    words = transformers.PreTrainedTokenizerFast.from_pretrained(directory)

    def bridge(name: str):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformer_lens.model_bridge import TransformerBridge

            hf = oracle(twins(name).directory)
            return TransformerBridge.boot_transformers(
                str(twins(name).directory), hf_model=hf, tokenizer=words, device="cpu"
            )

    return bridge


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["llama", "gemma3", "gpt_neox", "qwen3, windows, biases", "gemma2", "olmo2", "phi", "phi3", "gpt_bigcode"]
)
def test_activations_by_name(twins, bridged, name) -> None:
    """As transformer-lens 4.3 has them; where its bridge splits fused QKV itself, it has no turned queries and keys."""
    tokens, _ = tokens_and_mask()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, theirs = bridged(name).run_with_cache(tokens)
        _, ours = twins(name).ours().run_with_cache(tokens)
    fused = name in ("gpt_neox", "phi3")
    assert {key.rpartition(".")[2] for key in ours if key not in theirs} == (
        {"hook_rot_q", "hook_rot_k"} if fused else set()
    )
    for key in ours:
        if key in theirs:
            seen = torch.isfinite(ours[key])
            apart = difference(ours[key][seen], theirs[key].expand_as(ours[key])[seen])
            assert apart < SINGLE, key
    assert difference(ours["attn_out", 1], theirs["mlp_out", 1]) > 100 * SINGLE


TINY = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 9, "intermediate_size": 8}
LLAMA = TINY | {"model_type": "llama"}
REFUSED = [
    ({"model_type": "bloom"}, "ALiBi"),
    ({"model_type": "mpt"}, "ALiBi"),
    ({"model_type": "falcon", "alibi": True}, "its own layout of queries"),
    ({"model_type": "mixtral"}, "experts"),
    ({"model_type": "qwen3_moe"}, "experts"),
    ({"model_type": "gpt_oss"}, "attention sinks"),
    ({"model_type": "deepseek_v3"}, "latent attention"),
    ({"model_type": "falcon_mamba"}, "state-space"),
    ({"model_type": "rwkv"}, "linear attention"),
    ({"model_type": "gemma3n"}, "embeddings of every layer"),
    ({"model_type": "granite"}, "multipliers"),
    ({"model_type": "t5"}, "relative position"),
    ({"model_type": "brand_new_one"}, "'brand_new_one'"),
    (LLAMA | {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
    (LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "dynamic"),
    (LLAMA | {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0}}, "longrope"),
    (TINY | {"model_type": "phi3", "rope_scaling": {"type": "su", "long_factor": [1.0], "short_factor": [1.0]}}, "su"),
    (TINY | {"model_type": "phi", "qk_layernorm": True}, "qk_layernorm"),
    (TINY | {"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    (LLAMA | {"hidden_act": "xielu"}, "xielu"),
    (LLAMA | {"hidden_act": "silu", "activation_function": "gelu"}, "hidden_act and activation_function differ"),
    (TINY | {"model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "silu"}, "differ"),
    (LLAMA | {"layer_types": ["linear_attention"]}, "linear_attention"),
    (TINY | {"model_type": "opt", "ffn_dim": 8, "word_embed_proj_dim": 4}, "word_embed_proj_dim"),
    (TINY | {"model_type": "opt", "ffn_dim": 8, "do_layer_norm_before": False}, "do_layer_norm_before"),
    ({key: value for key, value in LLAMA.items() if key != "hidden_size"}, "hidden_size"),
]


@pytest.mark.parametrize(("config", "missing"), REFUSED, ids=lambda x: x if isinstance(x, str) else x["model_type"])
def test_refused_with_the_missing_part(tmp_path, config, missing) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(LoadError) as error:
        HookedGPT.from_pretrained(tmp_path)
    assert missing in str(error.value)
