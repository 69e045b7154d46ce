"""Sweeps equal the slow loop, whatever is edited, read and collected; faults, kills and interrupts are seen."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_gpt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapes import SHAPES, toy
from test_encoder import BERT, make
from test_encoder_decoder import make_pair
from torch import Tensor

from interp.errors import HookNameError, InputError, InterpError, MemoryLimitError
from interp.hooks import APART
from interp.interventions import (
    PATTERN,
    Add,
    Affine,
    Intervention,
    Replace,
    ablate_head,
    ablate_mlp,
    ablate_neurons,
    axes,
    freeze,
    patch,
    project_out,
    steer,
)
from interp.models.encoder_decoder import HookedEncoderDecoder
from interp.models.gpt import HookedGPT
from interp.sweep import CHECKED, Pair, SweepInterrupted, engine, layout, lowered, resumable, slow_sweep, sweep
from interp.sweep.clean import CleanRun
from interp.sweep.engine import Chunk
from interp.sweep.plan import Limits, Plan
from interp.sweep.results import _close

VOCAB = 23
MODELS: dict[tuple, HookedGPT] = {
    (layers, heads, dtype): make_gpt(
        dtype=dtype,
        n_layers=layers,
        n_heads=heads,
        d_model=16,
        d_vocab=VOCAB,
        act_fn=act,
        tied=layers != 2,
        windows=(None, 2, 3) if layers == 3 else None,
    )
    for layers, heads, act in ((1, 2, "gelu"), (2, 4, "gelu_new"), (3, 1, "gelu_new"))
    for dtype in (torch.float32, torch.float64)
} | {
    (shape, dtype): toy(shape, dtype=dtype, d_model=16, d_vocab=VOCAB)
    for shape in SHAPES
    for dtype in (torch.float32, torch.float64)
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def everything(logits: Tensor) -> dict[str, Tensor]:
    """A metric that sees every logit, and one that mixes positions."""
    return {"logits": logits, "spread": logits.std((1, 2))}


def assert_same(model: HookedGPT, tokens: Tensor, variants: list, metric=everything, **options) -> None:
    """Both sweeps give the same names, shapes, dtypes and values; the tolerance is relative to each result's size."""
    fast = sweep(model, tokens, variants, metric, **options)
    slow = slow_sweep(model, tokens, variants, metric, **options)
    assert fast.keys() == slow.keys()
    for name, expected in slow.items():
        finite = expected[expected.isfinite()]
        size = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
        limit = TOLERANCE[model.dtype] * size
        torch.testing.assert_close(fast[name], expected, atol=limit, rtol=0, equal_nan=True)


def served(model: HookedGPT) -> list[str]:
    return [name for name in model.hook_points if not name.endswith(APART)]


@st.composite
def interventions(draw, model: HookedGPT, batch: int, length: int) -> Intervention:
    """Anything that Replace, Add and Affine can say of a hook point."""
    name = draw(st.sampled_from(served(model)))
    shape = model.hook_shape(name, batch, length)
    pos_axis, head_axis = axes(name)

    def index(size: int):
        one = st.integers(-size, size - 1)
        return st.one_of(st.none(), one, st.lists(one, min_size=1, max_size=size))

    place = {
        "head": draw(index(shape[head_axis])) if head_axis is not None else None,
        "pos": draw(index(shape[pos_axis])),
        "unit": draw(st.one_of(st.none(), index(shape[-1]))),
    }
    seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    kept = draw(st.sampled_from([shape, (1, *shape[1:]), shape[1:], shape[-1:]]))
    value: float | Tensor = torch.randn(kept, generator=seed, dtype=torch.float64).to(model.dtype)
    if name.endswith("hook_scale"):
        value = value.abs() + 0.5
    if not name.endswith(PATTERN) and draw(st.integers(0, 3)) == 0:  # no sums with scores that are minus infinity
        factors = [
            torch.randn(size, generator=seed, dtype=torch.float64).to(model.dtype)
            for size in ((shape[-1], 2), (2, shape[-1]))
        ]
        left, right = factors if draw(st.booleans()) else (None, None)
        return Affine(name=name, factor=0.5, left=left, right=right, value=draw(st.sampled_from([value, 0.1])), **place)
    if draw(st.integers(0, 2)) == 0:
        return Add(name=name, value=value, scale=0.5, **place)
    return Replace(name=name, value=draw(st.sampled_from([value, 0.7])), **place)


