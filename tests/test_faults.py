"""Kills, damages, forged pages, full disks, closed streams, signals: short forms of `tests/faults/`, and more."""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import kills, pages

from interp.errors import InterpError
from interp.files import atomic_path, atomic_write
from interp.stopping import Stopped, held_back, signals_raise
from interp.sweep import results
from interp.training import gpt as training
from reports.commands.errors import explain

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(("job", "count"), [("extract", 14), ("train", 12), ("sweep", 10), ("probe", 8)])
def test_killed_at_any_moment_and_gone_on_with_the_bytes_are_the_same(job: str, count: int, tmp_path: Path) -> None:
    killed, wrong = kills.attempt(job, count, random.Random(job), tmp_path)
    assert wrong == []
    assert killed >= count // 2


def test_a_file_that_is_written_in_place_does_not_survive_the_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""

    def careless(folder: Path) -> None:
        if not (folder / "x").exists():
            (folder / "x").write_text("half of it")
            atomic_write(folder / "y", "another file")
            (folder / "x").write_text("half of it, and the rest")

    monkeypatch.setitem(kills.JOBS, "careless", careless)
    killed, wrong = kills.attempt("careless", 4, random.Random(0), tmp_path)
    assert killed >= 2
    assert wrong


@pytest.mark.slow
def test_damages_of_a_store_are_told_and_mended_by_the_advice(tmp_path: Path) -> None:
    seen, wrong = pages.damage(150, random.Random(1), tmp_path)
    assert wrong == []
    assert min(seen[kind] for kind in pages.DAMAGES) >= 10


@pytest.mark.slow
def test_forged_pages_are_not_believed(tmp_path: Path) -> None:
    codes, wrong = pages.forge(60, random.Random(1), tmp_path)
    assert wrong == []
    assert codes[2] + codes[3] + codes[5] > 30


# Full disks.


@pytest.fixture
def small_files() -> Iterator[None]:
    """Writes beyond 20 kB of a file are refused by the system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def by_torch(path: Path, x: torch.Tensor) -> None:
    with path.open("wb") as stream:
        torch.save({"x": x}, stream)


def by_safetensors(path: Path, x: torch.Tensor) -> None:
    from safetensors.torch import save_file

    save_file({"x": x}, str(path))


def by_numpy(path: Path, x: torch.Tensor) -> None:
    import numpy as np

    with path.open("wb") as stream:
        np.save(stream, x.numpy())


def by_tokenizers(path: Path, x: torch.Tensor) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({str(i): i for i in range(10_000)}, unk_token="0")).save(str(path))


@pytest.mark.parametrize("write", [by_torch, by_safetensors, by_numpy, by_tokenizers])
def test_a_write_that_the_system_refuses_is_told_alike_by_every_library(
    write: Any, small_files: None, tmp_path: Path
) -> None:
    atomic_write(tmp_path / "x", "as it was")
    write(tmp_path / "small", torch.zeros(4)) if write is not by_tokenizers else None  # the control
    (tmp_path / "small").unlink(missing_ok=True)
    with pytest.raises(InterpError, match="x cannot be written") as caught, atomic_path(tmp_path / "x") as temporary:
        write(temporary, torch.zeros(50_000))
    assert len(str(caught.value).splitlines()) <= 3
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "as it was"


def test_an_error_of_another_kind_stays_what_it_is(tmp_path: Path) -> None:
    for error in (RuntimeError("shapes"), ValueError("no"), InterpError("ours")):
        with pytest.raises(type(error)) as caught, atomic_path(tmp_path / "x"):
            raise error
        assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_training_and_sweeps_say_that_the_disk_is_full_and_keep_what_there_was(
    small_files: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_compiler", lambda: False)
    with pytest.raises(InterpError, match=r"checkpoint.pt cannot be written: File too large"):
        kills.train(tmp_path)
    assert not list(tmp_path.rglob(".*.tmp"))
    half = results.Results({"x": torch.zeros(10_000)}, 3, tmp_path / "s", lambda: "id")
    with pytest.raises(InterpError, match="s cannot be written: File too large"):
        half.save()
    assert not (tmp_path / "s").exists()


# Being asked to stop.


@contextlib.contextmanager
def as_a_shell_starts_it() -> Iterator[None]:
    """With no signal ignored, whatever these tests were started under (`nohup` ignores SIGHUP)."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_leaves_a_checkpoint_and_its_exit_code(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_compiler", lambda: False)
    source = training.TextAndCopies(torch.arange(1, 257).numpy().astype("uint16"), kills.SETTINGS)

    def batches(step: int) -> Any:
        if step == 4:
            signal.raise_signal(number)
        return source(step)

    with as_a_shell_starts_it(), signals_raise(), pytest.raises(KeyboardInterrupt) as caught:
        training.train(kills.SETTINGS, out=tmp_path, batches=batches, device="cpu")
    assert torch.load(tmp_path / training.CHECKPOINT, weights_only=True)["step"] == 5
    code, lines = explain(caught.value, ["train", "x", "--quiet"])
    assert code == 128 + number
    assert "the same command with --resume goes on" in lines[1]


