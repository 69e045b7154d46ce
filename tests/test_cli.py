"""The command line: what it prints where, what it writes, and that two ways to the same thing agree."""

import copy
import csv
import hashlib
import io
import json
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TEXT, add_analysis, interp, save
from huggingface_hub.constants import HF_HUB_CACHE
from shapes import toy as toy_of

import reports
from analyses.logit_lens import logit_lens
from interp import __version__
from interp.lens_maps import Translators
from interp.models.gpt import HookedGPT
from interp.models.identities import Identity
from reports.commands.options import DEFAULT_TEXT
from reports.commands.work import read_texts
from reports.running.discovery import discover

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def toy(toy_gpt: HookedGPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(toy_gpt, tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    """At most 0.3 s of processor time, the best of five; no library that takes longer than that to load."""
    code = (
        "import sys; from reports.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'matplotlib', 'rich', 'jinja2', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) <= 0.3
    for name in ("report", "models", "train", "generate", *(analysis.command for analysis in discover().values())):
        assert re.search(rf"^  {name} ", out, re.MULTILINE), name


def test_version_and_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    said = interp(capsys, "--version")
    assert (said.code, said.err) == (0, "")
    first, versions, devices, folder = said.out.splitlines()
    assert first == f"interp {__version__}"
    assert versions == f"Python {platform.python_version()}, torch {torch.__version__}"
    assert re.fullmatch(rf"devices: (.+, )?cpu; {torch.get_num_threads()} threads", devices)
    assert folder == f"downloaded models: {HF_HUB_CACHE}"
    bare = interp(capsys)
    assert bare.code == 0
    assert bare.out == interp(capsys, "--help").out


@pytest.mark.parametrize("command", ["report", "models", "train", "generate", "logit-lens"])
def test_every_option_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = interp(capsys, command, "--help")
    assert done.code == 0
    assert "Example: interp " in done.out
    options = re.findall(r"^  (--\S+)(?: <\S+>)?(?: / --\S+)? *(.*)\n( {10,}\S.*)?", done.out, re.MULTILINE)
    assert len(options) >= 4
    for name, help, next_line in options:
        assert help or next_line, name


# One analysis.


def test_json_csv_and_python_agree(toy: Path, toy_gpt: HookedGPT, capsys: pytest.CaptureFixture[str]) -> None:
    expected = logit_lens(toy_gpt, TEXT, top_k=2).to_dataframe()
    common = ("logit-lens", TEXT, "--model", toy, "--top-k", 2, "--quiet")
    as_csv = interp(capsys, *common, "--format", "csv")
    assert (as_csv.code, as_csv.err) == (0, "")
    as_json = interp(capsys, *common, "--format", "json")
    rows = json.loads(as_json.out)
    frames = [pd.read_csv(io.StringIO(as_csv.out)), pd.DataFrame(rows["rows"] if isinstance(rows, dict) else rows)]
    for frame in frames:
        assert list(frame.columns) == list(expected.columns)
        for name in expected.select_dtypes("number"):
            np.testing.assert_allclose(
                frame[name].to_numpy(float), expected[name].to_numpy(float), rtol=1e-6, atol=1e-9
            )
    other = interp(capsys, *common, "--format", "csv", "--dtype", "float64")
    assert other.out != as_csv.out  # the control: another precision shows


def test_the_table_is_plain_text_and_hints_go_to_stderr(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = interp(capsys, "attention-patterns", TEXT, "--model", toy)
    assert done.code == 0
    assert "Attention" in done.out
    assert "\x1b" not in done.out + done.err
    assert re.fullmatch(r"attention-patterns: [\d.]+ s on .*toy\n", done.err)
    assert interp(capsys, "attention-patterns", TEXT, "--model", toy, "--quiet") == (0, done.out, "")


@pytest.mark.parametrize(
    ("name", "start"), [("a.json", "[{"), ("a.csv", ","), ("a.html", "<!doctypehtml>"), ("a.txt", "")]
)
def test_the_format_is_told_from_the_file(name: str, start: str, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = interp(capsys, "attention-patterns", TEXT, "--model", toy, "--out", name, "--quiet")
    assert (done.code, done.out, done.err) == (0, f"{name}\n", "")
    text = "".join(Path(name).read_text(encoding="utf-8").split())
    assert text.startswith(start) or (start == "," and "," in text[:40])
    assert [path.name for path in Path().iterdir()] == [name]


def test_a_link_stays_a_link_and_a_pipe_a_pipe(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("logit-lens", TEXT, "--model", toy, "--format", "csv", "--quiet", "--force", "--out")
    Path("real.csv").write_text("old")
    Path("link.csv").symlink_to("real.csv")
    assert interp(capsys, *args, "link.csv").code == 0
    assert Path("link.csv").is_symlink()
    assert Path("real.csv").read_text(encoding="utf-8").startswith('"')
    os.mkfifo("pipe")
    assert interp(capsys, *args, "pipe").code == 2
    assert Path("pipe").is_fifo()


def test_a_carriage_return_survives_csv_and_a_terminal_sees_codes(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = 'a\r"b\x1b[31m\x9b, \x7f'
    add_analysis(monkeypatch, tmp_path / "more", "odd", f'return MadeUp({{"word": {odd!r}, "number": 1.5}})')
    args = ("odd", TEXT, "--model", toy, "--quiet", "--format")
    rows = list(csv.DictReader(io.StringIO(interp(capsys, *args, "csv").out, newline="")))
    assert rows == [{"word": odd, "number": "1.5"}]
    for form in ("csv", "json"):
        with monkeypatch.context() as terminal:
            terminal.setattr("reports.commands.output.sys.stdout.isatty", lambda: True)
            out = interp(capsys, *args, form).out
        assert not set(out) & set("\r\x1b\x9b\x7f"), form
    assert json.loads(out)[0]["word"] == odd


def test_html_of_one_analysis_has_a_name_of_its_own(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = interp(capsys, "attention-patterns", TEXT, "--model", toy, "--format", "html", "--quiet")
    assert done.out == "interp-attention-patterns.html\n"
    page = Path(done.out.strip()).read_text(encoding="utf-8")
    assert 'id="attention_patterns"' in page
    assert 'id="logit_lens"' not in page


def test_where_texts_come_from(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("one\n\ntwo words\n")
    assert read_texts(["a", "b"], None, False) == ["a", "b"]
    assert read_texts(None, file, False) == ["one\n\ntwo words"]
    assert read_texts(None, file, True) == ["one", "two words"]
    assert read_texts(None, None, False) == [DEFAULT_TEXT]


def test_the_default_text_repeats_a_name() -> None:
    words = re.findall(r"[A-Z]\w+ [A-Z]\w+", DEFAULT_TEXT)
    assert max(map(words.count, words)) >= 2


def test_a_text_from_standard_input(
    toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("attention-patterns", "--model", toy, "--format", "csv", "--quiet")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert interp(capsys, *common, "--file", "-") == interp(capsys, *common, TEXT)


# The report.


def provenance(page: str) -> dict[str, object]:
    found = re.search(r'id="provenance-data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, object] = json.loads(found[1])
    return data


def body(page: str) -> str:
    """All but the provenance."""
    before, _, rest = page.partition('<section id="provenance"')
    return before + rest.partition("</section>")[2]


def test_the_report_holds_every_analysis(toy: Path, toy_gpt: HookedGPT, capsys: pytest.CaptureFixture[str]) -> None:
    done = interp(capsys, "report", TEXT, "--model", toy, "--out", "r.html", "--seed", 7)
    assert (done.code, done.out) == (0, "r.html\n"), done.err
    page = Path("r.html").read_text(encoding="utf-8")
    names = [name for name, analysis in discover().items() if analysis.in_report]
    assert len(names) >= 4
    found = re.findall(r'<section id="(\w+)" class="analysis"', page)
    assert sorted(found) == sorted(names)
    in_order = [name for name in found if "patching" not in name]  # those follow the pair that their chapter opens with
    assert in_order == [name for name in names if name in in_order]
    for name in names:
        assert re.search(rf"^{name.replace('_', '-')} +\d+\.\d s$", done.err, re.MULTILINE), done.err
    facts = provenance(page)
    weights = (toy / "model.safetensors").read_bytes()
    assert facts["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert facts["seed"] == 7
    assert facts["tokens"] == [toy_gpt.to_tokens(TEXT).shape[1]]
    assert facts["device"] == "cpu"
    assert facts["dtype"] == "float32"
    assert facts["versions"]["interp"] == __version__  # type: ignore[index]
    assert str(facts["command"]).split()[0] == "interp"
    assert set(facts["seconds"]) == set(names)  # type: ignore[call-overload]


def test_an_analysis_named_twice_runs_once(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = "logit-lens,attention-patterns,logit_lens"
    assert interp(capsys, "report", TEXT, "--model", toy, "--analyses", names, "--out", "r.html").code == 0
    page = Path("r.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)" class="analysis"', page) == ["logit_lens", "attention_patterns"]


def test_two_reports_differ_in_their_provenance_alone(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for name, text in (("a", TEXT), ("b", TEXT), ("c", TEXT + "!")):
        args = ("report", text, "--model", toy, "--analyses", "attention-patterns,ablation,logit-lens", "--quiet")
        done = interp(capsys, *args, "--out", f"{name}.html")
        assert (done.code, done.err) == (0, "")
        pages.append(body(Path(f"{name}.html").read_text(encoding="utf-8")))
    assert pages[0] == pages[1]
    assert pages[0] != pages[2]  # the control


def test_nothing_is_overwritten_unless_told_to(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("report", TEXT, "--model", toy, "--analyses", "attention-patterns", "--quiet")
    first = interp(capsys, *args)
    name = "interp-toy-mary-met-john-and.html"
    assert (first.code, first.out) == (0, f"{name}\n")
    Path(name).write_text("mine")
    second = interp(capsys, *args)
    assert second.code == 2
    assert "--force" in second.err
    assert Path(name).read_text() == "mine"
    assert interp(capsys, *args, "--force").code == 0
    assert len(Path(name).read_text(encoding="utf-8")) > 10_000


def test_an_analysis_that_cannot_use_the_text_keeps_its_place(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_analysis(
        monkeypatch, tmp_path / "more", "picky", 'raise InputError("the text <rhymes> badly", "expected verse")'
    )
    args = ("report", TEXT, "--model", toy, "--out", "r.html", "--analyses")
    done = interp(capsys, *args, "attention-patterns,picky")
    assert done.code == 0
    assert re.search(r"^picky +[\d.]+ s  \(not run", done.err, re.MULTILINE)
    page = Path("r.html").read_text(encoding="utf-8")
    assert "the text &lt;rhymes&gt; badly. expected verse" in page
    alone = interp(capsys, *args, "picky", "--force")  # nothing left to report
    assert alone.code == 2
    assert "rhymes" in alone.err


def needy(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Two analyses: one that says what it needs, and one that finds out while it runs."""
    add_analysis(monkeypatch, folder, "needy", "return MadeUp({})")
    file = folder / "needy.py"
    text = file.read_text().replace("def needy(", '@analysis(needs=("learned positions",))\ndef needy(')
    file.write_text(text.replace("import pandas", "from analyses.shared.capabilities import analysis\nimport pandas"))
    late = 'from interp.errors import NotApplicable\n    raise NotApplicable("no <matrix> here", "expected one")'
    add_analysis(monkeypatch, folder, "late", late)


def test_a_report_leaves_out_what_the_model_lacks_and_says_why(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needy(monkeypatch, tmp_path / "more")
    llama = save(toy_of("llama", tokenizer=HookedGPT.from_pretrained(toy).tokenizer), tmp_path / "llama")
    args = ("report", TEXT, "--out", "r.html", "--force", "--analyses", "logit-lens,needy,late", "--model")
    done = interp(capsys, *args, llama)
    assert done.code == 0, done.err
    assert "1 analyses, 2 left out (the page says why)" in done.err
    page = Path("r.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)" class="analysis"', page) == ["logit_lens", "left_out"]
    assert "this model has no learned position embeddings" in page
    assert "no &lt;matrix&gt; here" in page
    assert set(provenance(page)["seconds"]) == {"logit_lens", "left_out"}  # type: ignore[call-overload]
    done = interp(capsys, *args, toy)  # the control: a model that has them
    assert "2 analyses, 1 left out" in done.err
    assert "learned position embeddings" not in Path("r.html").read_text(encoding="utf-8")
    alone = interp(capsys, "report", TEXT, "--out", "r.html", "--force", "--analyses", "needy", "--model", llama)
    assert alone.code == 2
    assert "needy: this model has no learned position embeddings" in alone.err


def test_an_analysis_alone_refuses_in_three_lines(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llama = save(toy_of("llama", tokenizer=HookedGPT.from_pretrained(toy).tokenizer), tmp_path / "llama")
    done = interp(capsys, "position-encodings", "--model", llama, "--quiet")
    assert (done.code, done.out) == (2, "")
    first, second, third = done.err.splitlines()
    assert first == "error: this model has no learned position embeddings"
    assert second.strip().startswith("expected")
    assert third.strip() == "see: interp position-encodings --help"


def test_an_analysis_that_breaks_on_its_numbers_does_not_cost_the_page(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_analysis(monkeypatch, tmp_path / "more", "broken", "return 1 / 0")
    args = ("report", TEXT, "--model", toy, "--out", "r.html", "--analyses", "attention-patterns,broken", "--quiet")
    done = interp(capsys, *args)
    assert (done.code, done.out) == (1, "r.html\n")
    assert done.err.startswith("error: the page was written, but broken failed unexpectedly\n")
    assert len(done.err.splitlines()) == 3
    page = Path("r.html").read_text(encoding="utf-8")
    assert "ZeroDivisionError: division by zero" in page
    assert 'id="attention_patterns"' in page
    assert "1 / 0" in interp(capsys, *args, "--force", "--debug").err  # the traceback


def test_weights_that_are_not_finite_are_named(
    toy_gpt: HookedGPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = copy.deepcopy(toy_gpt)
    with torch.no_grad():
        broken.W_E[3, 3] = torch.nan
    folder = save(broken, tmp_path / "broken")
    done = interp(capsys, "weight-statistics", "--model", folder)
    assert done.code == 2
    assert "the model's weights are not finite: W_E" in done.err
    assert interp(capsys, "report", TEXT, "--model", folder, "--out", "r.html").code == 0
    assert "not finite: W_E" in Path("r.html").read_text(encoding="utf-8")


def test_a_bug_in_an_analysis_writes_nothing(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_analysis(monkeypatch, tmp_path / "more", "broken", "return {}[7]")
    done = interp(capsys, "report", TEXT, "--model", toy, "--out", "r.html", "--analyses", "attention-patterns,broken")
    assert done.code == 1
    assert not Path("r.html").exists()


def test_data_beside_the_report(toy: Path, toy_gpt: HookedGPT, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("report", TEXT, "--model", toy, "--quiet", "--analyses", "logit-lens,attention-patterns", "--data", "data")
    assert interp(capsys, *args, "--out", "r.html").code == 0
    summary = json.loads(Path("data/report.json").read_text(encoding="utf-8"))
    assert [table["analysis"] for table in summary["tables"]] == ["logit_lens", "attention_patterns"]
    expected = logit_lens(toy_gpt, TEXT).to_dataframe()
    file = Path("data") / summary["tables"][0]["file"]
    pd.testing.assert_frame_equal(pd.read_parquet(file), expected, check_exact=True)
    assert summary["tables"][0]["rows"] == len(expected)
    whole = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    for row, exact in zip(whole["rows"], expected.to_dict("records"), strict=True):
        for name, value in exact.items():
            if value is None or value != value:
                assert row[name] is None
            elif isinstance(value, float):
                assert row[name] == pytest.approx(value, rel=1e-12)
            else:
                assert row[name] == value
    assert whole["options"] == summary["tables"][0]["options"] == {"top_k": 5, **whole["options"]}
    assert summary["provenance"]["request"]["options"]["logit_lens"] == whole["options"]
    assert summary["provenance"]["weights_sha256"]
    Path("data/report.json").unlink()
    again = interp(capsys, *args, "--out", "s.html")
    assert again.code == 2
    assert str(file) in again.err  # every file is looked at, not the summary alone
    assert not Path("s.html").exists()
    assert interp(capsys, *args, "--out", "s.html", "--force").code == 0


def test_the_report_from_python(toy_gpt: HookedGPT) -> None:
    seen: list[str] = []
    made = reports.report(
        toy_gpt, ["Mary met John", "and John met Mary"], analyses=["logit_lens"], after=lambda s: seen.append(s.name)
    )
    assert seen == ["logit_lens"]
    assert len(made.tokens) == 2
    assert made.provenance["tokens"] == [len(tokens) for tokens in made.tokens]
    assert "</html>" in reports.render(made)
    panel = made.sections[0].result.panels()[0]
    assert reports.figure(panel).get_axes()
    ids = toy_gpt.to_tokens("Mary met John")
    from_ids = reports.report(toy_gpt, ids, analyses=["logit_lens"])
    assert from_ids.tokens == made.tokens[:1]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = reports.nothing


def test_what_is_given_goes_before_what_lies_beside_the_model(
    toy_gpt: HookedGPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(toy_gpt, tmp_path / "beside")
    (folder / Translators.FILE_NAME).write_text("not a lens")
    Translators.identity(toy_gpt).save(tmp_path / "given.safetensors")
    args = ("tuned-lens", TEXT, "--model", folder, "--quiet")
    assert interp(capsys, *args, "--translators", "given.safetensors").code == 0
    assert interp(capsys, *args).code == 2  # the control: the damaged one is read


def test_the_seed_reaches_the_analyses(toy_gpt: HookedGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_analysis(
        monkeypatch, tmp_path / "more", "lucky", 'return MadeUp({"seed": seed})', 'seed: Annotated[int, "s"] = 0'
    )
    made = reports.report(toy_gpt, TEXT, analyses=["lucky"], seed=41)
    assert made.sections[0].result.to_dataframe()["seed"].tolist() == ["41"]


# Models, generation, training.


def test_models_lists_the_published_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    """Parameter counts as published by Hugging Face for these models."""
    done = interp(capsys, "models", "--format", "json", "--quiet")
    rows = {row["name"]: row for row in json.loads(done.out)}
    assert rows["gpt2"]["parameters"] == 124_439_808
    assert rows["gpt2-xl"]["parameters"] == 1_557_611_200
    assert (rows["gpt2-medium"]["layers"], rows["gpt2-medium"]["heads"], rows["gpt2-medium"]["width"]) == (24, 16, 1024)
    assert (rows["tiny"]["heads"], rows["tiny"]["kv"]) == (4, 4)
    table = interp(capsys, "models")
    assert "124,439,808" in table.out
    assert "directory" in table.err
    assert "Llama 1 to 3.3" in table.err


def test_a_model_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(toy_of("gemma3"), tmp_path / "gemma3")
    done = interp(capsys, "models", "--check", folder, "--quiet")
    assert done.code == 0, done.err
    assert "resid_pre + attn_out = resid_mid" in done.out
    assert len(re.findall("holds", done.out)) == 8
    rows = json.loads(interp(capsys, "models", "--check", folder, "--format", "json", "--quiet").out)
    assert all(row["largest error"] < row["limit"] for row in rows)
    wrong = [Identity("one", 0.0, 1e-5), Identity("parts sum", 0.3, 1e-5)]
    monkeypatch.setattr("interp.models.identities.identities", lambda model, tokens: wrong)
    done = interp(capsys, "models", "--check", folder, "--quiet")
    assert done.code == 5
    assert "FAILS" in done.out
    assert done.err.startswith(f"error: {folder}: parts sum\n")
    assert interp(capsys, "models", "--check", folder, "--evaluate").code == 2


def test_the_files_own_dtype(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "half"
    toy_of("llama", tokenizer=HookedGPT.from_pretrained("tiny").tokenizer, d_vocab=4096).save_pretrained(
        folder, dtype=torch.bfloat16
    )
    for dtype, expected in (("auto", "bfloat16"), ("float64", "float64")):
        args = ("logit-lens", TEXT, "--model", folder, "--dtype", dtype, "--out", f"{dtype}.html")
        assert interp(capsys, *args).code == 0
        assert provenance(Path(f"{dtype}.html").read_text(encoding="utf-8"))["dtype"] == expected


def test_generation_is_the_models_own(toy: Path, toy_gpt: HookedGPT, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("generate", "The cat", "--model", toy, "--max-new-tokens", 8, "--quiet")
    greedy = interp(capsys, *args, "--temperature", 0)
    tokens = toy_gpt.to_tokens("The cat")
    for _ in range(8):  # the slow way: the whole text again for each token
        tokens = torch.cat([tokens, toy_gpt(tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert greedy.out == toy_gpt.to_string(tokens[0, 1:].tolist()) + "\n"
    drawn = [interp(capsys, *args, "--seed", seed).out for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    words = ["the", "river", "runs", "to", "sea", "and", "king", "of", "north", "was", "old", "town"]  # fmt: skip
    pages = []
    for i in range(60):
        text = ". ".join(" ".join(rng.choice(words, 12)).capitalize() for _ in range(30))
        pages.append(f"<page><title>T{i}</title><revision><text>{text}</text></revision></page>")
    path = tmp_path_factory.mktemp("corpus") / "dump.xml"
    path.write_text(f"<mediawiki>{''.join(pages)}</mediawiki>")
    return path


def test_training_leaves_a_model_and_a_recipe_that_repeats_it(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A second compilation in one process may round otherwise than the first.
    monkeypatch.setattr("interp.training.gpt._compiler", lambda: False)
    shape = ("--layers", 1, "--heads", 2, "--width", 16, "--context", 32)
    shape += ("--vocabulary", 300, "--batch", 4, "--steps", 20)
    first = interp(capsys, "train", corpus, "--out", "a", *shape, "--precision", "float32")
    assert (first.code, first.out) == (0, "a\n"), first.err
    assert re.search(r"step +20 of 20 +loss [\d.]+ .*induction", first.err)
    second = interp(capsys, "train", corpus, "--out", "b", "--recipe", "a/settings.json", "--quiet")
    assert (second.code, second.err) == (0, "")
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()
    assert interp(capsys, "train", corpus, "--out", "a", *shape).code == 2  # there is a run already
    assert interp(capsys, "generate", "the river", "--model", "a", "--max-new-tokens", 5).code == 0


def test_training_on_text_leaves_a_model_that_every_command_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("The river runs to the sea, and the old town was north of it. " * 60)
    Path("texts/b.jsonl").write_text('{"text": "The king of the river was old."}\n"And the sea ran north."\n')
    shape = ("--layers", 1, "--heads", 2, "--width", 16, "--context", 128, "--batch", 4, "--steps", 20)
    for kind, size in (("bytes", 257), ("characters", 24)):
        done = interp(capsys, "train", "texts", "--tokenizer", kind, "--out", kind, *shape)
        assert (done.code, done.out) == (0, f"{kind}\n"), done.err
        assert f"tokenizer: {kind} ({size} tokens)" in done.err
        assert re.search(r"step +20 of 20 +loss [\d.]+ .*held out loss [\d.]+ +held out bits per byte", done.err)
        assert len(interp(capsys, "generate", "the r", "--model", kind, "--max-new-tokens", 9, "--quiet").out) >= 10
        page = ("report", "The river", "--model", kind, "--analyses", "logit-lens,ablation", "--out", f"{kind}.html")
        assert interp(capsys, *page).code == 0
    again = interp(capsys, "train", "texts/a.txt", "texts/b.jsonl", "--out", "c", "--recipe", "bytes/settings.json")
    assert again.code == 0, again.err
    assert Path("c/model.safetensors").read_bytes() == Path("bytes/model.safetensors").read_bytes()
    resumed = interp(capsys, "train", "texts", "--tokenizer", "bytes", "--out", "bytes", "--resume", *shape)
    assert resumed.code == 0
    Path("texts/c.txt").write_text("One more text.")
    other = interp(capsys, "train", "texts", "--tokenizer", "bytes", "--out", "bytes", "--resume", *shape)
    assert (other.code, other.err.splitlines()[-3][:6]) == (2, "error:")
    assert "another corpus or vocabulary" in other.err


def test_a_text_learned_by_heart_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    Path("noise.txt").write_text("".join(rng.choice(list("abcd efgh"), 700)))
    shape = ("--layers", 1, "--width", 64, "--context", 64, "--steps", 120, "--lr", "0.01")
    done = interp(capsys, "train", "noise.txt", "--out", "noise", *shape)
    assert done.code == 0, done.err
    best = int(re.findall(r"held-out loss rose since step (\d+): the model saved", done.err)[0])
    curve = pd.read_csv("noise/curve.csv")
    assert curve.step[curve.held_out_loss.idxmin()] == best < 120
    assert f"(rose since step {best})" in done.err


@pytest.mark.parametrize(
    ("name", "data", "code", "message"),
    [
        ("a.txt", b"", 2, "a.txt holds no text"),
        ("a.txt", b"fine\n\xff", 2, "a.txt, line 2: not UTF-8"),
        ("a.txt", b"few words", 2, "tokens to train on"),
        ("a.jsonl", b'{"label": 1}', 2, "a.jsonl, line 1: "),
        ("b.txt", b"fine", 3, "there is no corpus at a.txt"),
    ],
)
def test_a_text_that_cannot_be_trained_on_takes_three_lines(
    name: str, data: bytes, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_bytes(data)
    done = interp(capsys, "train", "a.txt" if code == 3 else name, "--out", "out", "--quiet")
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 3
    assert not Path("out").exists()


def test_two_files_of_one_name_are_refused(tmp_path, capsys) -> None:
    done = interp(capsys, "circuits", "--n", "4", "--save", "a.json", "--out", "../" + tmp_path.name + "/a.json")
    assert done.code == 2
    assert "--out and --save name one file" in done.err
    assert not (tmp_path / "a.json").exists()
