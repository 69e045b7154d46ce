"""Stores of activations: what is removed or damaged comes back to the byte, two runs at once do not meet, and a shard
of something else is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import interp
from conftest import make_gpt

from interp import ActivationStore, extract_activations, files
from interp.errors import InputError, InterpError, LoadError, NotFoundError
from interp.store import writing

MODEL = make_gpt(n_ctx=12)
ROWS = [[5, 6, 7], list(range(40, 60)), [9], [1, 2, 3, 4, 5, 6, 7], list(range(100, 131)), [8, 8]]


def made(out: Path, model: Any = MODEL, rows: Any = ROWS, **options: Any) -> ActivationStore:
    return extract_activations(model, rows, ["resid_post", "z"], out, shard_tokens=9, **{"batch_tokens": 20, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    out = tmp_path_factory.mktemp("whole") / "s"
    made(out)
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, flip, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("names", [["header.json"], ["texts.parquet"], ["header.json", "texts.parquet"]])
@pytest.mark.parametrize("shards", [0, 3, 8])
def test_header_and_texts_come_back_to_the_byte(
    whole: Path, copy: Path, names: list[str], damage: Callable[[Path], object], shards: int
) -> None:
    for shard in sorted(copy.glob("shard-*"))[shards:]:
        shutil.rmtree(shard)
    kept = {path: path.stat().st_mtime_ns for path in copy.glob("shard-*/*")}
    for name in names:
        damage(copy / name)
    with pytest.raises(InterpError):  # the control: it is noticed
        ActivationStore(copy, partial=True).check_texts()
    if list(copy.iterdir()):
        with pytest.raises(InputError, match="holds activations"):
            made(copy)
    made(copy, resume=True)
    assert contents(copy) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # finished shards were left alone


def test_without_its_header_a_folder_of_something_else_is_left_alone(copy: Path) -> None:
    (copy / "header.json").unlink()
    before = contents(copy)
    other = make_gpt(n_ctx=12)
    with torch.no_grad():
        other.W_E[3, 3] += 1
    for words, options in {
        "of another extraction": {"model": other},
        "of another": {"rows": [*ROWS[:-1], [8, 9]]},
        "of another extraction: ": {"dtype": "bfloat16"},
    }.items():
        with pytest.raises(LoadError, match=words):
            made(copy, resume=True, **options)
    (copy / "notes.txt").touch()
    with pytest.raises(InputError, match="holds no activations"):
        made(copy, resume=True)
    (copy / "notes.txt").unlink()
    assert contents(copy) == before


def test_what_a_killed_writer_leaves_closes_no_folder(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    out.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in ("header.json", "texts.parquet", "shard-00002"):
        (out / f".{name}.{files._HERE}.{gone.pid}-0123abcd.tmp").mkdir()
    made(out, resume=True)
    assert contents(out) == contents(whole)
    assert not list(out.glob(".*"))


def test_what_a_living_run_is_writing_stays(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    out.mkdir()
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)  # waits until it is told
    numbers = (os.getpid(), living.pid, os.getpid())
    mine, others, old = (out / f".shard-00000.{files._HERE}.{n}-0123abc{i}.tmp" for i, n in enumerate(numbers))
    foreign = out / f".shard-00000.elsewhere.{living.pid}-01234567.tmp"
    for path in (mine, others, old, foreign):
        path.mkdir()
    os.utime(old, (1, 1))  # an earlier process had our number
    made(out, resume=True)
    assert mine.exists()
    assert others.exists()
    assert foreign.exists()
    assert not old.exists()
    living.communicate(b"\n")
    files.remove_leftovers(out)
    assert not others.exists()


def other_stores() -> dict[str, dict[str, Any]]:
    other = make_gpt(n_ctx=12)
    with torch.no_grad():
        other.blocks[1].mlp.b_out[3] += 1e-3
    return {
        "another model": {"model": other}, "another dtype": {"dtype": "bfloat16"}, "another seed": {"seed": 1},
        "other texts": {"rows": [*ROWS[:-1], [8, 9]]}, "other batches": {"batch_tokens": 21},
    }  # fmt: skip


@pytest.mark.parametrize("what", other_stores())
def test_a_shard_of_another_store_is_refused(copy: Path, tmp_path: Path, what: str) -> None:
    made(tmp_path / "other", **other_stores()[what])
    shutil.rmtree(copy / "shard-00001")
    shutil.copytree(tmp_path / "other" / "shard-00001", copy / "shard-00001")
    refused(copy, "shard-00001 is of another extraction")


def test_shards_that_changed_places_are_refused(copy: Path) -> None:
    a, b, aside = copy / "shard-00001", copy / "shard-00003", copy / "aside"
    for before, after in ((a, aside), (b, a), (aside, b)):
        before.rename(after)
    refused(copy, "shard-00001 holds shard 3")


def test_a_shard_of_format_1_is_refused(copy: Path) -> None:
    sums = copy / "shard-00001" / "checksums.json"
    told = json.loads(sums.read_text())
    sums.write_text(json.dumps({name: told[name] for name in told if name not in ("extraction", "shard")}))
    refused(copy, "of another extraction")


def refused(folder: Path, words: str) -> None:
    """On reading, with checksums or without, by `check` and by --resume."""
    for verify in (True, False):
        with pytest.raises(LoadError, match=words) as caught:
            ActivationStore(folder, verify=verify).load("blocks.0.attn.hook_z")
        assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(LoadError, match=words):
        ActivationStore(folder).check()
    with pytest.raises(LoadError, match=words):
        made(folder, resume=True)


ODD: dict[str, dict[str, Any]] = {
    "rows that are text": {"shard_rows": ["9", 9]},
    "rows that are null": {"shard_rows": None},
    "rows without end": {"shard_rows": [10**18], "n_rows": 10**18},
    "negative rows": {"shard_rows": [-1, 73], "n_rows": 72},
    "rows that do not add up": {"n_rows": 5},
    "a number that is true": {"n_texts": True},
    "hook points in a list": {"hook_points": ["hook_embed"]},
    "a width that is text": {"hook_points": {"hook_embed": ["32"]}},
    "a hook point elsewhere": {"hook_points": {"../../hook_embed": [32]}},
    "labels that are no words": {"labels": {"x": 3}},
    "no model": {"model": 3},
    "another format": {"format": ["x"] * 1000},
}


@pytest.mark.parametrize("what", ODD)
def test_a_header_of_odd_kinds_is_told_in_three_lines(copy: Path, what: str) -> None:
    header = json.loads((copy / "header.json").read_text())
    header.pop("header_sha256")
    (copy / "header.json").write_text(writing.sealed(header | ODD[what]))
    with pytest.raises(LoadError) as caught:
        ActivationStore(copy)
    assert len(str(caught.value).splitlines()) == 3
    assert max(map(len, str(caught.value).splitlines())) < 400


def test_nesting_without_end_is_damage(copy: Path) -> None:
    (copy / "shard-00000" / "checksums.json").write_text("[" * 100_000)
    with pytest.raises(LoadError, match=r"checksums.json is damaged"):
        ActivationStore(copy).check()


def test_too_little_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "free_bytes", lambda folder: 1000)
    with pytest.raises(InterpError, match="nothing was written"):
        made(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


BOTH = """
import sys
sys.path[:0] = [{tests!r}]
from test_stores import made
from pathlib import Path
print("ready", flush=True)
sys.stdin.read()
made(Path(sys.argv[1]), resume=True)
"""


@pytest.mark.slow
def test_two_runs_at_once_end_well_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    code = BOTH.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", code, str(tmp_path / "s")]
    runs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.close()
    for run in runs:
        with run:
            assert run.wait() == 0
    assert contents(tmp_path / "s") == contents(whole)


WITHOUT_RIGHTS = """
import ctypes, os, sys
for right in (1, 2):  # what lets root read and write everything is not handed on to the program
    ctypes.CDLL(None).prctl(24, right, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "reports.cli", *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="root's rights are put down in another way elsewhere")
