"""The same work on many workers: actors of a Ray cluster, one a device. Without a cluster, a plain loop.

    with scale.cluster("local", workers=4):
        result = ablation(model, texts)

Results do not depend on the workers: they come back in the order of the items, each once, and workers use as many
threads as this process does. A worker that dies is replaced, and what it was doing is done again.
"""

import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from interp.errors import InputError, InterpError, NotFoundError
from interp.progress import tell

Item = TypeVar("Item")
Value = TypeVar("Value")

ADDRESSES = "local, auto, host:port or ray://host:port"
ATTEMPTS = 3
"""How many workers may die of one item."""
AHEAD = 4
"""Items a worker that may be finished before they can be handed on in order."""

_cluster: ContextVar["Cluster | None"] = ContextVar("cluster", default=None)


def workers() -> int:
    """How many workers share the work here; 1 outside a cluster."""
    current = _cluster.get()
    return 1 if current is None else len(current.actors)


def in_cluster() -> bool:
    """Whether this code runs inside `with cluster(...)`."""
    return _cluster.get() is not None


def map_items(fn: Callable[[Item], Value], items: Iterable[Item]) -> Iterator[Value]:
    """fn of every item, in order. Inside `with cluster(...)` the workers share the items.

    Args:
        fn: must not change its arguments or depend on anything that changes, since an item may be done twice (the
            first time on a worker that died). On a cluster it is sent to each worker once: a function of a module, or
            `functools.partial` of one with the model and whatever all items need.
        items: taken one by one, in order and once each, a few ahead of the results.

    Raises whatever fn raises; InterpError when three workers have died of one item.
    """
    current = _cluster.get()
    yield from map(fn, items) if current is None else current.map(fn, items)


@contextmanager
def cluster(address: str = "local", *, workers: int | None = None) -> Iterator["Cluster"]:
    """Inside the block `map_items`, and whatever is built on it, runs on a Ray cluster.

    Args:
        address: "local" starts a cluster on this machine for the length of the block; "auto", "host:port" or
            "ray://host:port" joins one that runs. A cluster that this process has joined already is used as it is.
        workers: how many; by default one a GPU where the model is to run on GPUs, else as many as the CPUs allow with
            this process' number of threads each.

    The workers need this package, and see the same files. Raises InputError without Ray, NotFoundError when there is no
    cluster at the address.
    """
    ray = _need_ray()
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers", "expected at least 1")
    joined = ray.is_initialized()
    if not joined:
        _start(ray, address, workers)
    try:
        made = Cluster(ray, workers)
        token = _cluster.set(made)
        try:
            yield made
        finally:
            _cluster.reset(token)
            made.close()
    finally:
        if not joined:
            ray.shutdown()


def _need_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("ray is not installed", "expected it to use a cluster", "pip install ray") from None
    return ray


def _start(ray: Any, address: str, workers: int | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report home
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        cpus = workers or max(1, (os.cpu_count() or 1) // torch.get_num_threads())
        options |= {"num_cpus": cpus, "include_dashboard": False}
    elif address != "auto":
        _check_reachable(address)
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(f"at {address!r}: {_first_line(error)}") from error


def _check_reachable(address: str, seconds: float = 5.0) -> None:
    """Raises NotFoundError when nobody answers at host:port; Ray itself would try for ten minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"the Ray address {address!r}", f"expected {ADDRESSES}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError as error:
        raise _no_cluster(f"answers at {address}: {error.strerror or error}") from error


def _no_cluster(why: str) -> NotFoundError:
    return NotFoundError(f"no Ray cluster {why}", f"expected {ADDRESSES}", "local starts one on this machine")


class _Worker:
    """Lives in a process of its own and keeps the function it was sent last."""

    def __init__(self, threads: int, paths: list[str]) -> None:
        """`paths` are where the process that sends the work finds its modules."""
        sys.path += [path for path in paths if path not in sys.path]
        torch.set_num_threads(threads)
        self.key = -1
        self.fn: Callable[[Any], Any] | None = None

    def run(self, key: int, reference: list[Any], item: Any) -> Any:
        """`reference` is in a list so that Ray does not fetch the function anew for every item."""
        if self.fn is None or self.key != key:
            import ray

            self.fn, self.key = ray.get(reference[0]), key
        return self.fn(item)


class Cluster:
    """The workers; made by `cluster`."""

    def __init__(self, ray: Any, workers: int | None) -> None:
        self.ray = ray
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if torch.cuda.is_available() else 0
        count = workers or gpus or max(1, int(resources.get("CPU", 1)) // torch.get_num_threads())
        share = min(1.0, gpus / count)
        remote = ray.remote(num_cpus=min(1.0, resources.get("CPU", 1) / count), num_gpus=share, max_concurrency=1)
        self._actor = remote(_Worker).options(scheduling_strategy="SPREAD")
        self.actors = [self._new() for _ in range(count)]
        self._maps = 0

    def _new(self) -> Any:
        return self._actor.remote(torch.get_num_threads(), sys.path)

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)

    def map(self, fn: Callable[[Item], Value], items: Iterable[Item]) -> Iterator[Value]:
        """As `map_items`."""
        self._maps += 1
        reference, key = [self.ray.put(fn)], self._maps
        source, deaths = enumerate(items), Counter[int]()
        total = len(items) if isinstance(items, Sized) else 0
        again: list[tuple[int, Item]] = []
        # The promise of a result -> the item with its number, and the place of the worker.
        running: dict[Any, tuple[tuple[int, Item], int]] = {}
        idle = list(range(len(self.actors)))
        done: dict[int, Value] = {}
        following = 0
        while True:
            while idle and (again or len(done) < AHEAD * len(self.actors)):
                task = again.pop() if again else next(source, None)
                if task is None:
                    break
                place = idle.pop()
                running[self.actors[place].run.remote(key, reference, task[1])] = (task, place)
            if not running:
                return
            (ready, *_), _ = self.ray.wait(list(running), num_returns=1)
            task, place = running.pop(ready)
            number = task[0]
            try:
                done[number] = self.ray.get(ready)
            except self.ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except self.ray.exceptions.RayError as error:  # the worker, or the machine with its result, is gone
                deaths[number] += 1
                if deaths[number] == ATTEMPTS:
                    raise InterpError(
                        f"{ATTEMPTS} workers died of item {number}: {_first_line(error)}",
                        "expected at least one to live; did they run out of memory?",
                        "use fewer workers on a machine",
                    ) from error
                again.append(task)
                self.ray.kill(self.actors[place])
                self.actors[place] = self._new()
            idle.append(place)
            while following in done:
                yield done.pop(following)
                following += 1
                if total:
                    tell(following, total)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
