"""Architecture: counts, FLOPs, shapes, memory and paths against torch, transformers and published totals."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import SHAPES, toy
from torch.utils.flop_counter import FlopCounterMode

from analyses.architecture import architecture, describe, longest_path, operations_of
from interp.errors import InputError
from interp.models.config import PRESETS, GPTConfig
from interp.models.gpt import HookedGPT
from interp.models.parts import Norm
from interp.models.positions import KVCache

TRUE_COUNTS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": 81_912_576,
}


@pytest.mark.parametrize("name", TRUE_COUNTS)
def test_parameters_are_the_published_counts(name: str) -> None:
    result = architecture(PRESETS[name])
    assert result.parameters["total"] == TRUE_COUNTS[name]
    assert sum(result.by_component.values()) == TRUE_COUNTS[name]


def test_gpt3_has_175_billion_parameters_without_any_memory() -> None:
    result = architecture(PRESETS["gpt3"])
    assert abs(result.total - 175e9) < 0.005 * 175e9
    assert result.config.n_layers == 96
    assert result.config.d_head == 128
    assert result.longest_path == 386  # "about 400 core layers"
    shapes = {op.name: op.output for op in result.operations}
    assert shapes["queries"] == (1, 2048, 96, 128)
    assert shapes["mlp in"] == (1, 2048, 4 * 12288)
    assert any(panel.key == "sparse" for panel in result.panels())
    assert not any(panel.key == "sparse" for panel in architecture(PRESETS["gpt2"]).panels())


def test_components_agree_with_transformers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        other = GPT2LMHeadModel(GPT2Config())
    named = dict(other.named_parameters())
    of = lambda *marks: sum(p.numel() for n, p in named.items() if any(mark in n for mark in marks))  # noqa: E731
    parts = architecture(PRESETS["gpt2"]).by_component
    assert parts["embedding"] == of("wte")
    assert parts["positions"] == of("wpe")
    assert parts["attention"] == of(".attn.")
    assert parts["mlp"] == of(".mlp.")
    assert parts["layer norm"] == of("ln_")
    assert parts["unembedding"] == 0


configs = st.builds(
    lambda layers, heads, d_head, mlp, vocab, bias, tied: GPTConfig(
        n_layers=layers, n_heads=heads, d_model=heads * d_head, d_mlp=mlp, n_ctx=24, d_vocab=vocab, bias=bias, tied=tied
    ),
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 50), st.integers(2, 60), st.booleans(),
    st.booleans(),
)  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(config=configs, length=st.integers(1, 24), batch=st.integers(1, 3))
def test_operations_add_up_and_flops_equal_torchs_counter(config: GPTConfig, length: int, batch: int) -> None:
    result = architecture(config, length=length, batch=batch)
    with torch.device("meta"):  # torch counts every product there; on the CPU it leaves out the fused attention
        model = HookedGPT(config)
    assert sum(op.parameters * op.count for op in result.operations) == sum(p.numel() for p in model.parameters())
    for part, number in result.by_component.items():
        assert sum(op.parameters * op.count for op in result.operations if op.part == part) == number
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(batch, length, dtype=torch.long, device="meta"))
    assert abs(result.flops - counter.get_total_flops()) <= 0.01 * counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_model_adds_up(shape: str) -> None:
    """Parameters and the longest path against the model itself, FLOPs against torch's counter, shapes against a run."""
    model = toy(shape, d_mlp=0 if shape == "attention only" else 40)
    tokens = torch.zeros(3, 11, dtype=torch.long)
    result = architecture(model, tokens)
    assert result.total == sum(p.numel() for p in model.parameters())
    for part, number in result.by_component.items():
        assert sum(op.parameters * op.count for op in result.operations if op.part == part) == number, part
    norms = sum(p.numel() for module in model.modules() if isinstance(module, Norm) for p in module.parameters())
    assert sum(number for part, number in result.by_component.items() if "norm" in part) == norms
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():  # scores are looked at, so that no fused kernel hides its products from the counter
        _, cache = model.run_with_cache(tokens)
    assert result.flops == counter.get_total_flops()
    depth: dict[object, int] = {}

    def longest(node: torch.autograd.graph.Node) -> int:
        if node not in depth:
            below = [longest(child) for child, _ in node.next_functions if child is not None]
            depth[node] = max(below, default=0) + node.name().startswith(("Addmm", "Mm", "Embedding"))
        return depth[node]

    assert longest(model(tokens[:, :4]).grad_fn) == result.longest_path
    c = model.config
    norm = {"layer": "layer norm", "rms": "RMS norm", None: "norm"}[c.norm]
    act = {"gelu_new": "gelu"}.get(c.act_fn, c.act_fn)
    hooks = {
        "embed" if c.embed_scale == 1 else "scale embeddings": "hook_embed",
        f"{norm} 1": "blocks.1.ln1.hook_normalized",
        "keys": "blocks.1.attn.hook_k", "queries": "blocks.1.attn.hook_q", "softmax": "blocks.1.attn.hook_pattern",
        "rotate keys" if c.positions == "rotary" else f"{norm} of keys": "blocks.1.attn.hook_rot_k",
        f"{norm} after attention": "blocks.1.ln1_post.hook_normalized", "add attention": "blocks.1.hook_resid_mid",
        f"{norm} 2": "blocks.1.ln2.hook_normalized", "mlp gate" if c.gated else "mlp in": "blocks.1.mlp.hook_pre",
        "multiply by gate" if c.gated else act: "blocks.1.mlp.hook_post",
        f"{norm} after mlp": "blocks.1.ln2_post.hook_normalized", f"final {norm}": "ln_final.hook_normalized",
    }  # fmt: skip
    hooks["add attention" if c.attn_only else "add mlp"] = "blocks.1.hook_resid_post"
    if c.gated:
        hooks["mlp in"] = "blocks.1.mlp.hook_pre_linear"
    shapes = {op.name: op.output for op in result.operations}
    for operation, hook in hooks.items():
        if hook in cache:
            assert shapes[operation] == tuple(cache[hook].shape), operation
    assert result.memory["every activation (run_with_cache)"] == cache.nbytes
    table = next(panel for panel in result.panels() if panel.key == "parts").frame.set_index("part")["kind"]
    assert ("over" in table["heads"]) == (c.n_kv_heads < 4)
    assert ("windows" in table) == (c.windows is not None)


