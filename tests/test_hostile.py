"""Hostile tokens and impossible numbers through every command and the page: nothing runs, nothing is lost.

The model's vocabulary holds each hostile string as one token, the long one included, and its text is made of them. An
analysis runs once; its result then goes through all four forms of output, as it is and with NaN and infinities in it.
"""

import csv
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import Done, interp, save
from conftest import TEXT, make_gpt
from in_browser import overhear

from analyses.shared.panels import Finding, Panel, Result
from interp.errors import InterpError
from interp.models.gpt import HookedGPT
from interp.text.tokenizer import Tokenizer
from interp.text.vocabularies import END_OF_TEXT
from reports.page.html import Report, Section, render
from reports.running import report as running
from reports.running.discovery import Analysis, discover
from reports.tokens import printable

LONG = "y" * 10_000
MARKUP = ("<script>alert(1)</script>", "</script>", "<!--<script>", "<img src=x onerror=alert(2)>", "{{ 7 * 7 }}")
STEERING = ("\u202eabc", "\u2028", "\x00", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\r", "\x9b2J")
HOSTILE = (*MARKUP, *STEERING, LONG, "[red]x[/red]", "'\"&,;\t")
SPLIT = "\U0001f600"  # four bytes, four tokens
WORDS = f"cat {''.join(HOSTILE)}{SPLIT} sat {''.join(MARKUP)} cat"
SILENT = {"Cc", "Cf", "Cs", "Zl", "Zp"}
NAMES = list(discover())


@pytest.fixture(scope="module")
def hostile_gpt() -> HookedGPT:
    """A small model in whose vocabulary every hostile string is a token."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    backend.add_tokens([AddedToken(text, normalized=False) for text in HOSTILE])
    model = make_gpt(tokenizer=Tokenizer(backend), d_vocab=backend.get_vocab_size())
    labels = model.to_str_tokens(WORDS)
    assert set(HOSTILE) <= set(labels)
    assert sum(label.startswith("\\x") for label in labels) == 4  # the emoji
    return model


@pytest.fixture(scope="module")
def folder(hostile_gpt: HookedGPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(hostile_gpt, tmp_path_factory.mktemp("hostile") / "model")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


# Results with impossible numbers.


def poison(value: Any) -> Any:
    """A copy with NaN and both infinities among its numbers."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
        out = value.copy()
        out.flat[: min(3, out.size)] = (np.nan, np.inf, -np.inf)[: out.size]
        return out
    if isinstance(value, tuple) and any(isinstance(one, np.ndarray) for one in value):
        return tuple(map(poison, value))
    if isinstance(value, Mapping):
        return {key: poison(one) for key, one in value.items()}
    if isinstance(value, pd.DataFrame):
        out = value.copy()
        for name in out.select_dtypes("float").columns:
            out.loc[out.index[:3], name] = (np.nan, np.inf, -np.inf)[: len(out)]
        return out
    return value


def poisoned(panel: Panel) -> Panel:
    return replace(panel, **{f.name: poison(getattr(panel, f.name)) for f in fields(panel) if f.name != "edges"})


@dataclass(frozen=True)
class Poisoned(Result):
    """Another result with impossible numbers in its table, its panels and its findings."""

    of: Result

    def to_dataframe(self) -> pd.DataFrame:
        frame: pd.DataFrame = poison(self.of.to_dataframe())
        return frame

    def panels(self) -> list[Panel]:
        return [poisoned(panel) for panel in self.of.panels()]

    def findings(self) -> list[Finding]:
        return [replace(finding, value=float("nan"), low=float("-inf"), high=1.0) for finding in self.of.findings()]


# What each form of output must hold.


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.blocks: list[str] = []
        self._in = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = "style" if tag == "style" else str(dict(attrs).get("type")) if tag == "script" else ""

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "application/json":
            self.blocks.append(data)
        elif not self._in:
            self.text += data


def check_page(page: str) -> Tags:
    """Only the page's own script, no handler, no address but its own parts and data; strict JSON; nothing invisible."""
    found = Tags(page)
    for tag, attributes in found.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form", "blink")
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert [a.get("type") for tag, a in found.tags if tag == "script"].count(None) == 1
    for block in found.blocks:
        assert not set(block) & set("<>&\u2028\u2029")
        json.loads(block, parse_constant=pytest.fail)
    invisible = {char for char in page if unicodedata.category(char) in SILENT} - {"\n", "\t"}
    data = {"\x01", "\x02"} if any("\x01" in block for block in found.blocks) else set()
    assert not invisible - data, invisible
    page.encode("utf-8")
    return found


def check_terminal(text: str, width: int = 100) -> None:
    from rich.cells import cell_len

    assert not {char for char in text if unicodedata.category(char) in SILENT} - {"\n"}
    assert max(map(cell_len, text.split("\n"))) <= width


def words_of(frame: pd.DataFrame) -> list[list[str]]:
    """The text columns, a row each."""
    columns = [i for i, kind in enumerate(frame.dtypes) if kind.kind not in "iufb"]
    return [
        ["" if pd.isna(frame.iat[row, i]) else str(frame.iat[row, i]) for i in columns] for row in range(len(frame))
    ]


def check_data(frame: pd.DataFrame, as_json: str, as_csv: str) -> None:
    """Every word of the table comes back as it was, from JSON and from CSV; numbers that are none are null or empty."""
    data = json.loads(as_json, parse_constant=pytest.fail)
    rows = data["rows"] if isinstance(data, dict) else data
    assert len(rows) == len(frame)
    back = pd.DataFrame(rows, columns=list(frame.columns), dtype=object)
    texts = [i for i, kind in enumerate(frame.dtypes) if kind.kind not in "iufb"]
    for place, words in enumerate(words_of(frame)):
        got = ["" if back.iat[place, i] is None else str(back.iat[place, i]) for i in texts]
        assert [plain_number(one) for one in got] == [plain_number(one) for one in words]
    lines = list(csv.reader(io.StringIO(as_csv, newline="")))
    assert lines[0] == list(map(str, frame.columns))
    assert [[plain_number(line[i]) for i in texts] for line in lines[1:]] == [
        [plain_number(one) for one in words] for words in words_of(frame)
    ]


def plain_number(text: str) -> str | float:
    """Numbers among the words of a column may be written in more than one way."""
    try:
        return round(float(text), 6) if re.fullmatch(r"-?[\d.]+(e-?\d+)?", text) else text
    except ValueError:
        return text


# Every analysis.


@pytest.fixture(scope="module")
def once() -> dict[str, Section]:
    """Each analysis runs once a module; `interp` gets its section from here afterwards."""
    return {}


def extra(analysis: Analysis, folder: Path) -> list[str]:
    """What an analysis needs beyond a model and a text."""
    return [part for o in analysis.options() if o.required for part in (f"--{o.name.replace('_', '-')}", str(folder))]


@pytest.mark.parametrize("odd", [False, True], ids=["hostile", "poisoned"])
@pytest.mark.parametrize("name", NAMES)
def test_an_analysis_in_all_four_forms(
    name: str,
    odd: bool,
    folder: Path,
    once: dict[str, Section],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    analysis, real = discover()[name], running.run

    def cached(analysis: Analysis, model: Any, tokens: Any, options: Any = None) -> Section:
        if analysis.name not in once:
            once[analysis.name] = real(analysis, model, tokens, options)
        section = once[analysis.name]
        return replace(section, result=Poisoned(section.result)) if odd else section

    monkeypatch.setattr("reports.running.report.run", cached)
    args = (analysis.command, WORDS, "--model", folder, *extra(analysis, folder), "--quiet")
    table = interp(capsys, *args)
    if table.code in (2, 3):  # this input is refused: in three lines that cannot steer the terminal either
        check_terminal(table.err, 500)
        assert len(table.err.splitlines()) <= 3
        return
    check_terminal(table.out)
    as_json, as_csv = (interp(capsys, *args, "--format", form).out for form in ("json", "csv"))
    section = once[name]
    frame = Poisoned(section.result).to_dataframe() if odd else section.result.to_dataframe()
    check_data(frame, as_json, as_csv)
    page = interp(capsys, *args, "--out", "page.html")
    assert page.code in (0, 5), page.err
    found = check_page(Path("page.html").read_bytes().decode())
    for text in HOSTILE:
        assert "".join(map(printable, text.replace("\t", "⇥"))) in found.text, text[:40]


def test_most_analyses_took_the_text(once: dict[str, Section], folder: Path) -> None:
    """The control of the test above: it did not pass because everything was refused."""
    if len(once) < 3:
        pytest.skip("the analyses did not run in this session")
    assert len(once) >= len(NAMES) - 6


# The page of all of them, the other commands, the terminal.


@pytest.fixture(scope="module")
def whole(hostile_gpt: HookedGPT, once: dict[str, Section]) -> str:
    """A report of every analysis that takes the text, each as it is and with impossible numbers."""
    sections = []
    for name, analysis in discover().items():
        try:
            section = once.get(name) or running.run(analysis, hostile_gpt, WORDS, {})
        except (InterpError, TypeError):  # not on this text; or it needs more than a text
            continue
        odd = replace(section, name=f"odd_{name}", result=Poisoned(section.result))
        sections += [section, odd]
    from analyses.shared.inputs import sequences, token_labels

    labels = tuple(token_labels(hostile_gpt, row) for row in sequences(hostile_gpt, WORDS))
    facts = running.provenance(hostile_gpt, [len(one) for one in labels], seed=0, command=f"interp report {WORDS!r}")
    return render(Report(f"hostile: {WORDS}", labels, tuple(sections), facts))


@pytest.mark.slow
def test_the_whole_page_stays_text(whole: str) -> None:
    found = check_page(whole)
    for text in HOSTILE:
        assert "".join(map(printable, text)).replace("\\x09", "⇥") in found.text.replace("\t", "⇥"), text[:40]


BLOCKED = """
import socket, sys
def blocked(*args, **kwargs):
    raise OSError("a socket was opened")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = blocked
socket.create_connection = socket.getaddrinfo = blocked
sys.argv = ["interp", *{}]
from reports.cli import main
main()
"""


def without_network(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with sockets blocked and an empty home."""
    kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS")}
    env = {"HOME": str(folder), "MPLCONFIGDIR": str(folder)} | kept
    command = [sys.executable, "-c", BLOCKED.format(list(args))]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, cwd=folder)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command's own page: every analysis on the bundled model, a text that tries to break out of the markup."""
    text = (
        "<script>alert(1)</script> and </script><img src=x onerror=alert(2)> <!--<script> \u202e\u2028 \x00\x1b[31m 🙂"
    )
    path = tmp_path_factory.mktemp("reported") / "report.html"
    done = without_network(path.parent, "report", text, "--out", str(path), "--quiet")
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.slow
def test_the_report_needs_no_network(reported: Path, tmp_path: Path) -> None:
    page = reported.read_text(encoding="utf-8")
    assert "Content-Security-Policy" in page
    assert "<title>" in page
    control = without_network(tmp_path, "logit-lens", "x", "--model", "gpt2")
    assert control.returncode == 3, control.stderr  # it does want the network, and is refused


@pytest.mark.slow
@pytest.mark.browser
def test_nothing_executes_in_a_browser(browser: Any, whole: str, reported: Path, tmp_path: Path) -> None:
    path = tmp_path / "whole.html"
    path.write_bytes(whole.encode())
    for file in (path, reported):
        heard: list[str] = []
        page = browser.new_context(offline=True).new_page()
        overhear(page, heard, file.as_uri())
        page.goto(file.as_uri())
        page.evaluate("Promise.all(Object.values(viewers).map(viewer => viewer.ready))")
        assert heard == []
        assert page.locator("script:not([type])").count() == 1
        assert page.locator("img[onerror]").count() == 0
        assert "<script>alert(1)</script>" in page.title()  # as text
        assert page.locator("#text").inner_text().count("script") >= 3
        assert page.locator("section.analysis").count() >= 15
        # The long token breaks, so the page stays readable.
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_the_report_command_and_its_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("report", WORDS, "--model", folder, "--analyses", "logit-lens,attention-patterns,next-token")
    done = interp(capsys, *args, "--out", "r.html", "--data", "data")
    assert done.code == 0, done.err
    check_terminal(done.out + done.err, 500)
    check_page(Path("r.html").read_bytes().decode())
    summary = json.loads(Path("data/report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert summary["texts"][0].startswith(f"{END_OF_TEXT}cat {''.join(HOSTILE)}")
    frame = pd.read_parquet("data/logit_lens.parquet")
    assert set(HOSTILE) <= set(frame["token"])
    rows = json.loads(Path("data/logit_lens.json").read_text(encoding="utf-8"))["rows"]
    assert [row["token"] for row in rows] == frame["token"].tolist()
    checked = interp(capsys, "rerun", "r.html", "--check")
    assert checked.code == 0, checked.err
    check_terminal(checked.out + checked.err, 500)


def test_generate_writes_codes_on_a_terminal_and_the_text_to_a_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("generate", WORDS, "--model", folder, "--max-new-tokens", 3, "--quiet")
    assert interp(capsys, *args, "--out", "g.txt").code == 0
    assert Path("g.txt").read_bytes().decode().startswith(f"cat {''.join(HOSTILE)}")
    monkeypatch.setattr("reports.commands.output.sys.stdout.isatty", lambda: True)
    out = interp(capsys, *args).out
    assert not {char for char in out if unicodedata.category(char) in SILENT} - {"\n"}
    assert "\\x1b[31mred" in out


BAD = "\x1b[31m\u202e<b>\r\x07"


@pytest.mark.parametrize(
    "args",
    [(BAD,), ("report", "x", "--model", BAD), ("report", "x", "--analyses", BAD), ("logit-lens", "x", "--format", BAD),
     ("logit-lens", "x", "--target", BAD), ("logit-lens", "x", f"--{BAD}"), ("report", "x", "--file", BAD),
     ("rerun", BAD), ("next-token", "x", "--out", f"{BAD}.csv"), ("generate", "x", "--device", BAD),
     ("models", "--evaluate", "--text", BAD, "--quiet"), ("train", BAD, "--out", "t")],
    ids=lambda args: args[0] if args[0] != BAD else "command",
)  # fmt: skip
def test_what_was_typed_is_repeated_as_codes(
    args: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reports.commands.output.sys.stdout.isatty", lambda: True)
    done: Done = interp(capsys, *args)
    check_terminal(done.out + done.err, 500)
    if done.code:
        assert len(done.err.splitlines()) <= 3
        assert done.code in (2, 3)


def test_bytes_that_are_no_text_are_refused_and_bytes_within_tokens_are_shown(
    folder: Path, hostile_gpt: HookedGPT, capsys: pytest.CaptureFixture[str]
) -> None:
    """A lone surrogate: as bytes of a file, as a character of a text, and as token ids, which are shown as codes."""
    Path("lone.txt").write_bytes(b"cat \xed\xa0\x80 sat")
    done = interp(capsys, "logit-lens", "--file", "lone.txt", "--model", folder)
    assert done.code == 2
    assert "not UTF-8" in done.err
    typed = interp(capsys, "logit-lens", "cat \ud800", "--model", folder)
    assert typed.code == 2
    assert "surrogates" in typed.err
    tokenizer = hostile_gpt.tokenizer
    assert tokenizer is not None
    by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.d_vocab)}
    import torch

    ids = torch.tensor([[by_bytes[bytes([byte])] for byte in b"\xed\xa0\x80a"]])
    found = running.report(hostile_gpt, ids, analyses=["logit_lens"])
    text = check_page(render(found)).text
    for code in ("\\xed", "\\xa0", "\\x80"):
        assert code in text