@st.composite
def sweeps(draw) -> tuple[HookedGPT, Tensor, list, dict]:
    """A model, tokens, variants, and what to read, collect, pad and chunk."""
    model = draw(st.sampled_from(list(MODELS.values())))
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    tokens = torch.tensor(draw(st.lists(st.integers(0, VOCAB - 1), min_size=batch * length, max_size=batch * length)))
    tokens = tokens.view(batch, length)
    pads = [draw(st.integers(0, length - 1)) for _ in range(batch)] if draw(st.booleans()) else None
    mask = None if pads is None else (torch.arange(length) >= torch.tensor(pads)[:, None]).long()
    edit = interventions(model, batch, length)
    variants: list = draw(st.lists(st.one_of(edit, st.lists(edit, max_size=4)), min_size=1, max_size=5))
    if draw(st.booleans()):
        _, cache = model.run_with_cache(tokens, attention_mask=mask, names=lambda name: True)
        frozen = draw(st.lists(st.sampled_from(served(model)), min_size=1, max_size=6, unique=True))
        variants.append([*freeze(frozen, cache), draw(edit)])
    position, name = st.integers(-length, length - 1), st.sampled_from(served(model))
    options = {
        "read": draw(st.one_of(st.none(), st.lists(position, min_size=1, max_size=length))),
        "vocab": draw(st.sampled_from([None, [5, 0, -1]])),
        "collect": draw(st.one_of(st.none(), st.lists(name, min_size=1, max_size=3))),
        "attention_mask": mask,
    }
    return model, tokens, variants, options


def check_against_the_slow_loop(case: tuple, measure: bool) -> None:
    model, tokens, variants, options = case
    assert_same(model, tokens, variants, everything if measure or options["collect"] is None else None, **options)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(sweeps(), st.booleans())
def test_equals_the_slow_loop(case: tuple, measure: bool) -> None:
    check_against_the_slow_loop(case, measure)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(sweeps(), st.booleans())
def test_equals_the_slow_loop_a_thousand_times(case: tuple, measure: bool) -> None:
    check_against_the_slow_loop(case, measure)


SITES = [
    (shape, name) for shape in SHAPES for name in MODELS[shape, torch.float64].hook_points if "blocks.1" not in name
]


@pytest.mark.parametrize(("shape", "name"), SITES)
def test_every_hook_point(shape: str, name: str) -> None:
    """Each place once, with a value of its own for each batch entry, alone and after an earlier edit, small chunks."""
    model = MODELS[shape, torch.float64]
    tokens = torch.randint(0, VOCAB, (2, 5))
    at = model.hook_shape(name, 2, 5)
    value = torch.rand(at, dtype=torch.float64) + 0.5
    head_axis = axes(name)[1]
    head = None if head_axis is None else at[head_axis] - 1
    edits = [Replace(name=name, value=value, pos=pos, head=head) for pos in (None, 2, [0, 3])]
    edits += [Add(name=name, value=value, unit=0), Replace(name=name, value=0.5)]
    if name.endswith(APART):  # a copy that only some read: model.hooks alone serve it
        for variants, collect in ((edits, "hook_embed"), ([()], name)):
            with pytest.raises(InputError, match=f"{name} in a sweep"):
                sweep(model, tokens, variants, collect=collect)
        return
    edits += (
        []
        if name.endswith((*PATTERN, "hook_scale"))
        else [project_out(name, value.flatten(0, -2)[:1], pos=[1, 3], head=head)]
    )
    earlier = Add(name="hook_embed", value=torch.ones(16, dtype=torch.float64), pos=1)
    later = Replace(name="blocks.1.hook_attn_out", value=0.0, pos=-1)
    variants = [*edits, *([earlier, edit, later] for edit in edits)]
    for read in (None, [-2, 1]):
        assert_same(model, tokens, variants, read=read)