def test_a_stop_in_the_first_step_which_may_be_compiling_is_answered_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_compiler", lambda: False)
    reached: list[int] = []

    def batches(step: int) -> Any:
        signal.raise_signal(signal.SIGTERM)
        reached.append(step)

    with signals_raise(), pytest.raises(Stopped):
        training.train(kills.SETTINGS, out=tmp_path, batches=batches, device="cpu")
    assert reached == []
    assert not (tmp_path / training.CHECKPOINT).exists()


def test_ignored_signals_stay_ignored_and_handlers_come_back() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_raise(), held_back() as came:
            signal.raise_signal(signal.SIGHUP)  # nohup: nothing happens
            signal.raise_signal(signal.SIGTERM)
        assert came == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_sweep_that_was_stopped_says_by_what() -> None:
    try:
        try:
            raise Stopped(signal.SIGTERM)
        except KeyboardInterrupt:
            raise results.SweepInterrupted({}, torch.zeros(2, dtype=torch.bool)) from None
    except KeyboardInterrupt as error:
        code, lines = explain(error, ["ablation", "--resume", "x"])
    assert (code, lines[0]) == (143, "stopped by SIGTERM")
    assert explain(KeyboardInterrupt(), ["ablation"]) == (130, ["interrupted"])  # the control: nothing was kept


# Threads.


def test_threads_that_wait_give_the_processor_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before torch reads it, and unless somebody has said otherwise."""
    from reports import cli

    found: list[str | None] = []
    monkeypatch.setattr(cli, "app", lambda: found.append(os.environ.get("OMP_WAIT_POLICY")))
    for said, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if said:
            monkeypatch.setenv("OMP_WAIT_POLICY", said)
        cli.main()
        assert found.pop() == expected
    done = subprocess.run(
        [sys.executable, "-c", "import reports.cli, sys; print('torch' in sys.modules)"],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "False\n"


# Streams.


def shell(command: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    interp = f"{sys.executable} -m reports.cli next-token 'a b' --steps 1 --format csv"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["sh", "-c", command.replace("INTERP", interp)], capture_output=True, text=True, cwd=tmp_path, env=env
    )


@pytest.mark.slow
def test_streams_that_are_closed_or_full(tmp_path: Path) -> None:
    right = shell("INTERP", tmp_path)
    assert right.returncode == 0
    assert right.stdout.startswith('"text",')
    for stream in ("2>&- <&-", "2>/dev/full"):
        done = shell(f"INTERP {stream}", tmp_path)
        assert (done.returncode, done.stdout) == (0, right.stdout), stream
    for stream, words in ((">&-", "standard output is closed"), (">/dev/full", "No space left on device")):
        done = shell(f"INTERP {stream}", tmp_path)
        assert done.returncode == 2, stream
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 3
    assert shell("INTERP --out o.csv <&- >&- 2>&-", tmp_path).returncode == 0
    assert (tmp_path / "o.csv").read_text() == right.stdout
    empty = shell("INTERP --file - <&-".replace("'a b'", ""), tmp_path)
    assert "bug" not in empty.stderr
    assert empty.returncode == 2