def test_what_a_model_is_made_of_is_said_in_words() -> None:
    table = {shape: describe(toy(shape).config).set_index("part")["kind"] for shape in ("gpt2", "gemma2", "gptj")}
    assert table["gpt2"].to_dict() == {
        "block": "attention, then MLP", "norm": "layer norm before each part", "positions": "learned",
        "heads": "4 of queries, width 8", "who is seen": "itself and all before", "MLP": "gelu, 128 wide",
        "unembedding": "the embedding used again",
    }  # fmt: skip
    assert table["gemma2"]["caps"] == "scores within ±5, logits within ±4"
    assert table["gemma2"]["windows"] == "1 of 2 layers see at most 3"
    assert table["gemma2"]["heads"] == "4 of queries over 2 of keys and values, width 6"
    assert table["gptj"]["block"] == "attention and MLP side by side"


def test_half_the_attention_would_not_agree_with_the_counter() -> None:
    """Control: the 1 % of the comparison above is narrow enough to see a wrong convention for attention."""
    result = architecture(PRESETS["gpt2"])
    counter = FlopCounterMode(display=False)
    with torch.device("meta"):
        model = HookedGPT(PRESETS["gpt2"])
        with counter, torch.no_grad():
            model(torch.zeros(1, 1024, dtype=torch.long))
    total = counter.get_total_flops()
    assert abs(result.flops - total) <= 0.01 * total
    halved = result.flops - sum(op.flops * op.count for op in result.operations if not op.core) / 2
    assert abs(halved - total) > 0.01 * total


def test_shapes_are_those_of_a_run() -> None:
    model = make_gpt(n_layers=2, d_mlp=72)
    result = architecture(model, torch.zeros(3, 11, dtype=torch.long))
    _, cache = model.run_with_cache(torch.zeros(3, 11, dtype=torch.long))
    hooks = {
        "embed": "hook_embed",
        "embed positions": "hook_pos_embed",
        "layer norm 1": "blocks.1.ln1.hook_normalized",
        "queries": "blocks.1.attn.hook_q",
        "keys": "blocks.1.attn.hook_k",
        "values": "blocks.1.attn.hook_v",
        "scores": "blocks.1.attn.hook_attn_scores",
        "softmax": "blocks.1.attn.hook_pattern",
        "mix values": "blocks.1.attn.hook_z",
        "output projection": "blocks.1.hook_attn_out",
        "add attention": "blocks.1.hook_resid_mid",
        "mlp in": "blocks.1.mlp.hook_pre",
        "gelu": "blocks.1.mlp.hook_post",
        "mlp out": "blocks.1.hook_mlp_out",
        "add mlp": "blocks.1.hook_resid_post",
        "final layer norm": "ln_final.hook_normalized",
    }
    shapes = {op.name: op.output for op in result.operations}
    for operation, hook in hooks.items():
        assert shapes[operation] == tuple(cache[hook].shape), operation
    assert shapes["unembed"] == (3, 11, 300)