def test_a_query_head_is_one_head_and_a_key_value_head_its_group() -> None:
    """Zeroing a query head's z changes that head alone; zeroing a value head silences its whole group; a control."""
    model = toy("llama", dtype=torch.float64)
    tokens = torch.randint(0, 300, (1, 6))
    clean = model.run_with_cache(tokens, names="z")[1]["z", 0]
    value = Replace(name="blocks.0.attn.hook_v", head=1, value=0.0)
    found = sweep(model, tokens, [ablate_head(0, 1), value], collect="blocks.0.attn.hook_z")["blocks.0.attn.hook_z"]
    silent = [[h for h in range(4) if not variant[:, :, h].any()] for variant in found]
    assert silent == [[1], [2, 3]]  # groups are neighbours: tiling would give [1, 3]
    for variant, heads in zip(found, silent, strict=True):
        others = [h for h in range(4) if h not in heads]
        torch.testing.assert_close(variant[:, :, others], clean[:, :, others], atol=1e-12, rtol=0)


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk has the rows of so many whole texts: a patch at position p changes what is from there on alone."""
    model = MODELS[3, 1, torch.float64]
    tokens = torch.randint(0, VOCAB, (2, 6))
    _, cache = model.run_with_cache(torch.randint(0, VOCAB, (2, 6)))
    variants = [patch(f"blocks.{layer}.hook_resid_pre", cache, pos=pos) for layer in range(3) for pos in range(6)]
    variants += [ablate_head(layer, 0) for layer in range(3)] + [ablate_neurons(1, [3, 60])]
    whole = sweep(model, tokens, variants, everything)["logits"]
    sizes = []
    run = Chunk.run
    monkeypatch.setattr(Chunk, "run", lambda self: (sizes.append(len(self.variants)), run(self))[1])
    for limits in (Limits(1, 1, 1), Limits(5, 13, 7), Limits(100, 24, 1000)):
        monkeypatch.setattr(Plan, "limits", lambda self, memory, limits=limits: limits)
        torch.testing.assert_close(sweep(model, tokens, variants, everything)["logits"], whole, atol=1e-12, rtol=0)
    by_layer = [*(1, 1, 1, 3, 1), *(1, 1, 1, 3, 1, 1), *(1, 1, 1, 3, 1)]  # 6, 5, 4, 3 + 2 + 1 rows, then a head's 6
    assert sizes == [*by_layer, *(7, 7, 7, 1), 22]
    sizes.clear()  # what is collected takes the memory of whole texts
    monkeypatch.setattr(Plan, "limits", lambda self, memory: Limits(5, 13, 7))
    sweep(model, tokens, variants, collect="blocks.2.hook_resid_post")
    assert sizes == [5, 5, 5, 5, 2]


def test_memory_decides_the_chunks() -> None:
    model = MODELS[3, 1, torch.float32]
    tokens = torch.randint(0, VOCAB, (2, 6))
    calls: list[tuple[int, int]] = []
    variants = [ablate_head(layer % 3, 0, value=float(layer)) for layer in range(400)]
    wide = sweep(model, tokens, variants, everything)
    needed = 400 * sum(x[0].numel() * 4 for x in wide.values())
    limited = {"memory": needed + 300_000, "progress": lambda *done: calls.append(done)}
    narrow = sweep(model, tokens, variants, everything, **limited)
    torch.testing.assert_close(narrow["logits"], wide["logits"], atol=1e-6, rtol=0)
    assert len(calls) > 5
    assert calls[-1] == (400, 400)
    with pytest.raises(MemoryLimitError, match="expected at least"):
        sweep(model, tokens, variants, everything, memory=10_000)


FAULTS = {
    "the change of a head is forgotten": ("_head_change", lambda self, variant, layer, base, queries: torch.zeros(())),
    "changes do not spread to later positions": ("_from_first", lambda self, positions: positions),
    "the edits of running variants are skipped": ("_visit", lambda self, name, parts: None),
    "variants are taken for clean": ("_route", lambda self, *_: "skip"),
    "rows are turned by the first position": (
        "rows_of",
        lambda self, positions: torch.zeros(self.batch * len(positions), dtype=torch.long),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["llama", torch.float64]
    tokens = torch.randint(0, VOCAB, (2, 6))
    variants = [ablate_head(1, 0), steer(1, torch.arange(16.0) / 8, pos=2), [ablate_head(0, 0), ablate_mlp(1)]]
    assert_same(model, tokens, variants)
    name, wrong = FAULTS[fault]
    monkeypatch.setattr(Chunk if hasattr(Chunk, name) else CleanRun, name, wrong)
    with pytest.raises(AssertionError):
        assert_same(model, tokens, variants)


def test_a_slightly_wrong_value_is_caught() -> None:
    model = MODELS[2, 4, torch.float64]
    tokens = torch.randint(0, VOCAB, (1, 5))
    exact = slow_sweep(model, tokens, [ablate_head(0, 1)], everything)["logits"]
    near = sweep(model, tokens, [ablate_head(0, 1, value=1e-7)], everything)["logits"]
    assert 1e-10 < float((exact - near).abs().max()) < 1e-4


def test_the_clean_run_is_a_variant_without_edits() -> None:
    model = MODELS[2, 4, torch.float32]
    tokens = torch.randint(0, VOCAB, (2, 4))
    found = sweep(model, tokens, [(), ablate_head(0, 0)], everything, collect="z")
    logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(found["logits"][0], logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["blocks.1.attn.hook_z"][0], cache["z", 1], atol=1e-6, rtol=0)
    assert found["blocks.0.attn.hook_z"][1, :, :, 0].abs().max() == 0
    assert not torch.allclose(found["blocks.1.attn.hook_z"][1], cache["z", 1])


def test_weights_laid_out_for_many_rows_change_nothing(monkeypatch) -> None:
    """Products of every size by the kernel for large ones; a control: other weights are noticed."""
    monkeypatch.setattr("interp.models.kernels.SMALL", 0)
    monkeypatch.setattr(engine, "PACKED_FROM", 0)
    model = MODELS[2, 4, torch.float32]
    tokens = torch.randint(0, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))
    variants = [ablate_head(layer, head, pos=pos) for layer in (0, 1) for head in range(4) for pos in range(6)]
    monkeypatch.setattr(Plan, "limits", lambda self, memory: Limits(len(variants), 24, 1000))
    assert_same(model, tokens, variants)
    monkeypatch.setattr(layout, "pack", lambda weight: weight.flip(0).T)
    with pytest.raises(AssertionError):
        assert_same(model, tokens, variants)


def test_nothing_is_computed_that_did_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen parts, layers before the edit and unread positions never reach a matrix product."""
    model = MODELS[3, 1, torch.float64]
    tokens = torch.randint(0, VOCAB, (2, 6))
    _, cache = model.run_with_cache(tokens)
    rows: dict[str, list[int]] = {"_attend": [], "_transform": []}
    attend, transform = Chunk._attend, Chunk._transform

    def count_attend(self, layer, base, block, matrices) -> None:
        rows["_attend"].append(sum(len(ask.before) for ask in block))
        attend(self, layer, base, block, matrices)

    def count_transform(self, layer, base, norm, residual, layout, matrices) -> Tensor:
        rows["_transform"].append(sum(len(positions) for _, positions in layout.parts))
        return transform(self, layer, base, norm, residual, layout, matrices)

    monkeypatch.setattr(Chunk, "_attend", count_attend)
    monkeypatch.setattr(Chunk, "_transform", count_transform)
    sweep(model, tokens, [ablate_head(1, 0, pos=4)], everything, read=[-1])
    assert rows == {"_attend": [1], "_transform": [1, 1]}  # layer 1: MLP at 4; layer 2: keys at 4, then the MLP at 5
    rows["_attend"].clear(), rows["_transform"].clear()
    later = [name for name in cache if name.endswith(("attn_out", "mlp_out")) and not name.startswith("blocks.0")]
    sweep(model, tokens, [[ablate_head(0, 0), *freeze(later, cache)]], everything)
    assert rows == {"_attend": [], "_transform": [6]}
    rows["_attend"].clear(), rows["_transform"].clear()
    other = tokens.clone()
    other[0, 3] = (other[0, 3] + 1) % VOCAB
    _, cache = model.run_with_cache(other)
    sweep(model, tokens, [patch("blocks.0.hook_resid_pre", cache, pos=pos) for pos in range(6)], everything)
    assert rows["_attend"][0] == 1  # one token differs: five of the six patches put back what is there


