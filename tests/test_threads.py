"""One model, many users: threads, asynchronous tasks, copies and errors see their own run and no other."""

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import make_gpt
from torch import Tensor

from interp.hooks import HookPoint
from interp.interventions import ablate_head, steer
from interp.models.positions import KVCache
from interp.sweep import sweep

MODEL = make_gpt(n_layers=3, n_heads=4, d_model=32, d_vocab=50, n_ctx=32)
IDS = torch.arange(14)[None] * 3 % 50
THREADS = 8


def together(work: Callable[[int], bool]) -> None:
    """The same work in eight threads that start at once; raises what any of them raises."""
    gate = threading.Barrier(THREADS)

    def one(number: int) -> bool:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(one, range(THREADS)))


def ablated(number: int) -> Tensor:
    with torch.no_grad():
        return MODEL.run_with_hooks(IDS, fwd_hooks=[ablate_head(number % 3, number % 4)])


ALONE = {number: ablated(number) for number in range(THREADS)}


def test_each_ablation_is_its_own() -> None:
    """Control: they differ from each other and from the plain run."""
    for number in range(1, THREADS):
        assert not torch.allclose(ALONE[number], ALONE[0])

    def work(number: int) -> bool:
        return all(torch.equal(ablated(number), ALONE[number]) for _ in range(25))

    together(work)
    assert not any(point.forward_listeners for point in MODEL.hook_points.values())


def test_half_with_hooks_half_without() -> None:
    plain = MODEL(IDS)

    def work(number: int) -> bool:
        found = [MODEL(IDS) if number % 2 else ablated(number) for _ in range(25)]
        return all(torch.equal(one, plain if number % 2 else ALONE[number]) for one in found)

    together(work)


def test_caches_of_two_lengths() -> None:
    whole = MODEL.run_with_cache(IDS)[1], MODEL.run_with_cache(IDS[:, :5])[1]

    def work(number: int) -> bool:
        wanted = whole[number % 2]
        for _ in range(25):
            found = MODEL.run_with_cache(IDS if number % 2 == 0 else IDS[:, :5])[1]
            if list(found) != list(wanted) or not all(torch.equal(found[name], wanted[name]) for name in wanted):
                return False
        return True

    together(work)


def test_sweeps_beside_hooks() -> None:
    def swept(number: int) -> Tensor:
        variants = [ablate_head(number % 3, head) for head in range(4)]
        return sweep(MODEL, IDS, variants, lambda logits: {"x": logits[..., 5]}, read=[-1])["x"]

    alone = [swept(number) for number in range(THREADS)]

    def work(number: int) -> bool:
        if number % 2:
            return all(torch.equal(ablated(number), ALONE[number]) for _ in range(25))
        return all(torch.equal(swept(number), alone[number]) for _ in range(8))

    together(work)


def test_generation_under_a_hook_at_two_positions() -> None:
    """Positions count from each thread's own text."""
    texts = [IDS, IDS[:, :9]]
    edits = [steer(1, torch.full((32,), 2.0), pos=[8, 13 - 5 * n]) for n in range(2)]

    def generated(number: int) -> Tensor:
        with MODEL.hooks([edits[number % 2]]):
            return MODEL.generate(texts[number % 2], max_new_tokens=6, temperature=0)

    alone = [generated(number) for number in range(2)]
    together(lambda number: all(torch.equal(generated(number), alone[number % 2]) for _ in range(5)))


def test_tasks_of_one_loop() -> None:
    """A task that waits inside its hooks leaves the others alone; a task that it starts inherits them."""
    entered, done = asyncio.Event(), asyncio.Event()

    async def waits() -> tuple[Tensor, Tensor]:
        with MODEL.hooks([ablate_head(0, 0)]):
            entered.set()
            await done.wait()
            inherited = await asyncio.to_thread(lambda: MODEL(IDS))
            return MODEL(IDS), inherited

    async def plain() -> Tensor:
        await entered.wait()
        found = MODEL(IDS)
        done.set()
        return found

    async def both() -> tuple[tuple[Tensor, Tensor], Tensor]:
        return await asyncio.gather(waits(), plain())

    (hooked, inherited), alone = asyncio.run(both())
    assert torch.equal(alone, MODEL(IDS))
    torch.testing.assert_close(hooked, ALONE[0])
    torch.testing.assert_close(inherited, ALONE[0])


def test_a_backward_pass_keeps_to_its_own_hooks() -> None:
    seen: list[int] = []

    def work(number: int) -> bool:
        with MODEL.hooks(bwd_hooks=[("blocks.1.hook_resid_pre", lambda grad, hook: seen.append(number))]):
            MODEL(IDS).sum().backward()
        return True

    together(work)
    assert sorted(seen) == list(range(THREADS))


def test_copies_made_inside_hooks_have_none() -> None:
    plain = MODEL(IDS)
    with MODEL.hooks([ablate_head(0, 0)]):
        copies = copy.deepcopy(MODEL), pickle.loads(pickle.dumps(MODEL))
        assert all(torch.equal(one(IDS), plain) for one in copies)
        torch.testing.assert_close(MODEL(IDS), ALONE[0])
    assert all(torch.equal(one(IDS), plain) for one in copies)
    assert len({id(point.context) for point in copies[0].hook_points.values()}) == 1
    assert copies[0].context is not MODEL.context


def fail(x: Tensor, hook: HookPoint) -> None:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("point", ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"])
def test_a_key_value_cache_survives_a_hook_that_raises(point) -> None:
    past = KVCache()
    MODEL(IDS[:, :6], past=past)
    with pytest.raises(RuntimeError, match="on purpose"), MODEL.hooks([(point, fail)]):
        MODEL(IDS[:, 6:10], past=past)
    assert past.length == 6
    torch.testing.assert_close(MODEL(IDS[:, 6:10], past=past), MODEL(IDS[:, :10])[:, 6:])


def test_a_padded_key_value_cache_too() -> None:
    tokens, mask = IDS.repeat(2, 1), torch.ones(2, 14)
    mask[1, :3] = 0
    past = KVCache()
    MODEL(tokens[:, :6], attention_mask=mask[:, :6], past=past)
    with pytest.raises(RuntimeError, match="on purpose"), MODEL.hooks([("blocks.2.hook_resid_post", fail)]):
        MODEL(tokens[:, 6:], attention_mask=mask[:, 6:], past=past)
    again = MODEL(tokens[:, 6:], attention_mask=mask[:, 6:], past=past)
    torch.testing.assert_close(again, MODEL(tokens, attention_mask=mask)[:, 6:])