@pytest.mark.parametrize("file", ["header.json", "shard-00000/manifest.parquet", "shard-00001", "."])
def test_files_that_may_not_be_read_are_named(copy: Path, file: str) -> None:
    (copy / file).chmod(0)
    args = ["probe", str(copy), "--label", "position", "--quiet"]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RIGHTS, *args], capture_output=True, text=True, cwd=root, check=False
    )
    (copy / file).chmod(0o755)
    assert done.returncode == 2, done.stderr
    assert "Permission denied" in done.stderr or "is not readable" in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_a_store_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="has no header"):
        ActivationStore(tmp_path)
    assert interp(capsys, "probe", tmp_path).code == 3


def test_sigterm_goes_to_where_ctrl_c_goes(tmp_path: Path) -> None:
    """In this process, so that the moment is exact: inside the third batch."""
    from interp.stopping import Stopped, signal_of, signals_raise

    compute = writing.Extraction.compute

    def stopping(self: writing.Extraction, shard: int, *more: int) -> Any:
        if shard == 3:
            signal.raise_signal(signal.SIGTERM)
        return compute(self, shard, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing.Extraction, "compute", stopping)
        with signals_raise(), pytest.raises(Stopped) as caught:
            made(tmp_path / "s")
    assert signal_of(caught.value) == signal.SIGTERM
    assert len(list((tmp_path / "s").glob("shard-*"))) == 3
    assert not list((tmp_path / "s").glob(".*"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