@pytest.mark.parametrize(
    ("variant", "options", "error"),
    [
        (Replace(name="blocks.0.attn.hook_zz"), {}, HookNameError),
        (ablate_head(0, 4), {}, InputError),
        (ablate_head(0, 0, pos=5), {}, InputError),
        (ablate_mlp(0, torch.zeros(3)), {}, InputError),
        (Replace(name="blocks.0.hook_mlp_out", head=0), {}, InputError),
        (ablate_mlp(0), {"read": []}, InputError),
        (ablate_mlp(0), {"read": [5]}, InputError),
        (ablate_mlp(0), {"vocab": [VOCAB]}, InputError),
        (ablate_mlp(0), {"metric": None}, InputError),
    ],
)
def test_mistakes_are_named(variant: Replace, options: dict, error: type[Exception]) -> None:
    model = MODELS[2, 4, torch.float32]
    with pytest.raises(error) as raised:
        sweep(model, torch.zeros(1, 5, dtype=torch.long), [variant], **{"metric": everything} | options)
    assert len(str(raised.value).splitlines()) <= 3


def test_no_variants_hooks_around_and_changing_metrics_are_refused() -> None:
    model = MODELS[2, 4, torch.float32]
    tokens = torch.zeros(1, 5, dtype=torch.long)
    with pytest.raises(InputError, match="no variants"):
        sweep(model, tokens, [], everything)
    with model.hooks([ablate_mlp(0)]), pytest.raises(InputError, match="hooks"):
        sweep(model, tokens, [ablate_mlp(1)], everything)
    names = iter("abc")
    with pytest.raises(InputError, match="same names"):
        sweep(model, tokens, [ablate_mlp(1)], lambda logits: {next(names): logits})


