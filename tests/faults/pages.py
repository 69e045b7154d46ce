"""Pages that were forged and stores that were damaged: nothing is believed, nothing hangs, no exit code is 1.

    python tests/faults/pages.py --pages 400 --damages 700 --seed 0

A page's record is changed at random places (odd kinds, commands, options, models, huge numbers), sealed again, and run
as `interp rerun PAGE --check` does. A file of a store is flipped, cut, emptied, lengthened, exchanged or removed.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

import torch  # noqa: E402
from conftest import make_gpt  # noqa: E402

import reports  # noqa: E402
from interp import ActivationStore, extract_activations  # noqa: E402
from interp.errors import LoadError, NotFoundError  # noqa: E402
from interp.models.gpt import HookedGPT  # noqa: E402
from reports.cli import app  # noqa: E402
from reports.running import record  # noqa: E402

BLOCK = re.compile(r'(id="provenance-data">)(.*?)(</script>)', re.DOTALL)
ROWS = [[5, 6, 7], list(range(40, 60)), [9], [1, 2, 3, 4, 5, 6, 7], list(range(100, 131)), [8, 8]]
SECONDS = 30
"""Longer than any page of these may take."""
ODD: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**40, 10**18, 10**30, 1e308, 0.5, "", "x", "../../etc/passwd", "evil/model", "gpt2",
    "gpt3", "cuda:9", "meta", "xla", "vulkan", "/dev/zero", "/dev/stdin", "__class__", "a\x00b", "\ud800", [], [[]], {},
    [1], ["x"], {"a": 1}, [[0, 1], [2]], "models", "compare", "report", "study", "tuned-lens", "ablation", "no weights",
    "float16", "x" * 2_000_000, ["x"] * 50_000, [[1] * 3000], list(range(5000)), "[" * 1000, "NaN",
]  # fmt: skip
NAMES = [
    "command", "text", "options", "model", "own_model", "sweeps", "prompts", "analyses", "seed", "title", "study",
    "other", "translators", "draws", "top_k", "memory", "positions", "layers", "kinds", "device", "dtype", "zoo",
    "weights_sha256", "rows", "step", "columns", "values", "sha256", "numbers", "request", "versions", "answer",
]  # fmt: skip


def places(data: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every entry."""
    found = [way] if way else []
    entries = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in entries:
        found += places(value, (*way, key))
    return found


