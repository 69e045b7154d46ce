"""What a page shows of the findings of its analyses: corrected over all of them, merged by whom they are about."""

import numpy as np
import pytest

from analyses.shared.findings import cards, established
from analyses.shared.panels import Finding


def effect(text: str, weight: float, p: float | None = None, **more: str) -> Finding:
    return Finding(text, "key", weight, 1.0, "nats", p=p, null="chance", **more)


def test_effects_that_chance_explains_over_the_whole_page_are_left_out() -> None:
    found = [(effect(f"effect {i}", 0.5, p), "a") for i, p in enumerate((0.001, 0.02, 0.04, 0.3))]
    shown = [finding.text for finding, _ in established(found)]
    assert shown == ["effect 0", "effect 1"]  # Benjamini-Hochberg by hand: .004, .04, .053, .3
    assert len(established([(effect("alone", 0.5, 0.04), "a")])) == 1


def test_what_is_no_test_passes_and_the_most_notable_comes_first() -> None:
    size = Finding("size", "key", 0.3, 1.0, "", kind="size")
    found = [(size, "a"), (effect("floor", 0.9), "b"), (effect("noise", 1.0, 0.9), "c")]
    assert [finding.text for finding, _ in established(found)] == ["floor", "size"]


@pytest.mark.slow
def test_false_findings_are_as_rare_as_claimed() -> None:
    rng, shown = np.random.default_rng(0), 0
    for _ in range(2000):
        shown += bool(established([(effect(str(i), 0.5, p), "a") for i, p in enumerate(rng.uniform(size=20))]))
    print(f"pages of 20 null tests with a finding: {shown / 2000:.3f}")
    assert 0.035 < shown / 2000 < 0.065


def test_findings_about_one_component_share_a_card() -> None:
    found = [
        (effect("L1H0 looks back.", 0.8, about="L1H0", short="previous-token head, 99%"), "head_roles"),
        (effect("Another thing.", 0.7), "lens"),
        (effect("Without L1H0 the loss rises.", 0.6, about="L1H0", short="without it loss +0.91"), "ablation"),
        (effect("L2H3 copies.", 0.5, about="L2H3", short="induction head, 90%"), "head_roles"),
    ]
    merged, other, alone = cards(found)
    assert merged.text == "L1H0: previous-token head, 99%; without it loss +0.91."
    assert (merged.analysis, merged.others[0][1]) == ("head_roles", "ablation")
    assert other.text == "Another thing."
    assert alone.text == "L2H3 copies."