def test_another_dtype() -> None:
    model = MODELS[2, 4, torch.float32]
    tokens = torch.randint(0, VOCAB, (2, 4))
    variants = [ablate_head(0, 1), steer(1, torch.ones(16))]
    exact = sweep(model, tokens, variants, everything)["logits"]
    rough = sweep(model, tokens, variants, everything, dtype=torch.bfloat16)["logits"]
    assert rough.dtype == torch.float32
    assert 1e-4 < float((rough - exact).abs().max()) < 0.5
    assert model.dtype == torch.float32


# Interrupts and resumption.


def test_an_interrupt_keeps_what_is_finished_and_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[2, 4, torch.float32]
    tokens = torch.randint(0, VOCAB, (1, 5))
    variants = [ablate_head(layer, head) for layer in range(2) for head in range(4)]
    expected = sweep(model, tokens, variants, everything)["logits"]
    monkeypatch.setattr(Plan, "limits", lambda self, memory: Limits(1, 100, 100))

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    file = tmp_path / "sweep.pt"
    with pytest.raises(SweepInterrupted) as interrupted:
        sweep(model, tokens, variants, everything, checkpoint=file, progress=stop)
    done = interrupted.value.finished
    assert done.sum() == 3
    torch.testing.assert_close(interrupted.value.results["logits"][done], expected[done], atol=1e-5, rtol=0)
    calls: list[int] = []
    found = sweep(model, tokens, variants, everything, checkpoint=file, progress=lambda done, total: calls.append(done))
    assert calls == [4, 5, 6, 7, 8]
    torch.testing.assert_close(found["logits"], expected, atol=1e-5, rtol=0)


def test_a_checkpoint_of_another_sweep_is_refused(tmp_path: Path) -> None:
    model = MODELS[2, 4, torch.float32]
    tokens = torch.randint(0, VOCAB, (1, 5))
    file = tmp_path / "sweep.pt"
    vector = torch.ones(16)
    sweep(model, tokens, [steer(0, vector)], everything, checkpoint=file)
    sweep(model, tokens, [steer(0, vector.clone())], everything, checkpoint=file)
    others = [(model, tokens, steer(0, vector * 2)), (model, tokens, steer(0, vector, pos=1))]
    others += [(MODELS[3, 1, torch.float32], tokens, steer(0, vector)), (model, (tokens + 1) % VOCAB, steer(0, vector))]
    for other, ids, edit in others:
        with pytest.raises(InputError, match="another sweep"):
            sweep(other, ids, [edit], everything, checkpoint=file)
    file.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="no checkpoint"):
        sweep(model, tokens, [steer(0, vector)], everything, checkpoint=file)


