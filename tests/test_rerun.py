"""`interp rerun`: a page makes itself again to the byte; what differs is found and named; a page is not believed."""

import json
import re
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TEXT, Done, add_analysis, interp, save
from hypothesis import given, settings
from hypothesis import strategies as st

import reports
from interp.errors import InputError
from interp.models.config import PRESETS
from interp.models.gpt import HookedGPT
from reports.cli import app
from reports.running import record, rerun

BLOCK = re.compile(r'(id="provenance-data">)(.*?)(</script>)', re.DOTALL)
SOME = "attention-patterns,ablation,logit-lens,head-roles"


@pytest.fixture(scope="module")
def toy(toy_gpt: HookedGPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(toy_gpt, tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def page(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report on the toy model."""
    out = tmp_path_factory.mktemp("page") / "r.html"
    args = ["report", TEXT, "--model", str(toy), "--seed", "7", "--analyses", SOME, "--out", str(out), "--quiet"]
    with pytest.raises(SystemExit, match="0"):
        app(args)
    return out.read_bytes().decode()


def facts(page: str) -> dict[str, Any]:
    found = BLOCK.search(page)
    assert found
    data: dict[str, Any] = json.loads(found[2])
    return data


def forged(page: str, change: Callable[[dict[str, Any]], object]) -> str:
    """The page with other facts and a digest that fits them, as a forger would make it."""
    data = facts(page)
    change(data)
    data.pop("page_sha256", None)
    return record.sealed(BLOCK.sub(lambda found: found[1] + str(record.block(data)) + found[3], page))


def written(page: str, name: str = "page.html") -> Path:
    Path(name).write_bytes(page.encode())
    return Path(name)


CHECK = ("--check", "--format", "json", "--quiet")


def outcomes(done: Done) -> list[str]:
    """Of each table that was compared."""
    return [row["outcome"] for row in json.loads(done.out)]


def without_times(page: str) -> str:
    """The page without date, times, and the digest over them."""
    data = facts(page)
    for name in ("date", "seconds", "page_sha256"):
        del data[name]
    page = BLOCK.sub(lambda found: json.dumps(data), page)
    return re.sub(r"<dt>(date|time, .*?)</dt><dd>.*?</dd>", "", page)


def test_the_page_makes_itself_again(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = interp(capsys, "rerun", written(page))
    assert (done.code, done.out) == (0, "page-again.html\n"), done.err
    assert re.fullmatch(r"model: .*toy\n", done.err)
    again = Path("page-again.html").read_bytes().decode()
    assert without_times(again) == without_times(page)
    assert facts(again)["seed"] == 7
    assert interp(capsys, "rerun", "page.html").code == 2  # nothing is overwritten


def test_the_numbers_are_the_same_to_the_last_bit(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = interp(capsys, "rerun", written(page), "--check", "--format", "json", "--quiet")
    assert (done.code, done.err) == (0, "")
    rows = json.loads(done.out)
    assert [row["table"] for row in rows] == SOME.split(",")
    assert {row["outcome"] for row in rows} == {"identical"}
    assert all(row["compared"] == row["rows"] > 0 for row in rows)
    assert [path.name for path in Path().iterdir()] == ["page.html"]  # --check writes nothing
    table = interp(capsys, "rerun", "page.html", "--check")
    assert len(re.findall(r"^[a-z-]+ .* identical ", table.out, re.MULTILINE)) == 4


def test_a_number_that_differs_is_named_with_its_size(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The page's number is set apart by 1 % of its column's largest: 0.005 does not allow it, 0.02 does."""
    column, row, moved = -1, 3, 0.01

    def change(data: dict[str, Any]) -> None:
        kept = data["numbers"]["ablation"]
        values = json.loads(zlib.decompress(b64decode(kept["values"])))
        values[column][row] += moved * max(map(abs, values[column]))
        kept["values"], kept["sha256"] = b64encode(zlib.compress(json.dumps(values).encode())).decode(), "another"

    name = facts(page)["numbers"]["ablation"]["columns"][column]
    args = ("rerun", written(forged(page, change)), "--check", "--format", "json", "--quiet")
    done = interp(capsys, *args, "--tolerance", 0.005)
    assert done.code == 5
    first, second, _ = done.err.splitlines()
    assert first == "error: page.html: 1 of 4 tables differ: ablation"
    assert f"ablation: {name}, row {row}: " in second
    assert "allowed 0.005" in second
    found = {row["table"]: row for row in json.loads(done.out)}
    assert found["ablation"]["outcome"] == "differs"
    assert found["ablation"]["largest difference"] == pytest.approx(moved, rel=0.02)
    assert found["logit-lens"]["outcome"] == "identical"
    allowed = interp(capsys, *args, "--tolerance", 0.02)
    assert allowed.code == 0
    assert {row["table"]: row["outcome"] for row in json.loads(allowed.out)}["ablation"] == "close"


def test_other_weights_are_refused(
    page: str, toy_gpt: HookedGPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        toy_gpt.W_E[0, 0] += 1e-3
        other = save(toy_gpt, tmp_path / "other")
        toy_gpt.W_E[0, 0] -= 1e-3
    done = interp(capsys, "rerun", written(page), "--model", other, "--check")
    assert done.code == 5
    assert "SHA-256" in done.err
    assert len(done.err.splitlines()) == 4  # what is loaded, and three lines of error


def test_a_model_that_moved(page: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = forged(page, lambda data: data.update(model="gone/away"))
    done = interp(capsys, "rerun", written(away), "--check", "--quiet")
    assert done.code == 3
    assert "gone/away" in done.err
    assert "--model" in done.err
    assert interp(capsys, "rerun", "page.html", "--check", "--quiet", "--model", toy).code == 0


def test_a_changed_page_is_noticed_wherever_it_changed(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    number = next(found for found in re.finditer(r'data-v="(\d\.\d+)"', page))
    places = {
        "a number": page[: number.start(1)] + "9" + page[number.start(1) + 1 :],
        "a heading": page.replace("<h2", "<h3", 1),
        "the seed": page.replace('"seed":7', '"seed":8', 1),
        "line ends": page.replace("\n", "\r\n"),
    }
    for what, changed in places.items():
        assert changed != page, what
        done = interp(capsys, "rerun", written(changed), "--check", "--quiet")
        assert done.code == 5, what
        assert "was changed after it was written" in done.err
        assert len(done.err.splitlines()) == 3
    assert record.is_intact(page, facts(page)["page_sha256"])  # the control


DAMAGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no request": lambda d: d.pop("request"),
    "another command": lambda d: d["request"].update(command="models"),
    "a command that is no word": lambda d: d["request"].update(command=["report"]),
    "an unknown analysis": lambda d: d["request"].update(analyses=["os.system"]),
    "analyses that are no list": lambda d: d["request"].update(analyses="logit_lens"),
    "an unknown option": lambda d: d["request"]["options"]["ablation"].update(path="/etc/passwd"),
    "an option of another type": lambda d: d["request"]["options"]["logit_lens"].update(top_k="5"),
    "a list for a number": lambda d: d["request"]["options"]["logit_lens"].update(top_k=[5]),
    "a file to load": lambda d: d["request"].update(
        analyses=["tuned_lens"], options={"tuned_lens": {"translators": "/etc/passwd"}}
    ),
    "a text that is none": lambda d: d["request"].update(text={"a": 1}),
    "uneven token ids": lambda d: d["request"].update(text=[[1, 2], [3]]),
    "a token id far too large": lambda d: d["request"].update(text=[[10**30]]),
    "a seed that is none": lambda d: d["request"].update(seed="x"),
    "a seed below 0": lambda d: d["request"]["options"]["ablation"].update(seed=-1),
    "a seed beyond all": lambda d: d["request"].update(seed=2**40),
    "draws without end": lambda d: d["request"]["options"]["ablation"].update(draws=10**9),
    "a number that is none": lambda d: d["request"]["options"]["ablation"].update(draws=float("inf")),
    "20,000 texts": lambda d: d["request"].update(text=["a"] * 20_000),
    "5 MB of text": lambda d: d["request"].update(text="a " * 2_500_000),
    "an analysis a thousand times": lambda d: d["request"].update(analyses=["logit_lens"] * 1000),
    "half a character": lambda d: d["request"].update(title="\ud800"),
    "meta": lambda d: d.update(device="meta"),
    "xla": lambda d: d.update(device="xla"),
    "a shape for what needs weights": lambda d: d.update(weights_sha256="no weights", model="gpt3"),
    "rows beyond all": lambda d: d["numbers"]["ablation"].update(rows=10**30, step=10**30),
    "a dtype that is none": lambda d: d.update(dtype="__class__"),
    "a device that is none": lambda d: d.update(device="nowhere"),
    "numbers that are none": lambda d: d.update(numbers={"ablation": 3}),
    "a table that cannot be unpacked": lambda d: d["numbers"]["ablation"].update(values="AAAA"),
    "rows that are no number": lambda d: d["numbers"]["ablation"].update(rows="many"),
    "no numbers at all": lambda d: d.update(numbers={}),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_page_is_told_in_three_lines(what: str, page: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = interp(capsys, "rerun", written(forged(page, DAMAGED[what])), "--check", "--quiet")
    assert done.code in (2, 3, 5), done.err
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) <= 3
    assert "bug" not in done.err


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"<html></html>", rerun.START.encode(), rerun.START.encode() + b"{}</script>",
     rerun.START.encode() + b"[" * 100_000 + b"</script>", 2 * (rerun.START.encode() + b"{}</script>")],
)  # fmt: skip
def test_what_is_no_page(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.html").write_bytes(content)
    done = interp(capsys, "rerun", "p.html")
    assert (done.code, len(done.err.splitlines())) == (2, 3)
    assert "no record" in done.err
    missing = interp(capsys, "rerun", "nothing.html")
    assert missing.code == 3
    assert len(missing.err.splitlines()) <= 3


def test_a_hub_name_of_the_page_is_not_fetched(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("interp.loading.sources._from_hub", lambda name: asked.append(name) or Path("nowhere"))
    hostile = forged(page, lambda data: data.update(model="somebody/tracker"))
    assert interp(capsys, "rerun", written(hostile)).code == 3
    assert asked == []
    assert interp(capsys, "rerun", "page.html", "--model", "somebody/tracker").code == 3  # the user's own word
    assert asked == ["somebody/tracker"]


def test_a_model_that_an_option_of_the_page_names_is_not_fetched(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("interp.loading.sources._from_hub", lambda name: asked.append(name) or Path("nowhere"))
    args = ("compare", TEXT, "--model", toy, "--other", toy, "--out", "c.html", "--quiet")
    assert interp(capsys, *args).code == 0
    page = Path("c.html").read_bytes().decode()
    assert outcomes(interp(capsys, "rerun", "c.html", *CHECK)) == [
        "identical"
    ]  # the control: a directory that is there
    for name in ("evil/model", "gpt2"):
        hostile = forged(page, lambda data, name=name: data["request"]["options"].update(other=name))  # type: ignore[misc]
        done = interp(capsys, "rerun", written(hostile), "--check", "--quiet")
        assert done.code == 3
        assert f"other '{name}'" in done.err
        assert "--load other=" in done.err
        assert len(done.err.splitlines()) == 3
        assert asked == []
        interp(capsys, "rerun", "page.html", "--check", "--quiet", "--load", f"other={name}")  # the user's own word
        assert asked == [name]
        asked.clear()
    assert outcomes(interp(capsys, "rerun", "page.html", *CHECK, "--load", f"other={toy}")) == ["identical"]
    for wrong in ("other", "other=", "lens=x", "model=x"):
        done = interp(capsys, "rerun", "page.html", "--check", "--load", wrong, "--quiet")
        assert (done.code, "--load" in done.err) == (2, True)


def test_weights_of_a_known_name_are_not_fetched_on_a_pages_word(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("interp.loading.sources._from_hub", lambda name: asked.append(name) or Path("nowhere"))
    known = written(forged(page, lambda data: data["request"].update(model="gpt2") or data.update(model="gpt2")))
    assert interp(capsys, "rerun", known, "--check").code == 3
    assert asked == []


def test_a_table_that_unpacks_to_gigabytes_is_refused(page: str) -> None:
    kept = facts(page)["numbers"]["ablation"]
    kept["values"] = b64encode(zlib.compress(b"[" + b" " * (record.LARGEST + 10) + b"]")).decode()
    with pytest.raises(InputError, match="cannot be read"):
        record.compare("ablation", kept, pd.DataFrame(), 0.1)


# Other ways to make a page.


def test_one_analysis_with_its_options(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("logit-lens", TEXT, "--model", toy, "--top-k", 3, "--dtype", "float64", "--out", "one.html", "--quiet")
    assert interp(capsys, *args).code == 0
    page = Path("one.html").read_bytes().decode()
    assert facts(page)["request"]["options"]["top_k"] == 3
    assert interp(capsys, "rerun", "one.html", "--out", "two.html", "--check", "--quiet").code == 0
    assert without_times(Path("two.html").read_bytes().decode()) == without_times(page)
    other = forged(page, lambda data: data["request"]["options"].update(top_k=4))
    done = interp(capsys, "rerun", written(other), "--check", "--quiet")
    assert done.code == 5  # the control: another option, another table
    assert "columns" not in done.err.splitlines()[0]


def test_sweeps_in_a_lower_dtype(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("ablation", TEXT, "--model", toy, "--dtype", "bfloat16", "--out", "low.html", "--quiet")
    assert interp(capsys, *args).code == 0
    page = Path("low.html").read_bytes().decode()
    assert outcomes(interp(capsys, "rerun", "low.html", *CHECK)) == ["identical"]
    in_full = forged(page, lambda data: data["request"].update(sweeps=None))
    assert outcomes(interp(capsys, "rerun", written(in_full), *CHECK)) != ["identical"]  # the control
    odd = forged(page, lambda data: data["request"].update(sweeps="__class__"))
    assert interp(capsys, "rerun", written(odd), "--check").code == 2


def test_a_shape_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert "gpt2" in PRESETS
    assert interp(capsys, "architecture", "--model", "gpt2", "--out", "a.html", "--quiet").code == 0
    done = interp(capsys, "rerun", "a.html", "--check", "--out", "b.html")
    assert done.code == 0, done.err
    pages = [Path(name).read_bytes().decode() for name in ("a.html", "b.html")]
    assert without_times(pages[0]) == without_times(pages[1])


def test_prompts_lie_in_the_page(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [{"clean": "The cat sat", "corrupted": "The mat sat", "answer": " on", "wrong": " log"}]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    args = ("activation-patching", "--prompts", "p.jsonl", "--model", toy, "--out", "p.html", "--quiet")
    done = interp(capsys, *args)
    assert done.code == 0, done.err
    Path("p.jsonl").unlink()
    assert outcomes(interp(capsys, "rerun", "p.html", *CHECK)) == ["identical"]


def test_a_report_from_python_on_token_ids(toy: Path) -> None:
    model = HookedGPT.from_pretrained(toy, device="cpu")
    ids = torch.tensor([[5, 9, 5, 9, 31], [0, 3, 3, 8, 4]])
    made = reports.report(model, ids, analyses=["logit_lens"], options={"logit_lens": {"top_k": 2}}, title="ids")
    kept = rerun.read(written(reports.render(made)))
    again = rerun.make(kept)
    assert again.title == "ids"
    assert again.tokens == made.tokens
    assert [one.outcome for one in rerun.check(kept, again)] == ["identical"]
    assert list(made.sections[0].result.to_dataframe().filter(regex=r"^top_\d$")) == ["top_1", "top_2"]


def test_what_would_be_loaded_is_said(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = 'return MadeUp({"lens": "x" if translators is None else "y"})'
    signature = 'translators: Annotated["Translators | None", "a file"] = None'
    add_analysis(monkeypatch, tmp_path / "more", "loads", body, signature)
    path = tmp_path / "more" / "loads.py"
    path.write_text(
        path.read_text().replace("import torch\n", "import torch\nfrom interp.lens_maps import Translators\n")
    )
    assert interp(capsys, "loads", TEXT, "--model", toy, "--out", "l.html", "--quiet").code == 0
    page = Path("l.html").read_bytes().decode()
    hostile = forged(page, lambda data: data["request"]["options"].update(translators="/etc/passwd"))
    done = interp(capsys, "rerun", written(hostile), "--check")
    assert done.code in (2, 3)
    assert "translators: /etc/passwd" in done.err  # said before anything was read
    assert "root:" not in done.err + done.out


# The kept numbers.


def table(rows: int = 40, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({
        "n": np.arange(rows), "x": rng.normal(size=rows), "word": [f"w{i}" for i in range(rows)],
        "sure": rng.random(rows) < 0.5, "gap": np.where(np.arange(rows) % 3, np.nan, 2.5),
    })  # fmt: skip


def test_a_large_table_keeps_even_rows_and_the_digest_of_all() -> None:
    frame = table(1000)
    kept = record.keep(frame, cells=500)
    assert (kept["rows"], kept["step"]) == (1000, 10)
    assert record.compare("t", kept, frame, 0).outcome == "identical"
    none = frame.head(0)
    assert record.compare("t", record.keep(none, cells=500), none, 0).outcome == "empty"  # nothing was compared
    between = frame.copy()
    between.loc[1, "x"] += 1e-9  # a row that is not kept: the digest alone tells
    assert record.compare("t", kept, between, 1e-3).outcome == "close"
    on = frame.copy()
    on.loc[10, "x"] += 0.5
    found = record.compare("t", kept, on, 1e-3)
    assert (found.outcome, found.compared) == ("differs", 100)
    assert found.where.startswith("x, row 10: ")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 39), st.sampled_from(["n", "x", "word", "sure", "gap"]), st.floats(1e-6, 10))
def test_any_one_change_is_found(row: int, column: str, size: float) -> None:
    frame = table()
    kept = record.keep(frame)
    other = frame.astype({"n": float, "sure": float, "word": object})
    other.loc[row, column] = (
        "another" if column == "word" else (other.loc[row, column] if column != "gap" else 0) + size
    )
    found = record.compare("t", kept, other, 0.0)
    assert found.outcome == "differs"
    assert found.where.startswith(f"{column}, row {row}: ")
    numbers = pd.to_numeric(frame[column], errors="coerce").abs().max()
    if column in ("n", "x", "sure"):
        rounding = 5e-8 * (abs(float(frame[column][row])) + abs(other[column][row]))  # both kept to eight digits
        assert found.largest == pytest.approx(size / numbers, rel=1e-6, abs=rounding / numbers)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats() | st.none() | st.text(max_size=5) | st.integers(-(2**40), 2**40) | st.booleans(), max_size=20)
)
def test_any_column_is_kept_and_agrees_with_itself(values: list[object]) -> None:
    frame = pd.DataFrame({"a": pd.Series(values, dtype=object)})
    kept = json.loads(json.dumps(record.keep(frame), allow_nan=False))
    assert record.compare("t", kept, frame, 0.0).outcome == ("identical" if values else "empty")
    kept["sha256"] = "of another machine"
    rounded = record.compare("t", kept, frame, 1e-7)
    assert rounded.outcome == "close", rounded


def test_another_shape_of_table_differs() -> None:
    kept = record.keep(table())
    assert "39 rows" in record.compare("t", kept, table(39), 1).where
    assert record.compare("t", kept, table().drop(columns="x"), 1).outcome == "differs"
    assert record.compare("t", kept, table().assign(more=1.0), 1).outcome == "differs"
    assert record.compare("t", kept, table().rename(columns={"x": "y"}), 1).outcome == "differs"
    assert record.compare("t", kept, None, 1).where == "the analysis was not run"


def test_a_page_made_by_hand_says_what_it_lacks() -> None:
    empty = reports.render(reports.Report("r", (), (), {}))
    with pytest.raises(InputError, match="no record"):
        rerun.read(written(empty))


def test_a_file_is_asked_for_by_the_name_of_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--from`, whatever Python has to call it."""
    made = ("circuits", "--task", "induction", "--n", "4", "--random", "1", "--quiet")
    assert interp(capsys, *made, "--save", "a.json", "--resamples", "2", "--exact", "0", "--out", "b.html").code == 0
    assert interp(capsys, *made, "--from", "a.json", "--out", "c.html").code == 0
    Path("a.json").rename("b.json")
    gone = interp(capsys, "rerun", "c.html", *CHECK)
    assert gone.code == 3
    assert "asks for the from 'a.json'" in gone.err
    assert "--load from= says where it is" in gone.err
    assert outcomes(interp(capsys, "rerun", "c.html", *CHECK, "--load", "from=b.json")) == ["identical"]