def changed(data: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """One to three entries changed, added or removed, most of them in the request."""
    data = json.loads(json.dumps(data))
    for _ in range(rng.choice([1, 1, 2, 3])):
        ways = places(data)
        asked = [way for way in ways if way[0] == "request"]
        *way, last = rng.choice(asked if asked and rng.random() < 0.7 else ways)
        holder = data
        for key in way:
            holder = holder[key]
        kind = rng.random()
        if kind < 0.1 and isinstance(holder, dict):
            del holder[last]
        elif kind < 0.35 and isinstance(holder, dict):
            holder[rng.choice(NAMES)] = deepcopy(rng.choice(ODD))
        else:
            holder[last] = deepcopy(rng.choice(ODD))
    return data


def forged(page: str, data: dict[str, Any]) -> str:
    """The page with other facts and a digest that fits them."""
    data = {name: value for name, value in data.items() if name != "page_sha256"}
    block = json.dumps({**data, "page_sha256": record.BLANK}, separators=(",", ":")).replace("<", "\\u003c")
    return record.sealed(BLOCK.sub(lambda found: found[1] + block + found[3], page))


def originals(folder: Path) -> list[str]:
    """Pages of several kinds, of a small model in that folder."""
    make_gpt(d_vocab=257, n_ctx=16).save_pretrained(folder / "toy")
    model = HookedGPT.from_pretrained(folder / "toy", device="cpu")
    ids = torch.tensor([[5, 9, 5, 9, 31]])
    found = [reports.render(reports.report(model, ids, analyses=["logit_lens", "ablation", "head_roles"]))]
    for name in ("ablation", "compare", "next_token", "architecture"):
        out = folder / f"{name}.html"
        more = ["--other", str(folder / "toy")] if name == "compare" else []
        run(name.replace("_", "-"), "--tokens", "5 9 5 9 31", "--model", folder / "toy", *more, "--out", out)
        found += [out.read_text()] if out.exists() else []
    return found


def run(*args: object) -> tuple[int, str]:
    """A command's exit code and what it said on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            app([str(arg) for arg in args])
        except SystemExit as stop:
            return int(stop.code or 0), said.getvalue()
    return 0, said.getvalue()


class TooLongError(BaseException):
    """A page that ran for SECONDS."""


def too_long(number: int, frame: object) -> None:
    raise TooLongError


def forge(count: int, rng: random.Random, folder: Path) -> tuple[Counter[int], list[str]]:
    """So many forged pages. Returns how often each exit code came, and what was wrong."""
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "0"
    asked: list[object] = []

    def no_network(*args: object, **more: object) -> None:
        asked.append(args[:1])
        raise OSError("no network here")

    kept, socket.getaddrinfo = socket.getaddrinfo, no_network  # type: ignore[assignment]
    before = signal.signal(signal.SIGALRM, too_long)
    codes, wrong, pages = Counter[int](), [], originals(folder)
    files = {*folder.rglob("*"), folder / "page.html"}
    try:
        for number in range(count):
            page = pages[number % len(pages)]
            found = BLOCK.search(page)
            assert found is not None
            data = changed(json.loads(found[2]), rng)
            (folder / "page.html").write_bytes(forged(page, data).encode("utf-8", "surrogatepass"))
            signal.alarm(SECONDS)
            code, said = run("rerun", folder / "page.html", "--check", "--quiet")
            signal.alarm(0)
            codes[code] += 1
            lines = said.strip().splitlines()
            more = {*folder.rglob("*")} - files
            if code not in (0, 2, 3, 4, 5) or (code and len(lines) > 3) or asked or more:
                shutil.copy(folder / "page.html", Path(tempfile.gettempdir()) / f"bad-page-{number}.html")
                wrong.append(
                    f"page {number}: exit {code}, network {asked}, new files {more}, {' | '.join(lines)[:300]}"
                )
                asked.clear()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        socket.getaddrinfo = kept
    return codes, wrong


# Stores.


def flip(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "flip": flip,
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "empty": lambda data, rng: b"",
    "longer": lambda data, rng: data + bytes([rng.randrange(128, 256)]),
    "zeros": lambda data, rng: bytes(len(data)),
    "removed": lambda data, rng: None,
}


def read_all(folder: Path) -> None:
    store = ActivationStore(folder)
    _ = store.texts, store.manifest
    for _ in store.batches(store.names):
        pass


def damage(count: int, rng: random.Random, folder: Path) -> tuple[Counter[str], list[str]]:
    """So many damages of a store's files. Each must be told on reading and by `check`, and be mended by its advice."""
    torch.set_num_threads(1)

    def make(out: Path) -> None:
        extract_activations(make_gpt(n_ctx=12), ROWS, ["resid_post", "z"], out, shard_tokens=20, resume=True)

    make(folder / "whole")
    good = {path.relative_to(folder / "whole"): path.read_bytes() for path in (folder / "whole").rglob("*.*")}
    good = {name: data for name, data in good.items() if data}
    out, seen, wrong = folder / "s", Counter[str](), []
    shutil.copytree(folder / "whole", out)
    for number in range(count):
        name, kind = rng.choice(sorted(good)), rng.choice(sorted(DAMAGES))
        data = DAMAGES[kind](good[name], rng)
        if data == good[name]:
            continue
        (out / name).unlink()
        if data is not None:
            (out / name).write_bytes(data)
        seen[kind] += 1
        for look in (read_all, lambda folder: ActivationStore(folder).check()):
            try:
                look(out)
                wrong.append(f"damage {number}: {kind} of {name} was not told")
            except (LoadError, NotFoundError) as error:
                if len(str(error).splitlines()) > 3:
                    wrong.append(f"damage {number}: {kind} of {name}: {error}")
        if number % 5 == 0:  # follow the advice
            if name.parent.name.startswith("shard-"):
                shutil.rmtree(out / name.parent)
            make(out)
            if any((out / file).read_bytes() != content for file, content in good.items()):
                wrong.append(f"damage {number}: {kind} of {name} was not mended")
        (out / name).write_bytes(good[name])
    return seen, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--damages", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"seed {given.seed}")
    bad = []
    for what, count, work in (("damages", given.damages, damage), ("pages", given.pages, forge)):
        with tempfile.TemporaryDirectory() as folder:
            seen, wrong = work(count, random.Random(f"{given.seed} {what}"), Path(folder))
        print(f"{what}: {dict(seen)}, {len(wrong)} bad", *wrong, sep="\n  ")
        bad += wrong
    return min(len(bad), 1)


if __name__ == "__main__":
    sys.exit(main())