def test_every_sweep_in_a_block_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[2, 4, torch.float32]
    texts = [torch.randint(0, VOCAB, (1, 5)) for _ in range(3)]
    variants = [ablate_head(layer, head) for layer in range(2) for head in range(4)]
    monkeypatch.setattr(Plan, "limits", lambda self, memory: Limits(1, 100, 100))
    run, ran = Plan.run, []

    def counted(self, chosen, limits):
        ran.append(chosen)
        if len(ran) == 13:  # in the second of the three
            raise KeyboardInterrupt
        return run(self, chosen, limits)

    monkeypatch.setattr(Plan, "run", counted)
    folder = tmp_path / "kept"

    def both(tokens: Tensor) -> dict[str, Tensor]:
        found = sweep(model, tokens, variants, everything)
        return found | {"spread": sweep(model, tokens, variants[:1], lambda x: {"top": x.amax(2)})["top"]}

    with pytest.raises(KeyboardInterrupt), resumable(folder):
        [both(tokens) for tokens in texts]
    assert len(list(folder.iterdir())) == 3
    ran.clear()
    ran.append(None)
    monkeypatch.setattr(Plan, "run", lambda self, chosen, limits: (ran.append(chosen), run(self, chosen, limits))[1])
    with resumable(folder):
        found = [both(tokens) for tokens in texts]
    assert len(ran) - 1 == 27 - 12  # nothing that was finished ran again
    assert not folder.exists()
    for tokens, results in zip(texts, found, strict=True):
        expected = slow_sweep(model, tokens, variants, everything)["logits"]
        torch.testing.assert_close(results["logits"], expected, atol=1e-5, rtol=0)


def test_sweeps_that_differ_in_the_metric_alone_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both metrics have one name and are 0 in the clean run; what one has finished never becomes the other's."""
    model = MODELS[2, 4, torch.float32]
    tokens = torch.randint(0, VOCAB, (1, 5))
    variants = [ablate_head(layer, head) for layer in range(2) for head in range(4)]
    clean = sweep(model, tokens, [()], everything)["logits"][0]
    metrics = [lambda x: {"far": (x - clean).abs().amax((1, 2))}, lambda x: {"far": (x - clean).pow(2).sum((1, 2))}]
    expected = [slow_sweep(model, tokens, variants, metric)["far"] for metric in metrics]
    run = Plan.run

    def stop(self, chosen, limits):
        if self.metric is metrics[1]:
            raise KeyboardInterrupt
        return run(self, chosen, limits)

    monkeypatch.setattr(Plan, "run", stop)
    with pytest.raises(KeyboardInterrupt), resumable(tmp_path / "kept"):
        [sweep(model, tokens, variants, metric) for metric in metrics]
    monkeypatch.setattr(Plan, "run", run)
    with resumable(tmp_path / "kept"):
        found = [sweep(model, tokens, variants, metric)["far"] for metric in metrics]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (expected[0] - expected[1]).abs().min() > 1e-3  # a control: they are not the same
    assert not (tmp_path / "kept").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InterpError, match="cannot be made"), resumable(tmp_path / "file" / "kept"):
        pass


def test_a_lower_dtype_keeps_its_checkpoint_to_itself(tmp_path: Path) -> None:
    model, tokens = MODELS[2, 4, torch.float32], torch.randint(0, VOCAB, (1, 5))
    for _ in range(2):
        with lowered(torch.bfloat16) as rounding:
            found = sweep(model, tokens, [ablate_head(0, 1)], everything, checkpoint=tmp_path / "file")
        assert found["logits"].isfinite().all()
        assert rounding.difference["logits"] > 1e-4


def test_a_lower_dtype_says_how_far_it_is_from_the_models_own() -> None:
    model = MODELS[2, 4, torch.float32]
    tokens = torch.randint(0, VOCAB, (1, 5))
    variants = [ablate_head(layer, head) for layer in range(2) for head in range(4)]
    exact = sweep(model, tokens, variants, everything)
    with lowered(torch.bfloat16) as rounding:
        found = sweep(model, tokens, variants, everything)
    apart = {name: float((found[name].double() - value.double()).abs().max()) for name, value in exact.items()}
    assert rounding.checked == CHECKED
    for name, value in rounding.difference.items():
        assert 0 < value <= apart[name]
        assert value > 1e-4  # a control: two float32 runs differ by less
    torch.testing.assert_close(sweep(model, tokens, variants, everything)["logits"], exact["logits"])