def test_memory_is_what_tensors_take() -> None:
    model = make_gpt(dtype=torch.bfloat16)
    tokens, past = torch.zeros(2, 9, dtype=torch.long), KVCache()
    logits, cache = model.run_with_cache(tokens)
    model(tokens, past=past)
    memory = architecture(model, tokens).memory
    assert memory["weights"] == sum(p.numel() * p.element_size() for p in model.parameters())
    assert memory["logits"] == logits.numel() * logits.element_size()
    assert memory["every activation (run_with_cache)"] == cache.nbytes
    kept = sum(x.numel() * x.element_size() for pair in past.layers.values() for x in pair)
    assert memory["keys and values for generation"] == kept
    patterns = sum(cache["pattern", layer].numel() * 2 for layer in range(2))
    assert memory["attention patterns, all heads"] == patterns
    assert architecture(model, tokens, precision="float32").memory["logits"] == 2 * memory["logits"]


@pytest.mark.parametrize("layers", [1, 3])
def test_longest_path_is_the_one_in_autograds_graph(layers: int) -> None:
    """The longest chain of products with weights and look-ups that autograd recorded for a real pass."""
    model = make_gpt(n_layers=layers)
    depth: dict[object, int] = {}

    def longest(node: torch.autograd.graph.Node) -> int:
        if node not in depth:
            below = [longest(child) for child, _ in node.next_functions if child is not None]
            depth[node] = max(below, default=0) + node.name().startswith(("Addmm", "Mm", "Embedding"))
        return depth[node]

    logits = model(torch.zeros(1, 4, dtype=torch.long))
    assert longest(logits.grad_fn) == architecture(model).longest_path == 4 * layers + 2


def test_a_skipped_operation_shortens_the_path() -> None:
    """Control: the path follows what operations read, it is no formula."""
    operations = operations_of(make_gpt().config, 4, 1)
    parallel = [
        dataclasses.replace(op, reads=("stream",)) if op.name == "layer norm 2" else op for op in operations
    ]  # MLP beside attention, as in GPT-J
    parallel = [dataclasses.replace(op, reads=("stream", "mlp out")) if op.name == "add mlp" else op for op in parallel]
    assert longest_path(operations, core_only=True) == 4 * 2 + 2
    assert longest_path(parallel, core_only=True) == 2 * 2 + 2


def test_attention_overtakes_the_weights_where_it_says() -> None:
    result = architecture(PRESETS["gpt2"])
    first = next(
        n for n in range(6000, 8000)
        if (between := [op.flops * op.count for op in operations_of(result.config, n, 1) if not op.core])
        and sum(between) >= sum(op.flops * op.count for op in operations_of(result.config, n, 1) if op.core)
    )  # fmt: skip
    assert first == np.ceil(result.even_length)
    doubled = result.lengths.index(2048), result.lengths.index(1024)
    assert result.flops_linear[doubled[0]] == 2 * result.flops_linear[doubled[1]]
    assert result.flops_attention[doubled[0]] == 4 * result.flops_attention[doubled[1]]
    assert result.kv_bytes[doubled[0]] == 2 * result.kv_bytes[doubled[1]]
    assert result.pattern_bytes[doubled[0]] == 4 * result.pattern_bytes[doubled[1]]


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="length 1025"):
        architecture(PRESETS["gpt2"], length=1025)
    with pytest.raises(InputError, match="length 0"):
        architecture(PRESETS["gpt2"], length=0)
    with pytest.raises(InputError, match="batch 0"):
        architecture(PRESETS["gpt2"], batch=0)


def test_the_result_describes_itself() -> None:
    result = architecture(make_gpt(), torch.zeros(1, 8, dtype=torch.long))
    frame = result.to_dataframe()
    assert frame["parameters"].sum() == result.total
    assert frame["flops"].sum() == result.flops
    keys = [panel.key for panel in result.panels()]
    assert len(set(keys)) == len(keys)
    assert all(finding.key in keys for finding in result.findings())


def test_facts_hold_the_parameters_in_total_and_by_component() -> None:
    import json

    facts = json.loads(json.dumps(architecture(PRESETS["gpt2-xl"]).facts()))
    assert facts["parameters"]["total"] == 1_557_611_200
    assert sum(facts["parameters"]["by_component"].values()) == 1_557_611_200


def test_ids_with_a_config_give_length_and_batch() -> None:
    config = GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=32, d_vocab=50)
    found, same = architecture(config, torch.zeros(3, 4, dtype=torch.long)), architecture(config, length=4, batch=3)
    assert (found.length, found.batch, found.flops) == (4, 3, same.flops)
    assert architecture(config, torch.zeros(5, dtype=torch.long)).length == 5
    assert architecture(config, torch.zeros(3, 4, dtype=torch.long), batch=1).flops == same.flops // 3
    for wrong in (torch.full((1, 4), 50), torch.zeros(1, 33, dtype=torch.long), torch.zeros(1, 4)):
        with pytest.raises(InputError):
            architecture(config, wrong)
