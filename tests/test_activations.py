"""Reading activations from disk: any subset in any batches, less memory than data, and damage is told by name."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_gpt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp import ActivationStore, extract_activations
from interp.errors import HookNameError, InputError, LoadError, NotFoundError

NAMES = ["hook_embed", "blocks.1.hook_resid_post", "blocks.0.attn.hook_z"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 40 texts in several shards; not to be changed."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 300, (n,), generator=generator).tolist() for n in range(1, 41)]
    out = tmp_path_factory.mktemp("store") / "s"
    extract_activations(
        make_gpt(), rows, NAMES, out, shard_tokens=100, split=(2, 1, 1), labels={"length": range(1, 41)}
    )
    return out


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    """One that may be damaged."""
    import shutil

    return Path(shutil.copytree(directory, tmp_path / "copy"))


def test_what_is_there(directory):
    store = ActivationStore(directory)
    assert store.names == tuple(make_gpt().match(NAMES))
    assert (store.shape("z"), store.width("z"), store.width("embed")) == ((4, 8), 32, 32)
    assert store.match("blocks.*") == [NAMES[2], NAMES[1]]
    assert store.match(("resid_post", 1)) == [NAMES[1]]
    assert (store.n_rows, store.n_texts, store.labels) == (820, 40, ("length",))
    assert len(store.manifest) == 820
    assert (store.manifest.groupby("text").size() == np.arange(1, 41)).all()
    assert (store.texts["tokens"] == np.arange(1, 41)).all()
    assert (store.manifest["length"] == store.manifest["text"] + 1).all()
    assert (store.manifest.index == np.arange(820)).all()
    for shard in range(store.n_shards):
        part = store.shard_manifest(shard)
        assert part.index[0] == store.shard_offset(shard)
        assert part.equals(store.manifest.loc[part.index])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_batches_give_the_chosen_rows_once_in_order(directory, data):
    """Against a plain reading of every file."""
    from safetensors.numpy import load_file

    store = ActivationStore(directory)
    shards = [f"shard-{k:05d}" for k in range(store.n_shards)]
    files = {name: [directory / shard / f"{name}.safetensors" for shard in shards] for name in NAMES}
    whole = {name: np.concatenate([load_file(file)["activations"] for file in files[name]]) for name in NAMES}
    split = data.draw(st.sampled_from([None, "train", "validation", "test"]))
    rows = data.draw(st.none() | st.lists(st.integers(0, 819), max_size=60))
    only = data.draw(st.none() | st.lists(st.integers(0, store.n_shards - 1), max_size=3))
    given_rows = rows
    if rows is not None and data.draw(st.booleans()):
        given_rows = np.isin(np.arange(820), rows)
    expected = [
        i for i, row in enumerate(store.manifest.itertuples())
        if (split is None or row.split == split) and (rows is None or i in rows) and (only is None or row.shard in only)
    ]  # fmt: skip
    batch = data.draw(st.integers(1, 200))
    got = list(store.batches(NAMES, split=split, rows=given_rows, shards=only, batch=batch))
    assert [i for _, index in got for i in index] == expected
    assert all(len(index) <= batch for _, index in got)
    for x, index in got:
        for name in NAMES:
            assert x[name].dtype == np.float32
            assert np.array_equal(x[name], whole[name][index].astype(np.float32))
    one, index = store.load("z", split=split, rows=given_rows, dtype=np.float64)
    assert one.dtype == np.float64
    assert np.array_equal(one, whole[NAMES[2]][index].astype(np.float64))


def test_a_batch_may_be_changed_without_changing_the_store(directory):
    store = ActivationStore(directory)
    for dtype in (np.float16, np.float32):
        x, _ = next(store.batches("embed", dtype=dtype))
        before = x.copy()
        x[:] = 0
        assert np.array_equal(next(store.batches("embed", dtype=dtype))[0], before)
    store.check()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "dev"}, "split 'dev'"),
        ({"rows": [820]}, "expected 0 to 819"),
        ({"rows": np.ones(5, dtype=bool)}, r"mask of shape \(5,\)"),
        ({"batch": 0}, "batch = 0"),
        ({"shards": [99]}, "shard 99"),
    ],
)
def test_rows_that_do_not_exist_are_refused(directory, options, words):
    with pytest.raises(InputError, match=words):
        list(ActivationStore(directory).batches("embed", **options))


def test_names_that_do_not_exist_are_refused(directory):
    store = ActivationStore(directory)
    with pytest.raises(HookNameError, match="nearest"):
        list(store.batches("embde"))
    with pytest.raises(InputError, match="2 hook points"):
        store.width("blocks.*")


# Damage.


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def read_all(directory: Path, verify: bool = True) -> None:
    store = ActivationStore(directory, verify=verify)
    _ = store.manifest, store.texts
    for _ in store.batches(NAMES):
        pass


@pytest.mark.parametrize("place", [0, 10, -1])
@pytest.mark.parametrize(
    "file",
    ["header.json", "texts.parquet", "shard-00002/manifest.parquet", "shard-00002/checksums.json",
     "shard-00002/hook_embed.safetensors", "shard-00000/blocks.0.attn.hook_z.safetensors"],
)  # fmt: skip
def test_a_flipped_bit_is_told_by_the_files_name(copy, file, place):
    read_all(copy)  # the control: nothing is wrong yet
    flip(copy / file, len((copy / file).read_bytes()) // 2 if place == 10 else place)
    named = "shard-00002/.* is damaged" if file.endswith("checksums.json") else f"{file} is damaged"
    with pytest.raises(LoadError, match=named) as caught:
        read_all(copy)
    assert len(str(caught.value).splitlines()) == 3
    if file.startswith("shard"):
        with pytest.raises(LoadError, match=named):
            ActivationStore(copy).check()


def test_without_verifying_a_flipped_value_goes_unseen(copy):
    """What the checksums are for."""
    file = copy / "shard-00001" / "hook_embed.safetensors"
    before, _ = ActivationStore(copy).load("embed")
    flip(file, -2)
    after, _ = ActivationStore(copy, verify=False).load("embed")
    assert (before != after).sum() == 1


@pytest.mark.parametrize("verify", [True, False])
def test_a_file_that_is_cut_short(copy, verify):
    file = copy / "shard-00001" / "blocks.1.hook_resid_post.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(LoadError, match=r"shard-00001/blocks.1.hook_resid_post.safetensors is damaged"):
        read_all(copy, verify)


def test_what_is_missing_is_told_by_its_name(copy, tmp_path):
    with pytest.raises(NotFoundError, match=r"has no header.json"):
        ActivationStore(tmp_path)
    (copy / "shard-00003" / "hook_embed.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"shard-00003/hook_embed.safetensors is missing"):
        read_all(copy)
    (copy / "shard-00002").rename(tmp_path / "away")
    with pytest.raises(NotFoundError, match=r"shard-00002 is missing") as caught:
        ActivationStore(copy)
    assert len(str(caught.value).splitlines()) == 3
    partial = ActivationStore(copy, partial=True)
    assert sum(len(rows) for _, rows in partial.batches("z", shards=[0, 1])) == sum(partial.header["shard_rows"][:2])
    with pytest.raises(NotFoundError, match=r"shard-00002 is missing"):
        list(partial.batches("z"))


def test_a_header_of_another_time_is_refused(copy):
    from interp.store.writing import sealed

    header = json.loads((copy / "header.json").read_text())
    header.pop("header_sha256")
    (copy / "header.json").write_text(sealed(header | {"format": "interp activations 9"}))
    with pytest.raises(LoadError, match="format 'interp activations 9'"):
        ActivationStore(copy)


MEASURE = """
import resource, sys
import numpy as np
from interp import ActivationStore
store = ActivationStore(sys.argv[1])
warm = next(store.batches("embed", batch=8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = 0.0
for x, rows in store.batches(store.names, batch=4096):
    total += sum(float(part.sum()) for part in x.values())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_reading_takes_a_small_part_of_the_memory_that_the_data_would(tmp_path):
    tokens = torch.randint(0, 300, (3000, 63), generator=torch.Generator().manual_seed(0))
    model = make_gpt(d_model=512, n_heads=4, n_layers=1, d_mlp=8)
    names = ["embed", "resid_pre", "resid_mid"]
    extract_activations(model, tokens, names, tmp_path / "s", shard_tokens=4096)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert size > 550e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "s")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 0.15 * size