KILLED = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import make_gpt
from interp.sweep import results as sweep_results
from interp.interventions import ablate_head
from interp.sweep import sweep
from interp.sweep.plan import Limits, Plan
torch.set_num_threads(1)
sweep_results.SAVE_EVERY = 0.0
Plan.limits = lambda self, memory: Limits(1, 100, 100)
model = make_gpt(n_layers=2)
variants = [ablate_head(layer, head) for layer in range(2) for head in range(4)]
first = []
def report(done, total):
    first.append(done)
    print(done, flush=True)
    if done == 3:
        sys.stdin.read()  # until it is killed: nobody closes this
metric = lambda logits: {{"logits": logits}}
options = {{"checkpoint": Path(sys.argv[1]), "progress": report}}
found = sweep(model, torch.arange(5)[None], variants, metric, **options)
torch.save((first, found["logits"]), sys.argv[1] + ".done")
"""


def test_a_killed_sweep_is_resumed(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parent)))
    file = tmp_path / "sweep.pt"
    command = [sys.executable, str(script), str(file)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    for line in process.stdout:
        if int(line) == 3:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stdin.close()
    assert not Path(f"{file}.done").exists()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60)
    reported, logits = torch.load(f"{file}.done", weights_only=True)
    assert reported == [4, 5, 6, 7, 8]
    model = make_gpt(n_layers=2)
    variants = [ablate_head(layer, head) for layer in range(2) for head in range(4)]
    expected = slow_sweep(model, torch.arange(5)[None], variants, lambda logits: {"logits": logits})["logits"]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    model = make_gpt(n_layers=2, dtype=torch.float64).to("cuda")
    tokens = torch.randint(0, 300, (2, 7), device="cuda")
    _, cache = model.run_with_cache(tokens.flip(1))
    variants = [ablate_head(1, 2), patch("blocks.1.hook_resid_pre", cache, pos=3), ablate_neurons(0, [1, 5])]
    assert_same(model, tokens, variants)
    assert_same(model, tokens, variants, read=[-1], collect="pattern")


def test_other_kinds_of_model_equal_the_slow_loop(tmp_path: Path) -> None:
    """Also those variants of a translation model that begin with the encoder's clean output."""
    pair, bert = make_pair(d_vocab=VOCAB), make(head="masked-language", **BERT | {"d_vocab": VOCAB})
    draw = torch.Generator().manual_seed(0)
    source, target = (torch.randint(0, VOCAB, (2, length), generator=draw) for length in (5, 4))
    edits = [
        ablate_head(1, 2, stack="encoder"), ablate_head(2, [0, 3], pos=-1, stack="decoder"), (),
        ablate_head(0, 1, stack="decoder", attention="cross_attn"), ablate_mlp(0, stack="encoder", pos=4),
        [ablate_mlp(1, stack="decoder"), steer(1, torch.ones(32, dtype=torch.float64), stack="encoder")],
        Replace(name="hook_memory", value=1.0, unit=3),
    ]  # fmt: skip
    masks = Pair(torch.ones_like(source), torch.ones_like(target))
    masks.source[0, 4:] = 0
    collect = ["encoder.1.hook_resid_post", "decoder.1.cross_attn.hook_k", "decoder.2.attn.hook_pattern"]
    options = {"read": [-1, 0], "vocab": [3, 1], "collect": collect}
    for mask in (None, masks):
        assert_same(pair, Pair(source, target), edits, attention_mask=mask, **options)
    assert_same(bert, source, [(), ablate_head(1, 2), ablate_mlp(0, pos=2)], read=[1], collect="resid_post")
    clean, *changed = sweep(pair, Pair(source, target), [(), *edits], everything)["logits"]
    assert torch.equal(clean, pair(source, target).detach())
    assert [bool((one - clean).abs().max() > 1e-6) for one in changed] == [edit != () for edit in edits]
    with resumable(tmp_path / "kept"):
        kept = sweep(pair, Pair(source, target), edits, everything)["logits"]
        assert len(list((tmp_path / "kept").iterdir())) == 1
    assert torch.equal(kept, torch.stack(changed))
    with lowered(torch.float32) as rounding:
        sweep(pair, Pair(source, target), edits, everything)
    assert 0 < rounding.difference["logits"] < 1e-3


