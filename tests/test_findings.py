"""What a page shows of the findings of its analyses: corrected over all of them, merged by whom they are about."""

from dataclasses import replace

import numpy as np
import pytest

from analyses.shared.claims import SURE
from analyses.shared.findings import ASKED, cards, established
from analyses.shared.panels import Finding


def effect(text: str, weight: float, p: float | None = None, key: str = "key", **more: str) -> Finding:
    return Finding(text, key, weight, 1.0, "nats", p=p, null="chance", **more)


def test_effects_that_chance_explains_over_the_whole_page_are_left_out() -> None:
    found = [(effect(f"effect {i}", 0.5, p), "a") for i, p in enumerate((0.001, 0.02, 0.04, 0.3))]
    shown = [finding.text for finding, _ in established(found)]
    assert shown == ["effect 0", "effect 1"]  # Benjamini-Hochberg by hand: .004, .04, .053, .3
    assert len(established([(effect("alone", 0.5, 0.04), "a")])) == 1


def test_what_is_no_test_passes_and_the_most_notable_comes_first() -> None:
    size = Finding("size", "key", 0.3, 1.0, "", kind="size")
    found = [(size, "a"), (effect("floor", 0.9), "b"), (effect("noise", 1.0, 0.9), "c")]
    assert [finding.text for finding, _ in established(found)] == ["floor", "size"]


def pages_that_tell(pages: int, asked: int, names: str, seed: int = 0) -> float:
    """The share of pages about noise that show an effect, where only p up to SURE is ever handed over."""
    rng, shown = np.random.default_rng(seed), 0
    for _ in range(pages):
        spoke = [(effect(str(i), 0.5, p), names[i % len(names)]) for i, p in enumerate(rng.uniform(size=asked))]
        size = Finding("size", "key", 0.3, 1.0, "", kind="size")
        told = established(
            [*((one, name) for one, name in spoke if one.p <= SURE), (size, names[0] if len(names) == 1 else "size")]
        )
        shown += len(told) > 1
    return shown / pages


@pytest.mark.slow
def test_false_findings_are_as_rare_as_claimed() -> None:
    """Of ASKED tests of several analyses that are silent above .05; were the silent ones forgotten, as where all come
    from one analysis, seven pages in ten would speak."""
    counted, forgotten = pages_that_tell(4000, ASKED, "ab"), pages_that_tell(4000, ASKED, "a")
    print(f"pages of {ASKED} null tests with an effect: {counted:.3f}, the silent ones forgotten {forgotten:.3f}")
    assert 0.04 < counted < 0.06
    assert abs(forgotten - (1 - 0.95**ASKED)) < 0.03


def test_the_more_a_page_has_found_the_less_it_asks_of_the_next() -> None:
    """Benjamini and Hochberg: the n-th of ASKED passes at .05 n / ASKED."""
    sure = [(effect(f"sure {i}", 0.5, 1e-9), "ab"[i % 2]) for i in range(9)]
    last = 0.05 * 10 / ASKED
    assert len(established([*sure, (effect("last", 0.5, last * 0.99), "a")])) == 10
    assert len(established([*sure, (effect("last", 0.5, last * 1.01), "a")])) == 9
    assert not established([(effect("alone", 0.5, last), "a"), (effect("noise", 0.5, 1.0), "b")])
    shown = established([*sure, (effect("last", 0.5, last * 1.01), "a")])
    assert established(shown) == shown


def test_findings_about_one_component_share_a_card() -> None:
    found = [
        (effect("L1H0 looks back.", 0.8, about="L1H0", short="previous-token head, 99%"), "head_roles"),
        (effect("Another thing.", 0.7), "lens"),
        (effect("Without L1H0 the loss rises.", 0.6, about="L1H0", short="without it loss +0.91"), "ablation"),
        (effect("L2H3 copies.", 0.5, key="other", about="L2H3", short="induction head, 90%"), "head_roles"),
    ]
    merged, other, alone = cards(found)
    assert merged.text == "L1H0: previous-token head, 99%; without it loss +0.91."
    assert (merged.analysis, merged.others[0][1]) == ("head_roles", "ablation")
    assert other.text == "Another thing."
    assert alone.text == "L2H3 copies."


def test_findings_of_one_subject_share_a_card_whomever_they_name() -> None:
    found = [
        (Finding("L2H3 is ...", "induction", 0.9, 0.9, "share", about="L2H3", short="a head, 90%"), "head_roles"),
        (Finding("L2H0 ...", "after-same", 0.7, 0.8, "share", about="L2H0", short="gives 80%"), "attention_patterns"),
        (Finding("L2H0 ...", "strongest", 0.5, 1.0, "logits", about="L2H0", short="adds +1"), "direct"),
        (Finding("Half formed.", "kl", 0.4, 1.0, "nats"), "logit_lens"),
        (Finding("It stands.", "settled", 0.4, 1.0, "nats", short="it stands"), "logit_lens"),
    ]
    assert [card.text for card in cards(found)] == [
        "L2H3: a head, 90%; L2H0: gives 80%.",
        "L2H0 ...",
        "Half formed; it stands.",
    ]
    other = [(replace(one, key=f"other {i}"), name) for i, (one, name) in enumerate(found)]
    assert len(cards(other)) == 4  # the control: L2H0 alone is named twice
