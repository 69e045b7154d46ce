"""Work shared out: in this process and on Ray, with workers that die, the results are the same, in order, once each."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import workers
from conftest import make_gpt
from planted import previous_token_model
from test_extraction import contents

from analyses.ablation import ablation
from analyses.activation_patching import activation_patching
from analyses.probes import probe_layers
from interp import scale
from interp.errors import InputError, InterpError, NotFoundError
from interp.progress import listening
from interp.store import writing


def test_without_a_cluster_it_is_a_loop_that_takes_items_one_by_one():
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(4):
            taken.append(n)
            yield n

    results = scale.map_items(workers.square, items())
    assert next(results) == 0
    assert taken == [0]
    assert list(results) == [1, 4, 9]
    assert (scale.workers(), scale.in_cluster()) == (1, False)


def test_an_address_where_nobody_answers_is_said_at_once():
    pytest.importorskip("ray")
    with (
        pytest.raises(NotFoundError, match=r"no Ray cluster answers at 127\.0\.0\.1:1") as caught,
        scale.cluster("127.0.0.1:1"),
    ):
        pass
    assert len(str(caught.value).splitlines()) == 3
    for address in ("nonsense", "host:", "host:port"):
        with pytest.raises(InputError, match="the Ray address"), scale.cluster(address):
            pass
    with pytest.raises(InputError, match="0 workers"), scale.cluster("local", workers=0):
        pass


def test_without_ray_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="ray is not installed") as caught, scale.cluster():
        pass
    assert "pip install ray" in str(caught.value)


class FakeRay:
    """Enough of Ray to see, without processes, what `Cluster.map` does when workers die in a given order."""

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

    def __init__(self, deaths: dict[int, int]) -> None:
        self.deaths, self.calls, self.made = dict(deaths), [], 0
        self.rng = np.random.default_rng(0)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0}

    def put(self, value: object) -> object:
        return value

    def remote(self, **options: object) -> "FakeRay":
        return lambda cls: self

    def options(self, **options: object) -> "FakeRay":
        return self

    @property
    def run(self) -> "FakeRay":
        return self

    def kill(self, actor: object) -> None:
        pass

    def wait(self, refs: list[object], num_returns: int) -> tuple[list[object], list[object]]:
        chosen = refs[int(self.rng.integers(len(refs)))]  # in any order
        return [chosen], []

    def get(self, ref: tuple[object, int]) -> int:
        fn, item = ref[0], ref[1]
        if self.deaths.get(item, 0):
            self.deaths[item] -= 1
            raise self.exceptions.RayError(f"died of {item}")
        return fn(item)


def fake(monkeypatch: pytest.MonkeyPatch, deaths: dict[int, int], count: int) -> scale.Cluster:
    ray = FakeRay(deaths)

    class Actor:
        class run:
            @staticmethod
            def remote(key: int, reference: list[object], item: int) -> tuple[object, int, int]:
                ray.calls.append(item)
                return (reference[0], item, len(ray.calls))

    monkeypatch.setattr(scale.Cluster, "_new", lambda self: Actor)
    made = scale.Cluster(ray, count)
    made.calls = ray.calls  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("deaths", [{}, {0: 1}, {3: 2, 4: 1}, dict.fromkeys(range(20), 1)])
def test_results_are_in_order_and_each_death_is_done_again_once(monkeypatch, count, deaths):
    cluster = fake(monkeypatch, deaths, count)
    steps: list[tuple[int, int]] = []
    with listening(lambda done, total: steps.append((done, total))):
        assert list(cluster.map(workers.square, range(20))) == [n * n for n in range(20)]
    assert sorted(cluster.calls) == sorted([*range(20), *(n for n, times in deaths.items() for _ in range(times))])
    assert steps[-1] == (20, 20)


def test_an_item_that_kills_every_worker_ends_it(monkeypatch):
    cluster = fake(monkeypatch, {2: 99}, 2)
    with pytest.raises(InterpError, match="3 workers died of item 2: died of 2") as caught:
        list(cluster.map(workers.square, range(5)))
    assert cluster.calls.count(2) == 3
    assert len(str(caught.value).splitlines()) == 3


def test_items_are_taken_a_few_ahead_and_once_each_even_when_workers_die(monkeypatch):
    cluster = fake(monkeypatch, {5: 2}, 2)
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(50):
            taken.append(n)
            yield n

    results = cluster.map(workers.square, items())
    next(results)
    assert len(taken) <= (scale.AHEAD + 1) * 2
    assert list(results) == [n * n for n in range(1, 50)]
    assert taken == list(range(50))


@pytest.mark.parametrize("joined", [True, False])
def test_a_cluster_that_was_joined_before_is_left_running(monkeypatch, joined):
    calls: list[str] = []
    ray = FakeRay({})
    ray.is_initialized = lambda: joined  # type: ignore[attr-defined]
    ray.init = lambda **options: calls.append("init")  # type: ignore[attr-defined]
    ray.shutdown = lambda: calls.append("shutdown")  # type: ignore[attr-defined]
    monkeypatch.setattr(scale, "_need_ray", lambda: ray)
    monkeypatch.setattr(scale.Cluster, "_new", lambda self: None)
    with scale.cluster("local", workers=3):
        assert (scale.workers(), scale.in_cluster()) == (3, True)
        with pytest.raises(ZeroDivisionError), scale.cluster("local", workers=1):
            raise ZeroDivisionError
        assert scale.workers() == 3
    assert not scale.in_cluster()
    assert calls == ([] if joined else ["init", "init", "shutdown", "shutdown"])


# A real cluster of two workers.


@pytest.fixture(scope="module")
def cluster() -> Iterator[scale.Cluster]:
    pytest.importorskip("ray")
    torch.set_num_threads(1)
    with scale.cluster("local", workers=2) as made:
        yield made


@contextmanager
def in_this_process() -> Iterator[None]:
    """As if there were no cluster."""
    token = scale._cluster.set(None)
    try:
        yield
    finally:
        scale._cluster.reset(token)


@pytest.mark.slow
def test_two_workers_give_what_one_process_gives(cluster, tmp_path):
    assert scale.workers() == 2
    pids = set(scale.map_items(workers.whose, range(20)))
    assert len(pids) == 2
    assert list(scale.map_items(workers.square, range(30))) == [n * n for n in range(30)]
    dying = partial(workers.square_or_die, tmp_path, (3, 17))
    assert list(scale.map_items(dying, range(30))) == [n * n for n in range(30)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "17.0",
        "17.1",
        "3.0",
        "3.1",
    ]  # each was done again once
    assert set(scale.map_items(workers.whose, range(20))) != pids  # the control: a worker did die


@pytest.mark.slow
def test_errors_of_workers_arrive_as_they_were_raised(cluster):
    with pytest.raises(InputError) as caught:
        list(scale.map_items(workers.refuse, range(6)))
    assert str(caught.value) == "three\nexpected another number\ntry four"
    assert list(scale.map_items(workers.square, [5])) == [25]  # and the cluster goes on


@pytest.mark.slow
def test_an_extraction_on_two_workers_of_which_one_dies_has_the_bytes_of_one_process(cluster, tmp_path):
    rows = torch.randint(0, 300, (40, 50), generator=torch.Generator().manual_seed(0))
    options = {"shard_tokens": 200}
    plain = writing.plan(make_gpt(), rows, ["embed", "resid_post"], tmp_path / "plain", **options)
    with in_this_process():
        writing.run(plain)
    job = writing.plan(make_gpt(), rows, ["embed", "resid_post"], tmp_path / "ray", **options)
    (tmp_path / "marks").mkdir()
    writing.begin(job, resume=False, shared=False)
    dying = partial(workers.extract_or_die, job, tmp_path / "marks", 4)
    assert list(scale.map_items(dying, range(10))) == list(range(10))
    assert (tmp_path / "marks" / "4.0").exists()
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain")  # no half of a shard is left either
    writing.extract_activations(make_gpt(), rows, ["embed", "resid_post"], tmp_path / "whole", **options)
    assert contents(tmp_path / "whole") == contents(tmp_path / "plain")


@pytest.mark.slow
def test_sweeps_of_ablation_and_patching_on_two_workers_equal_those_in_process(cluster, toy_gpt):
    texts = ["The cat sat on the mat.", "The dog sat on the log.", "When Mary and John went", "John gave a drink to"]
    pairs = [("The cat sat on the mat", "The dog sat on the mat"), ("John gave a drink", "Mary gave a drink")]
    fits = [(a, b) for a, b in pairs if toy_gpt.to_tokens(a).shape == toy_gpt.to_tokens(b).shape]
    clean, corrupted = [a for a, _ in fits], [b for _, b in fits]
    assert clean
    found = []
    for where in (nullcontext(), in_this_process()):
        with where:
            ablated = ablation(toy_gpt, texts, kinds=("zero", "mean", "resample"), metrics=("loss", "kl"), seed=3)
            patched = activation_patching(toy_gpt, clean, corrupted, site="resid_pre,z")
        found.append((ablated.to_dataframe(), patched.to_dataframe()))
    for mine, plain in zip(*found, strict=True):  # float32 products round by where in memory a matrix lies
        pd.testing.assert_frame_equal(mine, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_ray_does_not_report_home(cluster):
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.slow
def test_probes_of_two_workers_are_those_of_one_process_also_when_one_dies(cluster, tmp_path):
    model, tokens, labels = previous_token_model()
    store = writing.extract_activations(
        model, tokens, "resid_mid", tmp_path / "store", dtype="float32", shard_tokens=350
    )
    name = store.names[0]
    fast = {"names": name, "description_length": False}
    with in_this_process():
        alone, straight = probe_layers(store, labels, **fast), probe_layers(store, labels, probe="lda")
    shared = probe_layers(store, labels, **fast)
    cluster.ray.kill(cluster.actors[0])  # one worker dies: nothing is lost, and nothing is counted twice
    mended = probe_layers(store, labels, probe="lda")
    pd.testing.assert_frame_equal(alone.to_dataframe(), shared.to_dataframe())
    np.testing.assert_array_equal(alone.probes[name].coef_, shared.probes[name].coef_)
    pd.testing.assert_frame_equal(straight.to_dataframe(), mended.to_dataframe())


@pytest.mark.slow
def test_the_documentation_of_activations_runs(request, tmp_path, monkeypatch):
    """With a cluster of two workers, if Ray is there."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / "activations.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    with in_this_process():
        exec(compile(first, "activations.md", "exec"), names)
    manifest = names["store"].manifest  # type: ignore[attr-defined]
    assert manifest["part-of-speech"].dropna().tolist() == ["PRON", "VERB", "DET", "NOUN", "PUNCT"]
    assert set(manifest["topic"].dropna()) == {"nature"}
    request.getfixturevalue("cluster").close()  # its workers: the example has two of its own
    exec(compile(second, "activations.md", "exec"), names)
    assert len(names["result"].texts) == 2  # type: ignore[attr-defined]
