"""`interp probe` as it is typed."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from command_line import interp, save
from conftest import make_gpt

from analyses.probes import fitting
from interp import HookedGPT, NotFoundError, extract_activations
from interp.text.documents import read_documents
from interp.text.tokenizer import Tokenizer
from interp.training.evaluation import SAMPLE
from reports.cli import app
from reports.running import probing

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(toy_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_gpt(n_layers=3, n_ctx=128, tokenizer=toy_tokenizer)
    return save(made, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beginnings of the sample's documents, two hook points."""
    folder = tmp_path_factory.mktemp("probe") / "store"
    texts = [text[:600] for text in read_documents(SAMPLE)]
    names = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    extract_activations(HookedGPT.from_pretrained(model, device="cpu"), texts, names, folder, split=(0.6, 0.2, 0.2))
    return folder


FAST = ("--probe", "lda", "--no-description-length", "--quiet")


def test_table_json_and_csv(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = interp(capsys, "probe", store, "--label", "capital", *FAST)
    assert done.code == 0, done.err
    assert "Every layer, every control" in done.out
    assert "L2 out" in done.out
    done = interp(capsys, "probe", store, "--label", "capital", "--format", "json", *FAST)
    found = json.loads(done.out)
    assert found["label"] == "capital"
    assert [row["layer"] for row in found["rows"]] == ["L0 out", "L2 out"]
    assert all(0.5 < row["accuracy"] <= 1 for row in found["rows"])
    done = interp(capsys, "probe", store, "--label", "capital", "--format", "csv", *FAST)
    assert done.out.splitlines()[0].startswith('"hook_point","layer","accuracy"')
    assert len(done.out.splitlines()) == 3


@pytest.fixture(scope="module")
def page(store: Path) -> Path:
    """Of the command, with the causal check."""
    path = store.parent / "page.html"
    with pytest.raises(SystemExit) as stop:
        app(["probe", str(store), "--causal", "best", "--towards", "no", "--out", str(path), *FAST])
    assert stop.value.code == 0
    return path


def test_a_page_with_the_causal_check(store: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text()
    for part in ("Probes at every layer", "Does the model use it?", "What the model", "Content-Security-Policy"):
        assert part in text
    again = interp(capsys, "probe", store, "--out", page, *FAST)
    assert again.code == 2
    assert "exists" in again.err


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (("--label", "seen-befor"), "seen-before", 2),
        (("--names", "resid_mid"), "resid_mid", 2),
        (("--workers", "2"), "--ray", 2),
        (("--towards", "yes"), "--causal", 2),
        (("--open", "--format", "json"), "--format html", 2),
        (("--model", "no-such-model"), "no-such-model", 3),
        (("--seed", "-1"), "seed", 2),
    ],
)
def test_errors_are_short(
    store: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str, code: int
) -> None:
    done = interp(capsys, "probe", store, *FAST, *options)
    assert done.code == code, done.err
    assert message in done.err
    assert len(done.err.strip().splitlines()) <= 3


def test_a_folder_that_is_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert interp(capsys, "probe", tmp_path, "--quiet").code in (2, 3)


def test_other_weights_are_refused(
    store: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = HookedGPT.from_pretrained(model, device="cpu")
    other.W_E.data[0, 0] += 1.0
    done = interp(capsys, "probe", store, "--model", save(other, tmp_path / "other"), *FAST)
    assert done.code == 2
    assert "other weights" in done.err


def test_a_page_is_made_again_and_checked(
    store: Path, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the causal check and without a model; other activations, and another seed, are the controls."""
    bare = tmp_path / "bare.html"
    again = interp(capsys, "rerun", page, "--check", "--quiet")
    assert again.code == 0, again.err + again.out
    assert re.findall(r"^([a-z]+) .* identical", again.out, re.MULTILINE) == ["probe", "causal"]
    moved = tmp_path / "moved"
    shutil.copytree(store, moved)
    header = json.loads((moved / "header.json").read_text())
    (moved / "header.json").write_text(json.dumps(header | {"seed": 12345}))
    other = interp(capsys, "rerun", page, "--check", "--quiet", "--load", f"store={moved}")
    assert other.code != 0
    assert "are not those of the page" in other.err or "header.json" in other.err

    def gone(*args: object) -> None:
        raise NotFoundError("no such model")

    monkeypatch.setattr("reports.commands.work.load_model", gone)
    assert interp(capsys, "probe", store, "--out", bare, *FAST).code == 0
    monkeypatch.undo()
    assert interp(capsys, "rerun", bare, "--check", "--quiet").code == 0
    text = bare.read_text()
    start = text.index('"seed": 0') if '"seed": 0' in text else text.index("seed")
    bare.write_text(text[:start] + text[start:].replace("0", "1", 1))
    assert interp(capsys, "rerun", bare, "--check", "--quiet").code == 5  # changed by hand


def test_the_kinds_that_may_be_typed_are_those_there_are() -> None:
    assert get_args(probing.KINDS) == tuple(fitting.KINDS)


KILLED = """
import sys
from interp import keeping
from reports.cli import app
after, saved, write = int(sys.argv[1]), [], keeping.np.savez
def counted(*args, **arrays):
    write(*args, **arrays)
    saved.append(1)
    if len(saved) > after:
        print("there", flush=True)
        sys.stdin.read()  # until it is killed
keeping.np.savez = counted
app(sys.argv[2:])
"""


PROBE = ("--names", "blocks.2.hook_resid_post", "--label", "capital", *FAST[2:], "--format", "csv")


@pytest.fixture(scope="module")
def whole(store: Path) -> str:
    """The table of a run that nobody killed."""
    return finished(store).stdout


def finished(store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as all that are compared: sums round by where in memory a matrix lies."""
    return subprocess.run([*command(store, 999), *more], capture_output=True, text=True, cwd=ROOT, check=True)


def command(store: Path, after: int) -> list[str]:
    return [sys.executable, "-c", KILLED, str(after), "probe", str(store), *PROBE]


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 7])
def test_a_killed_run_goes_on_to_the_same_numbers(store: Path, whole: str, tmp_path: Path, after: int) -> None:
    """Fewer pieces are computed the second time, the table is the same to the last bit, and nothing is left."""
    folder = tmp_path / "kept"
    with subprocess.Popen(
        [*command(store, after), "--resume", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n", child.communicate()
        child.kill()
    pieces = len(list(folder.glob("*.npz")))
    assert pieces >= after
    for damaged in list(folder.glob("*.npz"))[:1]:
        damaged.write_bytes(damaged.read_bytes()[:100])
    assert finished(store, "--resume", str(folder)).stdout == whole
    assert not folder.exists()
