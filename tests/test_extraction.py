"""Extraction: what is stored is what the model computes, whole, the same bytes however often a run was killed."""

import errno
import json
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import interp
from conftest import make_gpt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp import ActivationStore, HookedGPT, extract_activations
from interp.errors import HookNameError, InputError, InterpError, LoadError, NotFoundError
from interp.store import writing
from interp.store.cost import measure
from interp.store.sequences import batches
from interp.store.texts import SPLITS, Text, read_texts

MODEL = make_gpt(n_ctx=12)
ROWS = [[5, 6, 7], list(range(40, 60)), [9], [1, 2, 3, 4, 5, 6, 7], list(range(100, 131)), [8, 8]]
SENTENCES = ["The cat sat on the mat.", "The dog sat on the log. " * 5, "When Mary and John went", "John gave a drink"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "names",
    [
        "resid_post",
        ["embed", "z"],
        "scale",
        "blocks.0.mlp.hook_post",
        "ln_final.hook_normalized",
        "result",
        "pos_embed",
    ],
)
def test_what_is_stored_is_what_a_run_of_each_text_alone_gives(toy_gpt, tmp_path, names):
    store = extract_activations(toy_gpt, SENTENCES, names, tmp_path / "s", dtype="float32", shard_tokens=30)
    manifest = store.manifest
    assert store.n_shards > 1
    assert list(store.names) == toy_gpt.match(names)
    for number, text in enumerate(SENTENCES):
        _, cache = toy_gpt.run_with_cache(text, names=names)
        mine = manifest[manifest["text"] == number]
        assert toy_gpt.to_string(mine["token"].tolist()) == text
        for name in store.names:
            x, rows = store.load(name, rows=mine.index.to_numpy())
            assert rows.tolist() == mine.index.tolist()
            expected = cache[name][0, 1:].flatten(1).numpy()  # all but the beginning-of-text token
            np.testing.assert_allclose(x, expected, atol=2e-5 * max(1.0, np.abs(expected).max()), rtol=0)
            if len(x) > 1:  # the control: a row further on is not the same
                assert np.abs(x[1:] - expected[:-1]).max() > 1e-2


@pytest.mark.parametrize(("name", "fill"), [("pattern", 0.0), ("attn_scores", -np.inf)])
def test_patterns_have_a_row_a_query_and_a_value_a_key(toy_gpt, tmp_path, name, fill):
    store = extract_activations(toy_gpt, SENTENCES, (name, 1), tmp_path / "s", dtype="float32")
    heads, keys = store.shape((name, 1))
    x, _ = store.load(store.names[0])
    for number, text in enumerate(SENTENCES):
        _, cache = toy_gpt.run_with_cache(text, names=name)
        expected = cache[name, 1][0].transpose(0, 1)[1:].numpy()  # [query head key]
        mine = store.manifest.index[store.manifest["text"] == number]
        found = x[mine].reshape(-1, heads, keys)
        np.testing.assert_allclose(found[..., : expected.shape[-1]], expected, atol=1e-5, rtol=1e-5)
        assert (found[..., expected.shape[-1] :] == fill).all()


texts_of_ids = st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=40), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=texts_of_ids, shard=st.integers(1, 60), batch=st.integers(1, 50), packed=st.booleans(), bos=st.booleans())
def test_every_position_is_there_once_and_is_its_own(tmp_path_factory, toy_tokenizer, rows, shard, batch, packed, bos):
    """The embedding of a token, and of a place, are known without running the model."""
    model = make_gpt(n_ctx=12, tokenizer=toy_tokenizer)
    out = tmp_path_factory.mktemp("s") / "store"
    store = extract_activations(
        model, rows, ["embed", "pos_embed"], out, dtype="float32", shard_tokens=shard, batch_tokens=batch,
        packed=packed, prepend_bos=bos,
    )  # fmt: skip
    manifest = store.manifest
    there = sorted(zip(manifest["text"], manifest["position"], manifest["token"], strict=True))
    assert there == [(t, p, token) for t, row in enumerate(rows) for p, token in enumerate(row)]
    found = {name: np.concatenate([x[name] for x, _ in store.batches(store.names, batch=7)]) for name in store.names}
    assert np.array_equal(found["hook_embed"], model.W_E.detach().numpy()[manifest["token"]])
    assert np.array_equal(found["hook_pos_embed"], model.W_pos.detach().numpy()[manifest["place"]])
    assert manifest["place"].min() == bos
    assert manifest.groupby("text")["split"].nunique().max() == 1
    assert manifest.groupby("sequence")["split"].nunique().max() == 1  # packed rows do not mix splits
    assert [len(store.shard_manifest(k)) for k in range(store.n_shards)] == store.header["shard_rows"]
    longest = manifest.groupby("sequence").size().max()
    assert max(store.header["shard_rows"]) <= max(shard, longest)
    if packed:
        full = manifest.groupby(["split", "sequence"], observed=True)["place"].max().groupby("split", observed=True)
        assert all(places.iloc[:-1].min() >= 10 for _, places in full if len(places) > 1)  # only the last is short


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 100))
def test_batches_hold_every_sequence_once_and_keep_to_their_size(lengths, tokens):
    found = list(batches(np.array(lengths), tokens))
    assert sorted(place for batch in found for place in batch) == list(range(len(lengths)))
    for batch in found:
        padded = len(batch) * max(lengths[place] for place in batch)
        assert padded <= tokens or len(batch) == 1
    order = [lengths[place] for batch in found for place in batch]
    assert order == sorted(lengths, reverse=True)  # like lengths together: least padding