def test_the_encoder_runs_again_only_where_it_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, encode = [], HookedEncoderDecoder.encode

    def counted(model: HookedEncoderDecoder, *inputs: Tensor | None) -> Tensor:
        runs.append(1)
        return encode(model, *inputs)

    monkeypatch.setattr(HookedEncoderDecoder, "encode", counted)
    ids = torch.ones(1, 3, dtype=torch.long)
    edits = [ablate_head(1, head, stack=stack) for stack in ("encoder", "decoder") for head in range(4)]
    sweep(make_pair(d_vocab=VOCAB), Pair(ids, ids), edits, everything)
    assert len(runs) == 1 + 4  # of the clean run, and of variants in the encoder


@pytest.mark.parametrize(
    ("tokens", "variant", "options", "words"),
    [
        (torch.zeros(1, 3, dtype=torch.long), (), {}, "Pair"),
        (None, ablate_head(0, 0), {}, "blocks"),
        (None, Replace(name="resid_pre"), {}, "full name"),
        (None, ablate_head(0, 9, stack="encoder"), {}, "index 9"),
        (None, (), {"read": [3]}, "read: 3"),
        (None, (), {"vocab": [VOCAB]}, "vocab"),
        (None, (), {"memory": 100}, "MB"),
    ],
)
def test_mistakes_with_a_translation_model_are_named(tokens, variant, options: dict, words: str) -> None:
    pair = make_pair(d_vocab=VOCAB)
    tokens = Pair(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 3, dtype=torch.long)) if tokens is None else tokens
    with pytest.raises(InterpError, match=words):
        sweep(pair, tokens, [variant], everything, **options)
    with pytest.raises(InputError, match="no variants"):
        sweep(pair, tokens, [], everything)


@pytest.mark.parametrize("mask", [torch.full((2, 6), 0.5), -torch.ones(2, 6), torch.tensor([[1] * 6, [0] * 6])])
def test_masks_are_checked_as_the_model_checks_them(mask) -> None:
    model = MODELS[2, 4, torch.float32]
    tokens = torch.randint(0, VOCAB, (2, 6))
    for run in (sweep, slow_sweep):
        with pytest.raises(InputError, match="attention_mask"):
            run(model, tokens, [ablate_head(0, 0)], everything, attention_mask=mask)


def test_what_is_read_may_be_an_array(tmp_path) -> None:
    model = MODELS[2, 4, torch.float32]
    tokens = torch.randint(0, VOCAB, (1, 6))
    plain = sweep(model, tokens, [ablate_head(0, 0)], everything, read=[0, 2], vocab=[3, 1])["logits"]
    for read, vocab in ((np.array([0, 2]), torch.tensor([3, 1])), (range(0, 3, 2), (3, 1))):
        found = sweep(
            model, tokens, [ablate_head(0, 0)], everything, read=read, vocab=vocab, checkpoint=str(tmp_path / "a")
        )
        assert torch.equal(found["logits"], plain)


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_another_metric_is_another_sweep_however_small_it_is(tmp_path, size) -> None:
    """The clean result stands for the metric: its size is what rounding is measured by."""
    model = MODELS[2, 4, torch.float32]
    tokens = torch.randint(0, VOCAB, (1, 6), generator=torch.Generator().manual_seed(0))

    def metric(token: int, factor: float = size):
        return lambda logits: {"prob": factor * logits[:, -1].softmax(-1)[:, token]}

    file, variants = tmp_path / "a", [ablate_head(0, head) for head in range(4)]
    first = sweep(model, tokens, variants, metric(3), checkpoint=file)["prob"]
    again = sweep(model, tokens, variants, metric(3, size * (1 + 1e-6)), checkpoint=file)["prob"]  # control: rounding
    assert torch.equal(first, again)
    with pytest.raises(InputError, match="another sweep"):
        sweep(model, tokens, variants, metric(5), checkpoint=file)
    endless = {"prob": torch.tensor([torch.inf, 1.0])}
    assert _close(endless, endless)
    assert not _close(endless, {"prob": torch.tensor([torch.inf, 2.0])})
