"""docs/probing.md: its code runs, and its figures are what comes out."""

import contextlib
import re
from typing import Any

import pytest
from documents import ROOT, run

TEXT = (ROOT / "docs" / "probing.md").read_text()


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("docs")
    found = run("probing.md", TEXT, folder)
    with contextlib.chdir(folder):
        assert found["store"].texts is not None  # read now: the page names its place from its own folder
    return found


@pytest.mark.slow
def test_the_table_of_layers(names: dict[str, Any]) -> None:
    frame = names["result"].to_dataframe().set_index("layer")
    rows = re.findall(r"^\| (embed|L\d \w+) \| (.*) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 6
    for layer, cells in rows:
        written = [float(number) for number in re.findall(r"-?\.\d+", cells)]
        columns = ["accuracy", "accuracy_low", "accuracy_high", "random", "control", "selectivity"]
        assert written == pytest.approx([frame.loc[layer, column] for column in columns], abs=0.004)
    assert frame["majority"].iloc[0] == pytest.approx(0.620, abs=0.001)
    assert frame["token"].iloc[0] == pytest.approx(0.710, abs=0.001)
    assert names["result"].labels[names["result"].best] == "L2 out"
    splits = names["store"].texts["split"].value_counts()
    assert (splits["train"], splits["validation"], splits["test"]) == (13, 12, 6)
    assert names["store"].n_rows == 51_761


@pytest.mark.slow
def test_the_causal_check(names: dict[str, Any]) -> None:
    check = names["check"]
    after = check.mean(check.after.T, by_rows=True)
    most = float(check.mean(check.majority, by_rows=True).value)
    assert after.value[:2] == pytest.approx([0.620, 0.754], abs=0.004)
    assert after.value[0] == pytest.approx(most, abs=1e-9)
    assert check.removed == pytest.approx(0.021, abs=0.001)
    assert float(check.cost.value) == pytest.approx(0.074, abs=0.002)
    assert check.cost.ends() == pytest.approx((0.061, 0.087), abs=0.003)
    assert check.cost_random.value == pytest.approx([0.007, 0.080], abs=0.003)
    assert check.cost_beyond.low[0] > 0
    assert check.cost_beyond.low[1] < 0
    up, down = list(check.scales).index(1.0), list(check.scales).index(-1.0)
    kl = check.mean(check.kl_steered[up]), check.mean(check.kl_random[up].mean(0))
    assert [float(one.value) for one in kl] == pytest.approx([0.083, 0.057], abs=0.003)
    for place, own, random in ((up, -0.011, -0.002), (down, 0.023, -0.000)):
        assert float(check.mean(check.share_steered[place] - check.share).value) == pytest.approx(own, abs=0.002)
        found = check.mean(check.share_random[place].mean(0) - check.share)
        assert float(found.value) == pytest.approx(random, abs=0.002)


def test_what_it_names_exists() -> None:
    for path in re.findall(r"`(tests/[\w./]+)`", TEXT):
        assert (ROOT / path).exists()