def test_the_split_is_by_text_stays_with_the_id_and_keeps_equal_texts_together(tmp_path):
    rows = [[n % 300, n // 300] for n in range(2000)]
    split = extract_activations(MODEL, rows, "embed", tmp_path / "a").texts["split"]
    shares = split.value_counts(normalize=True)
    assert np.allclose([shares[name] for name in SPLITS], (0.8, 0.1, 0.1), atol=4 * np.sqrt(0.16 / 2000))
    other = extract_activations(MODEL, rows, "embed", tmp_path / "b", seed=1).texts["split"]
    assert (split != other).mean() > 0.2  # the control: another seed, another split
    again = extract_activations(MODEL, [*rows[1000:], *rows[:1000]], "embed", tmp_path / "c").texts["split"]
    assert (again.to_numpy() == np.concatenate([split[1000:], split[:1000]])).all()
    named = [Text(tokens=row, id=f"doc {n // 2}") for n, row in enumerate(rows[:400])]
    pairs = extract_activations(MODEL, named, "embed", tmp_path / "d").texts
    assert pairs.groupby("id")["split"].nunique().max() == 1
    given = [Text(tokens=[n], labels={"split": "test" if n < 5 else "train"}) for n in range(10)]
    chosen = extract_activations(MODEL, given, "embed", tmp_path / "e").texts["split"]
    assert chosen.tolist() == ["test"] * 5 + ["train"] * 5


def test_labels_of_texts_words_and_tokens_stand_where_they_belong(toy_gpt, tmp_path):
    lines = [
        {"text": "The cat sat", "topic": "cats", "id": "a"},
        {"words": ["The", "unbelievable", "naïve", "dog"], "tag": ["D", "A", None, "N"], "topic": "dogs", "score": 0.5},
        {"tokens": [4, 5, 6], "flag": [True, False, None], "score": 2},
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    store = extract_activations(toy_gpt, read_texts(file), "embed", tmp_path / "s")
    manifest = store.manifest
    assert store.texts["id"].tolist() == ["a", "1", "2"]
    assert store.header["labels"] == {"topic": "string", "tag": "string", "score": "float", "flag": "bool"}
    assert (manifest.loc[manifest["text"] == 0, "topic"] == "cats").all()
    tagged = manifest[manifest["tag"].notna()]
    assert tagged["tag"].tolist() == ["D", "A", "N"]
    second = manifest[manifest["text"] == 1]
    for row, end in zip(tagged.itertuples(), ["The", "unbelievable", "dog"], strict=True):
        before = toy_gpt.to_string(second[second["position"] <= row.position]["token"].tolist())
        assert before.endswith(end)  # the label is where the word is complete
    assert manifest.loc[manifest["text"] == 2, "flag"].tolist()[:2] == [True, False]
    assert manifest["flag"].notna().sum() == 2
    assert manifest.loc[manifest["text"] == 2, "score"].tolist() == [2.0] * 3
    frame = pd.DataFrame(lines)[["text", "topic", "score"]].iloc[:1]
    frame.to_parquet(tmp_path / "texts.parquet")
    assert [text.text for text in read_texts(tmp_path / "texts.parquet")] == ["The cat sat"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: no valid JSON"),
        ("[1]", "expected an object"),
        ('{"label": 1}', "no text"),
        ('{"text": "a", "words": ["a"]}', "text and words"),
        ('{"tokens": ["a"]}', "token ids"),
        ('{"words": ["a", "b"], "tag": ["x"]}', "1 values\nexpected 2, one a word"),
        ('{"text": "a", "token": 3}', "label called 'token'"),
        ('{"text": "a", "x": {"y": 1}}', "expected text, a number"),
        ('{"tokens": [300]}', "token id 300"),
        ('{"text": "a", "split": "dev"}', "split 'dev'"),
    ],
)
def test_a_bad_line_is_named_in_at_most_three_lines(toy_gpt, tmp_path, line, words):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(InputError, match=words) as caught:
        extract_activations(toy_gpt, read_texts(file), "embed", tmp_path / "s")
    assert len(str(caught.value).splitlines()) <= 3
    assert not (tmp_path / "s").exists()


def test_files_of_plain_text(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("one\ntwo\n\f\nthree\n\n\f \n")
    assert [text.text for text in read_texts(file)] == ["one\ntwo", "three"]
    assert [text.text for text in read_texts(file, lines=True)] == ["one", "two", "three"]
    with pytest.raises(NotFoundError, match="there is no file"):
        read_texts(tmp_path / "none.txt")


def test_texts_of_other_systems(tmp_path):
    for name in ("t.txt", "t.jsonl"):
        plain = "The river\nwas long\n" if name == "t.txt" else '{"text": "The river"}\n{"text": "was long"}\n'
        expected = {}
        for ends in ("\n", "\r\n", "\r"):
            for mark in (b"", b"\xef\xbb\xbf"):
                file = tmp_path / name
                file.write_bytes(mark + plain.replace("\n", ends).encode())
                for lines in (False, True):
                    found = [text.text for text in read_texts(file, lines=lines)]
                    assert found == expected.setdefault(lines, found)
                    assert not any(sign in text for text in found for sign in "\ufeff\r")
        assert expected[True] == ["The river", "was long"]
    file.write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(InputError, match="holds no text"):
        read_texts(file)
    file.write_text("The river", encoding="utf-16")
    with pytest.raises(InputError, match="UTF-16") as caught:
        read_texts(file)
    assert "iconv" in str(caught.value)


# The same bytes, whatever happens on the way.


def run_again(out: Path, **options: object) -> ActivationStore:
    return extract_activations(MODEL, ROWS, ["resid_post", "z"], out, shard_tokens=9, batch_tokens=20, **options)


def test_a_run_that_ended_at_any_write_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    run_again(tmp_path / "whole")
    whole, write = contents(tmp_path / "whole"), writing._write
    for fatal in (*range(5), 11, 17, 23):

        def dying(*args: object, left: list[int] = [fatal]) -> str:  # noqa: B006 - counts the calls
            left[0] -= 1
            if left[0] < 0:
                raise MemoryError
            return write(*args)

        out = tmp_path / f"killed {fatal}"
        monkeypatch.setattr(writing, "_write", dying)
        with pytest.raises(MemoryError):
            run_again(out)
        monkeypatch.setattr(writing, "_write", write)
        assert contents(out) != whole
        run_again(out, resume=True)
        assert contents(out) == whole
    assert whole  # and a finished run is left alone
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run_again(out, resume=True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("parts", [2, 3])
def test_processes_that_share_the_work_write_the_same_bytes(tmp_path, parts):
    run_again(tmp_path / "whole")
    for index in reversed(range(parts)):
        store = run_again(tmp_path / "shared", shard_index=index, num_shards=parts)
        if index:
            assert len(contents(tmp_path / "shared")) < len(contents(tmp_path / "whole"))
    assert store.n_rows == sum(map(len, ROWS))
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


# What goes wrong.


def test_a_full_disk_is_said_by_the_files_name_and_nothing_good_is_lost(tmp_path, monkeypatch):
    run_again(tmp_path / "whole")
    write_bytes = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if "shard-00003" in str(self) and self.name.endswith("z.safetensors"):
            write_bytes(self, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        InterpError, match=r"shard-00003/blocks.0.attn.hook_z.safetensors cannot be written: No"
    ) as caught:
        run_again(tmp_path / "s")
    assert len(str(caught.value).splitlines()) == 3
    finished = contents(tmp_path / "s")
    assert {name.split("/")[0] for name in finished if "/" in name} == {"shard-00000", "shard-00001", "shard-00002"}
    assert all(contents(tmp_path / "whole")[name] == data for name, data in finished.items())
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    run_again(tmp_path / "s", resume=True)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_a_limit_on_file_sizes_is_said_by_the_files_name(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a real write that the system refuses
    try:
        with pytest.raises(InterpError, match=r"hook_embed.safetensors cannot be written: File too large"):
            extract_activations(make_gpt(), [list(range(60))] * 9, "embed", tmp_path / "s", dtype="float32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "s").glob("shard-*"))
    assert not list((tmp_path / "s").glob(".*"))  # nothing half written is left


def test_too_little_room_is_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "free_bytes", lambda folder: 1000)
    with pytest.raises(InterpError, match="e-06 GB are free") as caught:
        run_again(tmp_path / "s")
    assert len(str(caught.value).splitlines()) == 3
    assert not list((tmp_path / "s").glob("shard-*"))


def test_another_extraction_in_the_folder_is_refused_by_what_differs(tmp_path):
    out = tmp_path / "s"
    run_again(out)
    before = contents(out)
    with pytest.raises(InputError, match="holds activations"):
        run_again(out)
    ids, names = ROWS, ["resid_post", "z"]
    options = {"shard_tokens": 9, "batch_tokens": 20, "resume": True}
    changed = make_gpt(n_ctx=12)
    with torch.no_grad():
        changed.blocks[1].mlp.b_out[3] += 1e-3
    for words, args, more in [
        ("weights_sha256", (changed, ids, names), {}),
        ("texts_sha256", (MODEL, [*ids[:-1], [8, 9]], names), {}),
        ("processing.seed is 0 there, 1 here", (MODEL, ids, names), {"seed": 1}),
        ("processing.batch_tokens", (MODEL, ids, names), {"batch_tokens": 21}),
        ("dtype is float16 there, bfloat16 here", (MODEL, ids, names), {"dtype": "bfloat16"}),
        ("hook_points", (MODEL, ids, "resid_pre"), {}),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            extract_activations(*args, out, **(options | more))
        assert len(str(caught.value).splitlines()) == 3
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(InputError, match="holds no activations"):
        run_again(tmp_path / "taken", resume=True)
    assert contents(out) == before


def test_a_damaged_shard_is_found_by_resume_and_made_again_once_it_is_removed(tmp_path):
    run_again(tmp_path / "whole")
    run_again(tmp_path / "s")
    file = tmp_path / "s" / "shard-00001" / "blocks.1.hook_resid_post.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(LoadError, match=r"shard-00001/blocks.1.hook_resid_post.safetensors is damaged") as caught:
        run_again(tmp_path / "s", resume=True)
    assert f"remove {file.parent}" in str(caught.value)  # follow the advice
    for one in file.parent.iterdir():
        one.unlink()
    file.parent.rmdir()
    run_again(tmp_path / "s", resume=True)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_values_that_float16_cannot_hold_are_an_error_by_name(tmp_path):
    model = make_gpt()
    with torch.no_grad():
        model.blocks[0].mlp.b_out[0] = 1e5
    with pytest.raises(InputError, match=r"blocks.0.hook_resid_post: an activation is not finite in float16"):
        extract_activations(model, [[1, 2]], "resid_post", tmp_path / "a")
    x, _ = extract_activations(model, [[1, 2]], ("resid_post", 0), tmp_path / "b", dtype="bfloat16").load("resid_post")
    assert abs(x[0, 0] / 1e5 - 1) < 2**-8
    model.W_E.data[2, 3] = float("nan")
    with pytest.raises(InputError, match="hook_embed: an activation is not finite in float32"):
        extract_activations(model, [[1, 2]], "embed", tmp_path / "c", dtype="float32")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dtype": "int8"}, InputError, "dtype 'int8'"),
        ({"shard_tokens": 0}, InputError, "shard_tokens = 0"),
        ({"batch_tokens": -1}, InputError, "batch_tokens = -1"),
        ({"split": (1, 2)}, InputError, "expected the shares"),
        ({"seed": -1}, InputError, "seed -1"),
        ({"num_shards": 2, "shard_index": 2}, InputError, "shard index 2 of 2"),
        ({"num_shards": 0}, InputError, "of 0"),
        ({"labels": {"x": [1]}}, InputError, "1 entries"),
        ({"labels": {"x": [[1, 2], 3, 3, 3, 3, 3]}}, InputError, "expected 3, one a token"),
        ({"labels": {"x": ["a", 1, 2, 3, 4, 5]}}, InputError, "expected one kind"),
        ({"names": "residpost"}, HookNameError, "nearest"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, options, error, words):
    names = options.pop("names", "embed")
    with pytest.raises(error, match=words) as caught:
        extract_activations(MODEL, ROWS, names, tmp_path / "s", **options)
    assert len(str(caught.value).splitlines()) <= 3
    assert not list(tmp_path.glob("s/shard-*"))


def test_hooks_that_are_placed_would_be_stored_unseen(tmp_path):
    with MODEL.hooks([("z", lambda x, hook: x)]), pytest.raises(InputError, match="without hooks"):
        extract_activations(MODEL, ROWS, "embed", tmp_path / "s")


def test_the_plan_says_the_bytes_and_leaves_nothing(tmp_path):
    job = writing.plan(MODEL, ROWS, ["resid_post", "z"], tmp_path / "s", shard_tokens=9)
    found = measure(job, least=0.01)
    assert list(tmp_path.iterdir()) == []
    store = extract_activations(MODEL, ROWS, ["resid_post", "z"], tmp_path / "s", shard_tokens=9)
    stored = sum(x[name].nbytes for x, _ in store.batches(store.names, dtype=np.float16) for name in x)
    assert found.bytes == sum(found.hook_points.values()) == stored
    assert (found.positions, found.shards, found.texts) == (store.n_rows, store.n_shards, len(ROWS))
    assert found.seconds > 0
    half = measure(job, shard_index=1, num_shards=2, least=0.01)
    assert half.positions == sum(store.header["shard_rows"][1::2])


# The command.


def test_the_command_writes_a_store_and_goes_on(capsys, tmp_path):
    out = tmp_path / "s"
    done = interp(capsys, "extract", "--out", out, "--names", "embed", "--shard-tokens", 20000, "--quiet")
    assert (done.code, done.out.strip(), done.err) == (0, str(out), "")
    store = ActivationStore(out)
    assert store.names == ("hook_embed",)
    assert store.n_shards == 3
    model = HookedGPT.from_pretrained("tiny", device="cpu")
    x, rows = store.load("embed", rows=np.arange(100))
    half = model.W_E.detach()[store.manifest["token"].to_numpy()[rows]].half().float().numpy()
    assert np.array_equal(x, half)
    again = interp(capsys, "extract", "--out", out, "--names", "embed", "--shard-tokens", 20000)
    assert again.code == 2
    assert "--resume" in again.err
    again = interp(capsys, "extract", "--out", out, "--names", "embed", "--shard-tokens", 20000, "--resume")
    assert again.code == 0
    assert "nothing was left to do" in again.err


def test_the_commands_plan_is_json_on_request(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("The cat sat on the mat.\nThe dog sat on the log.\n")
    done = interp(capsys, "extract", "t.txt", "--lines", "--plan", "--format", "json", "--names", "z")
    plan = json.loads(done.out)
    assert plan["texts"] == 2
    assert plan["bytes"] == plan["positions"] * 4 * 256 * 2
    table = interp(capsys, "extract", "t.txt", "--plan", "--quiet")
    assert "positions" in table.out
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ([], 2, "no --out"),
        (["--out", "s", "--workers", "2"], 2, "--workers without --ray"),
        (["none.txt", "--out", "s"], 3, "there is no file none.txt"),
        (["--out", "s", "--names", "embed,,z"], 2, "empty part"),
        (["--out", "s", "--split", "1,x,0"], 2, "expected three shares"),
        (["--out", "s", "--names", "rezid_post"], 2, "no hook point matches 'rezid_post'"),
        (["--out", "s", "--shard-index", "1"], 2, "shard index 1 of 1"),
        (["--out", "s", "--ray", "127.0.0.1:1"], 3, "no Ray cluster answers"),
        (["--out", "s", "--ray", "nonsense"], 2, "the Ray address 'nonsense'"),
    ],
)
def test_errors_of_the_command_are_three_lines_at_most(capsys, tmp_path, monkeypatch, args, code, words):
    monkeypatch.chdir(tmp_path)
    done = interp(capsys, "extract", *args)
    assert done.code == code, done.err
    assert words in done.err
    assert len(done.err.strip().splitlines()) <= 3
    assert not list(tmp_path.glob("s/shard-*"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_too_the_bytes_do_not_depend_on_where_a_run_was_cut(tmp_path):
    model = make_gpt(n_ctx=12).to("cuda")
    options = {"shard_tokens": 9, "batch_tokens": 20}
    store = extract_activations(model, ROWS, ["resid_post", "z"], tmp_path / "whole", **options)
    for index in (1, 0):
        extract_activations(
            model, ROWS, ["resid_post", "z"], tmp_path / "s", shard_index=index, num_shards=2, **options
        )
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")
    on_cpu = run_again(tmp_path / "cpu")
    for name in store.names:
        np.testing.assert_allclose(store.load(name)[0], on_cpu.load(name)[0], atol=2e-2, rtol=2e-3)  # float16 files
