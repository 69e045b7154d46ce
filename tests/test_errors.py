"""Every mistake a user can make: the right exit code, at most three lines, no traceback, nothing half-written."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from command_line import TEXT, Done, add_analysis, interp, save
from safetensors.torch import load_file, save_file

from analyses.shared.panels import Note
from interp.errors import CheckFailed, InputError, InterpError, LoadError, MemoryLimitError, NotFoundError
from interp.models.gpt import HookedGPT
from reports.commands import errors
from reports.terminal import show

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def toy(toy_gpt: HookedGPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(toy_gpt, tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files() -> dict[str, int]:
    return {str(path): path.stat().st_size for path in Path().rglob("*") if path.is_file()}


def check(done: Done, code: int, *words: str) -> None:
    lines = done.err.splitlines()
    assert done.code == code, done.err
    assert 1 <= len(lines) <= 3, done.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.err
    assert done.out == ""
    for word in words:
        assert word in done.err, done.err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("logit-lense", TEXT), 2, ("'logit-lense'", "nearest: logit-lens", "see: interp --help")),
        (("qqqqqqqq",), 2, ("expected one of", "report")),
        (("report", "--modle", "x"), 2, ("--modle", "nearest: --model", "see: interp report --help")),
        (("--nope",), 2, ("--nope", "see: interp --help")),
        (
            ("logit-lens", "--top-k", "many"),
            2,
            ("--top-k 'many'", "expected a whole number", "see: interp logit-lens --help"),
        ),
        (("logit-lens", "--top-k"), 2, ("--top-k", "requires an argument")),
        (("logit-lens", "--dtype", "float31"), 2, ("--dtype 'float31'", "float32")),
        (("generate",), 2, ("TEXT", "see: interp generate --help")),
        (("generate", "a", "b"), 2, ("unexpected", "b")),
        (("report", "--analyses", "logit-lense"), 2, ("'logit-lense'", "nearest: logit-lens")),
        (("report", ""), 2, ("the text is empty", "expected")),
        (("report", " \n\t "), 2, ("the text is empty",)),
        (("report", "--lines"), 2, ("--lines without --file",)),
        (("report", TEXT, "--file", "x.txt"), 2, ("both a text and --file x.txt",)),
        (("report", "--file", "missing.txt"), 3, ("missing.txt", "No such file")),
        (("report", TEXT, "--model", "./missing"), 3, ("./missing", "known names: ", "gpt2")),
        (("report", TEXT, "--model", "a/b/c"), 3, ("a/b/c",)),
        (("report", TEXT, "--model", "{toy}/config.json"), 2, ("not a model file", "directory")),
        (("report", TEXT, "--model", "{toy}", "--device", "abacus"), 2, ("'abacus'", "expected auto, cpu")),
        (("report", "word " * 200, "--model", "{toy}"), 2, ("expected at most 64", "context")),
        (("logit-lens", "word " * 200, "--model", "{toy}"), 2, ("expected at most 64", "context")),
        (("generate", TEXT, "--model", "{toy}", "--max-new-tokens", "99"), 2, ("99 new", "context is 64")),
        (
            ("generate", TEXT, "--model", "{toy}", "--max-new-tokens", "3", "--temperature", "-1"),
            2,
            ("temperature = -1.0", "expected"),
        ),
        (("report", TEXT, "--model", "{toy}", "--out", "/dev/null/r.html"), 2, ("/dev/null/r.html cannot be written",)),
        (("report", TEXT, "--model", "{toy}", "--out", "."), 2, ("is a directory", "--out report.html")),
        (("report", TEXT, "--model", "{toy}", "--data", "/dev/null/d"), 2, ("cannot be written", "--data")),
        (("logit-lens", TEXT, "--model", "{toy}", "--out", "/dev/null/l.csv"), 2, ("cannot be written",)),
        (("logit-lens", TEXT, "--model", "{toy}", "--format", "csv", "--open"), 2, ("--open with --format csv",)),
        (("train", "missing.xml", "--out", "run"), 3, ("missing.xml", "corpus")),
        (("train", "{toy}/config.json", "--out", "{toy}/tokenizer.json"), 2, ("is a file", "name of a folder")),
        (("train", "{toy}/config.json", "--out", "/dev/null/run"), 2, ("cannot be written", "--out")),
        (("train", "{toy}/model.safetensors", "--out", "run"), 2, ("not UTF-8", "a text file")),
        (("train", "{toy}/config.json", "--out", "run", "--seed", "-1"), 2, ("seed -1",)),
        (("train-lens", "{toy}/config.json", "--out", "l", "--seed", "-1"), 2, ("seed -1",)),
        (("report", TEXT, "--model", "{toy}", "--seed", "-1"), 2, ("seed -1", "expected a whole number from 0")),
        (("generate", TEXT, "--model", "{toy}", "--seed", "99999999999999999999"), 2, ("seed 99999999999999999999",)),
        (("logit-lens", TEXT, "--model", "{toy}", "--seed", "4294967296"), 2, ("seed 4294967296",)),
        (("next-token", TEXT, "--model", "{toy}", "--temperature", "nan"), 2, ("temperature = nan", "finite")),
        (("next-token", TEXT, "--model", "{toy}", "--temperature", "-2"), 2, ("temperature = -2.0",)),
        (("ablation", TEXT, "--model", "{toy}", "--memory", "0"), 2, ("--memory 0", "bytes")),
        (("report", TEXT, "--model", "{toy}", "--analyses", ","), 2, ("--analyses ','", "empty part")),
        (("activation-patching", TEXT, "--model", "{toy}", "--layers", ","), 2, ("--layers ','", "empty part")),
        (("logit-lens", TEXT, "--model", "{toy}", "--out", "n" * 300), 2, ("File name too long",)),
        (("logit-lens", TEXT, "--model", "{toy}", "--out", "/dev/null", "--force"), 2, ("device or a pipe",)),
        (("architecture", TEXT, "--model", "gpt2"), 2, ("only the shape is known", "--length")),
        (("path-patching", "--read", "1"), 2, ("no option --read",)),
    ],
)
def test_mistakes(
    args: tuple[str, ...], code: int, words: tuple[str, ...], toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(interp(capsys, *(arg.format(toy=toy) for arg in args)), code, *words)
    assert not files()


def damage(toy: Path, kind: str) -> None:
    """A copy of the model in ./bad with one thing wrong."""
    shutil.copytree(toy, "bad")
    weights = Path("bad/model.safetensors")
    tensors = load_file(weights)
    if kind == "missing":
        del tensors["transformer.h.1.mlp.c_fc.weight"]
        save_file(tensors, weights)
    elif kind == "shape":
        tensors["transformer.h.0.ln_1.weight"] = torch.ones(31)
        save_file(tensors, weights)
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif kind == "garbage":
        weights.write_bytes(b"not a tensor in sight" * 50)
    elif kind == "no weights":
        weights.unlink()
    elif kind == "no config":
        Path("bad/config.json").unlink()
    elif kind == "bad config":
        Path("bad/config.json").write_text("{]")
    elif kind == "other architecture":
        config = json.loads(Path("bad/config.json").read_text())
        Path("bad/config.json").write_text(json.dumps(config | {"model_type": "mixtral"}))
    elif kind == "bad tokenizer":
        Path("bad/tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("missing", 2, ("h.1.mlp.c_fc.weight is missing", "expected shape [32, 128]")),
        ("shape", 2, ("h.0.ln_1.weight has shape [31]", "expected [32]")),
        ("truncated", 2, ("model.safetensors cannot be read", "cut short")),
        ("garbage", 2, ("model.safetensors cannot be read",)),
        ("no weights", 3, ("no weights", "model.safetensors")),
        ("no config", 3, ("no config.json",)),
        ("bad config", 2, ("config.json cannot be read", "JSON")),
        ("other architecture", 2, ("'mixtral' needs experts", "expected one of gpt2")),
        ("bad tokenizer", 2, ("tokenizer",)),
    ],
)
def test_damaged_models(
    kind: str, code: int, words: tuple[str, ...], toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(toy, kind)
    before = files()
    check(interp(capsys, "report", TEXT, "--model", "bad", "--out", "r.html"), code, *words)
    assert files() == before
    assert interp(capsys, "generate", "The", "--model", toy, "--max-new-tokens", 1).code == 0  # the control


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ('model.run_with_cache(tokens, names="blocks.0.hook_reside_pre")', 2, ("hook_reside_pre", "hook_resid_pre")),
        ("torch.empty(2**60)", 4, ("out of memory", "try a shorter text")),
        ("raise MemoryError", 4, ("out of memory",)),
        (
            'raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")',
            4,
            ("Tried to allocate 9 GiB",),
        ),
        ("raise KeyboardInterrupt", 130, ("interrupted",)),
        ("return {}[7]", 1, ("KeyError: 7", "this is a bug in interp", "--debug")),
        ('raise ValueError("one\\ntwo\\nthree\\nfour")', 1, ("ValueError: one", "bug")),
        ('raise InputError("a\\x1b[31m", "b" * 9999, "c")', 2, ("a\\x1b[31m", "…")),
    ],
)
def test_what_happens_inside_an_analysis(
    body: str, code: int, words: tuple[str, ...], toy: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    add_analysis(monkeypatch, tmp_path / "more", "failing", body)
    before = files()
    done = interp(capsys, "failing", TEXT, "--model", toy, "--out", "f.html", "--quiet")
    check(done, code, *words)
    assert "\x1b" not in done.err
    if code != 1:  # in a report, too: a bug or an interrupt is no section
        report = interp(capsys, "report", TEXT, "--model", toy, "--analyses", "failing", "--out", "r.html", "--quiet")
        assert report.code == code
    assert {name for name in files() if "__pycache__" not in name} == {
        name for name in before if "__pycache__" not in name
    }


def test_debug_shows_the_traceback(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_analysis(monkeypatch, tmp_path / "more", "failing", "return {}[7]")
    done = interp(capsys, "failing", TEXT, "--model", toy, "--debug")
    assert done.code == 1
    assert "Traceback" in done.err
    assert "failing.py" in done.err


def test_a_full_disk_and_a_narrow_encoding_are_told_in_words(toy: Path) -> None:
    code = "from reports.cli import main; main()"

    def ended(target: str, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), **more}
        with open(target, "w") as out:
            return subprocess.run(
                [sys.executable, "-c", code, *args], stdout=out, stderr=subprocess.PIPE, text=True, env=env, timeout=60
            )

    full = ended("/dev/full", "--help")
    assert full.returncode == 2
    assert full.stderr.splitlines()[0] == "error: the output: No space left on device"
    assert len(full.stderr.splitlines()) <= 3
    narrow = ended("out.txt", "attention-patterns", TEXT, "--model", str(toy), PYTHONIOENCODING="ascii")
    assert narrow.returncode == 0, narrow.stderr
    assert "\\u" in Path("out.txt").read_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [(InterpError("x"), 2), (InputError("x"), 2), (LoadError("x"), 2), (NotFoundError("x"), 3),
     (MemoryLimitError("x"), 4), (CheckFailed("x"), 5), (KeyboardInterrupt(), 130), (typer.Abort(), 130),
     (ValueError(), 1)],
)  # fmt: skip
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert errors.guarded(fail, ["report"]) == code
    assert len(capsys.readouterr().err.splitlines()) <= 3
    assert errors.guarded(lambda: None, []) == 0


def test_an_offline_hub_is_said_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    check(interp(capsys, "report", TEXT, "--model", "gpt2"), 3, "'gpt2'", "offline?")
    assert not [name for name in files() if name.endswith(".html")]


def test_a_closed_pipe_reaches_its_caller() -> None:
    """rich would end the program itself, with exit code 1."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        show(Note(key="n", title="t", text="x"), file=Closed())


def test_a_closed_pipe_is_no_error() -> None:
    """`interp ... | head -1`: the first line, and not a word on stderr."""
    code = (
        "import sys\nfrom reports.commands.errors import guarded\n"
        "def run():\n    for _ in range(100000): print('x' * 100)\n"
        "sys.exit(guarded(run, []))"
    )
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c \"{code}\" | head -1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] == str(errors.CLOSED_PIPE)
