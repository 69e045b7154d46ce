"""Kills of extraction, training, sweeps and probing, then the same again: the bytes must be those of an unbroken run.

    python tests/faults/kills.py --kills 200 --seed 0

A job runs in a forked process, which is killed at the moment drawn: just before or just after one of its renames, or
after so many calls of its main thread. Nothing waits for time, so a seed gives the same kills again.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]

import torch  # noqa: E402
import torch._dynamo  # noqa: E402 - once, here, not in every process
from conftest import TEXT, make_gpt  # noqa: E402

from analyses.ablation import ablation  # noqa: E402
from analyses.probes import probe_layers  # noqa: E402
from interp import ActivationStore, extract_activations  # noqa: E402
from interp.files import atomic_write  # noqa: E402
from interp.models.config import GPTConfig  # noqa: E402
from interp.sweep import results  # noqa: E402
from interp.training import gpt as training  # noqa: E402
from interp.training.settings import Stage, TrainSettings  # noqa: E402

Moment = tuple[str, int]
""""before" or "after" and the number of a rename; "call" and the number of a call."""

ROWS = [[5, 6, 7], list(range(40, 60)), [9], [1, 2, 3, 4, 5, 6, 7], list(range(100, 131)), [8, 8]] * 3
SETTINGS = TrainSettings(
    config=GPTConfig(n_layers=1, n_heads=2, d_model=16, n_ctx=16, d_vocab=257),
    stages=(Stage(steps=12, batch=2, length=12),),
    seed=3,
    dtype="float32",
)


def extract(folder: Path) -> None:
    """18 texts in shards of two hook points."""
    extract_activations(make_gpt(n_ctx=12), ROWS, ["resid_post", "z"], folder / "s", shard_tokens=40, resume=True)


def train(folder: Path) -> None:
    """12 steps with a checkpoint after each, corpus and tokenizer too."""
    (folder / "t.txt").write_text(TEXT * 30)
    settings = TrainSettings(**{**vars(SETTINGS), "corpus": str(folder / "t.txt")})
    out = folder / "run"
    training.train(settings, out=out, resume=True, device="cpu", report_every=3, checkpoint_seconds=0)


def sweep(folder: Path) -> None:
    """Every head of a model ablated, with a checkpoint after each chunk."""
    results.SAVE_EVERY = 0.0
    with results.resumable(folder / "kept"):
        tokens = torch.tensor([[3, 9, 4, 9, 5, 9, 3, 9, 4]])
        found = ablation(make_gpt(n_layers=3), tokens, components="heads,mlps", memory=300_000)
    atomic_write(folder / "found.csv", found.to_dataframe().to_csv())


def probe(folder: Path) -> None:
    """Probes on a small store; nothing of it is kept before the end."""
    store = folder / "s"
    extract_activations(make_gpt(), ROWS * 4, "resid_post", store, split=(2, 1, 1), resume=True)
    label = ActivationStore(store).manifest["token"].to_numpy() % 2
    found = probe_layers(ActivationStore(store), label, probe="ridge", description_length=False)
    atomic_write(folder / "found.csv", found.to_dataframe().to_csv())


JOBS: dict[str, Callable[[Path], None]] = {"extract": extract, "train": train, "sweep": sweep, "probe": probe}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too, without what tells the time: the checkpoint, and seconds in the curve."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "curve.csv":
            rows = [line.split(",") for line in path.read_text().splitlines()]
            at = rows[0].index("seconds")
            found[path.name] = "\n".join(",".join(row[:at] + row[at + 1 :]) for row in rows).encode()
        elif path.is_file() and path.name not in ("checkpoint.pt", "settings.json"):  # settings name the folder
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def forked(job: Callable[[Path], None], folder: Path, moment: Moment | None, counts: Path | None = None) -> int:
    """Run a job in a process of its own. Returns its exit code, negative for a signal."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        folder.mkdir(exist_ok=True)
        seen = _watched(moment)
        job(folder)
        sys.setprofile(None)
        if counts is not None:
            counts.write_text(f"{seen['rename']} {seen['call']}")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _watched(moment: Moment | None) -> Counter[str]:
    """Count renames and calls from here on; die at the moment."""
    seen, rename, own = Counter[str](), Path.replace, os.getpid()

    def die() -> None:
        if os.getpid() == own:
            os.kill(own, signal.SIGKILL)

    def replace(self: Path, target: Path) -> Path:
        number = seen["rename"]
        seen["rename"] += 1
        if moment == ("before", number):
            die()
        made = rename(self, target)
        if moment == ("after", number):
            die()
        return made

    def count(frame: object, event: str, arg: object) -> None:
        seen["call"] += 1
        if moment is not None and moment[0] == "call" and seen["call"] >= moment[1]:
            die()

    Path.replace = replace  # type: ignore[method-assign,assignment]
    if moment is None or moment[0] == "call":
        sys.setprofile(count)
    return seen


def moments(renames: int, calls: int, count: int, rng: random.Random) -> list[Moment]:
    """Half of them at renames, each once before any comes again; the others anywhere."""
    exact = [(when, number) for number in range(renames) for when in ("before", "after")]
    rng.shuffle(exact)
    chosen = (exact * (count // max(1, len(exact)) + 1))[: (count + 1) // 2]
    return chosen + [("call", rng.randrange(calls)) for _ in range(count - len(chosen))]


def attempt(name: str, count: int, rng: random.Random, folder: Path) -> tuple[int, list[str]]:
    """So many kills of a job, each followed by a second one now and then, and by a run to the end.

    Returns how many processes were killed, and what was wrong.
    """
    torch.set_num_threads(1)
    job, whole, counts = JOBS[name], folder / "whole", folder / "counts"
    if forked(job, whole, None, counts):
        return 0, [f"{name}: the unbroken run failed"]
    expected = contents(whole)
    renames, calls = map(int, counts.read_text().split())
    killed, wrong = 0, []
    for moment in moments(renames, calls, count, rng):
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        story = [moment]
        killed += forked(job, out, moment) == -signal.SIGKILL
        if rng.random() < 0.3:
            story.append(("call", rng.randrange(calls)))
            killed += forked(job, out, story[1]) == -signal.SIGKILL
        code = forked(job, out, None)
        found = contents(out)
        if code or found != expected:
            differ = sorted(file for file in {*found, *expected} if found.get(file) != expected.get(file))
            wrong.append(f"{name}, killed at {story}: exit {code}, other files: {differ}")
    return killed, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default=",".join(JOBS))
    given = parser.parse_args()
    print(f"seed {given.seed}")
    bad = 0
    for name in given.jobs.split(","):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            share = given.kills // len(given.jobs.split(","))
            killed, wrong = attempt(name, share, random.Random(f"{given.seed} {name}"), Path(folder))
        print(f"{name}: {killed} kills, {len(wrong)} bad, {time.monotonic() - start:.0f} s", *wrong, sep="\n  ")
        bad += len(wrong)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
