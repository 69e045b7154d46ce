"""Studies: every item has its address in a page, every verdict is computed, and a planted violation changes it."""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_gpt
from hypothesis import given
from hypothesis import strategies as st

from analyses.shared.panels import AttentionGrid, Note, Tokens
from interp.errors import InputError
from interp.models.gpt import HookedGPT
from reports import render, study
from reports.cli import app
from reports.running import rerun
from reports.running.study import ItemResult, carry_out, run_item
from reports.studies import discover_studies, find_study
from reports.studies._choices import busiest_head, find_position
from reports.studies._parts import Checked, Claim, Item, Range, Study, at_least, at_most, counted, exactly
from reports.studies.illustrated import article_weights, illustrated, nearest_pair
from reports.studies.potions import potions, sharpening
from reports.studies.wolfram import _repeat_difference, example, unlike, wolfram

ADDRESSES = {
    "wolfram": [f"S0.{i}" for i in range(1, 9)],
    "potions": [f"S1.{i}" for i in range(1, 4)],
    "illustrated": [f"S2.{i}" for i in range(1, 6)],
}
TEXT = "Mary and John sat. Mary ran"


@pytest.fixture(scope="module")
def tiny() -> HookedGPT:
    return HookedGPT.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def pages(tiny: HookedGPT) -> dict[str, tuple[Any, str]]:
    """The three studies of any model, on the bundled one: report and page."""
    made = {name: study(name, model=tiny) for name in ADDRESSES}
    return {name: (report, render(report)) for name, report in made.items()}


def verdicts(declared: Study, address: str) -> dict[str, str]:
    """Claim -> verdict, of one item only."""
    only = replace(declared, items=tuple(replace(i, shows=()) for i in declared.items if i.address == address))
    (section,) = carry_out(only).sections
    return {checked.claim.text: checked.verdict for checked in section.result.checked}


# Pages.


@pytest.mark.parametrize(("name", "address"), [(n, a) for n, addresses in ADDRESSES.items() for a in addresses])
def test_every_item_has_its_address_figures_and_verdicts(name: str, address: str, pages: Any) -> None:
    report, page = pages[name]
    assert page.count(f'id="{address}"') == 1
    assert f'href="#{address}"' in page
    section = next(s for s in report.sections if s.name == address)
    panels = section.result.panels()
    tables = [panel for panel in panels if panel.key.startswith("claims")]
    assert panels[-1] is tables[-1]
    assert tables[0].key == "claims"
    assert sum(len(table.frame) for table in tables) == len(section.result.checked)
    assert sum(not isinstance(panel, Note) for panel in panels) >= 2, "a figure or table besides the verdicts"
    assert not [panel for panel in panels if panel.key.startswith("failed")]
    frame = section.result.to_dataframe()
    assert len(frame) >= 1
    assert np.isfinite(frame["value"]).all()
    assert "not measured" not in set(frame["verdict"])
    for claim in frame["claim"]:
        assert claim.endswith(".")


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_page_is_well_formed(name: str, pages: Any) -> None:
    report, page = pages[name]
    assert [section.name for section in report.sections] == ADDRESSES[name]
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)
    assert report.provenance["study"] == name


def test_every_study_file_is_listed_with_its_help(capsys: Any) -> None:
    known = discover_studies()
    assert set(ADDRESSES) <= set(known)
    assert list(known)[:3] == list(ADDRESSES)
    for file in known.values():
        assert file.help.endswith((".", "?"))
        assert all(option.help and not option.help.endswith(".") for option in file.options())
    with pytest.raises(SystemExit) as stop:
        app(["study", "--list"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()] == list(known)


def test_what_cannot_be_is_said() -> None:
    for call in (
        lambda: study("potion"),
        lambda: study("potions", colour="red"),
        lambda: study("potions", model="tiny", query="zebra"),
        lambda: study("potions", model="tiny", query="400"),
        lambda: study("potions", model="tiny", layer=1),
        lambda: study("wolfram", model="tiny", first="hello"),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert len(str(error.value).splitlines()) <= 3
    with pytest.raises(InputError, match="nearest: potions"):
        find_study("potion")


def test_the_command_writes_a_page_and_does_not_overwrite_it(tmp_path: Any, capsys: Any) -> None:
    out = tmp_path / "p.html"
    command = ["study", "potions", "--query", "bed", "--layer", "1", "--head", "2", "--out", str(out)]
    with pytest.raises(SystemExit) as stop:
        app(command)
    assert stop.value.code == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "holds only if" in printed.err
    page = out.read_text(encoding="utf-8")
    assert 'id="S1.1"' in page
    assert "L1H2" in page
    with pytest.raises(SystemExit) as stop:
        app(command)
    assert stop.value.code == 2


def test_a_page_can_be_made_again_and_compared(tmp_path: Any, pages: Any) -> None:
    _, page = pages["potions"]
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    kept = rerun.read(path)
    found = rerun.check(kept, rerun.make(kept))
    assert [difference.table for difference in found] == ADDRESSES["potions"]
    assert {difference.outcome for difference in found} <= {"identical", "close"}
    changed = replace(kept, options={**kept.options, "text": "Mary sat on a chair, feeling"})
    assert "differs" in {difference.outcome for difference in rerun.check(kept, rerun.make(changed))}


# Verdicts: pure functions of a number.


@given(st.floats(), st.floats(-10, 10), st.floats(0, 5), st.floats(0, 5))
def test_a_verdict_follows_from_the_number_alone(value: float, low: float, width: float, more: float) -> None:
    claim = Claim(
        text="It is so.", value=lambda r: value, measured="it", holds=Range(low, low + width),
        corrected=Range(low - more, low + width + more), correction="nearly.",
    )  # fmt: skip
    found = claim.verdict(value)
    if math.isnan(value):
        assert found == "not measured"
    elif low <= value <= low + width:
        assert found == "holds"
    elif low - more <= value <= low + width + more:
        assert found == "holds only if"
    else:
        assert found == "does not hold"


def test_verdicts_are_counted_in_words() -> None:
    def checked(value: float) -> Checked:
        claim = Claim(text="So.", value=lambda r: 0.0, measured="it", holds=exactly(0), corrected=exactly(1),
                      correction="it is one.")  # fmt: skip
        return Checked(claim=claim, value=value)

    assert counted(map(checked, (0, 0, 1, 2))) == "2 of 4 claims hold, 1 holds only if, 1 does not"
    assert counted(map(checked, (0, 1, 1, math.nan))) == "1 of 4 claims holds, 2 hold only if, 1 is not measured"
    assert counted([checked(0)]) == "1 of 1 claim holds"
    assert [checked(x).sentence for x in (0, 1, 2)] == ["holds", "holds only if it is one.", "does not hold"]


def of_words(*probabilities: float) -> Any:
    """What `continuations` gives, of words cut into two pieces, of which the second is certain."""
    table = pd.DataFrame({"probability": probabilities, "per_token": np.sqrt(probabilities), "rank": 54})
    return SimpleNamespace(table=table)


def test_a_likely_first_piece_is_not_a_likely_word(tiny: HookedGPT) -> None:
    """S1.3: of whole words; neither the rank of a first piece nor a mean over pieces decides."""
    first, second = potions(tiny).items[-1].claims
    rare, even = {"words": of_words(1.6e-6), "unfit": of_words(4e-6)}, {"words": of_words(0.3), "unfit": of_words(0.1)}
    assert first.verdict(first.value(rare)) == second.verdict(second.value(rare)) == "does not hold"
    assert first.verdict(first.value(even)) == second.verdict(second.value(even)) == "holds"
    assert set(verdicts(potions(tiny), "S1.3").values()) == {"does not hold"}
    pieces = of_words(1e-6)
    pieces.table["per_token"] = 0.5  # cut into more pieces, and so the better mean of them
    assert second.verdict(second.value({**rare, "words": pieces})) == "does not hold"


def test_heads_that_look_alike_do_not_look_each_in_its_own_way(tiny: HookedGPT) -> None:
    """S0.2: pictures at a Hellinger distance of .06 cannot be told apart; another block's are shown beside them."""
    item = wolfram(tiny).items[1]
    claim = item.claims[1]
    assert [claim.verdict(x) for x in (0.06, 0.3)] == ["does not hold", "holds"]
    distance = np.full((2, 3, 2, 3), 0.06)
    distance[1, :, 1] = 0.4
    grid = AttentionGrid(
        key="patterns", title="", tokens=(Tokens("ab"),), patterns=(np.eye(2)[None, None].repeat(2, 0).repeat(3, 1),),
        value_norms=(np.ones((2, 3, 2)),), measures={},
    )  # fmt: skip
    found = SimpleNamespace(distance=distance.reshape(6, 6), panels=lambda: [grid])
    assert unlike({"attention": found}, 2, 3).title == "Every head of block 1"


def test_a_page_opens_with_the_count_the_credit_and_the_idea(pages: Any) -> None:
    for name, author in (("wolfram", "Stephen Wolfram"), ("illustrated", "Jay Alammar")):
        report, page = pages[name]
        checked = [c for section in report.sections for c in section.result.checked]
        before = page[: page.index(f'<section id="{ADDRESSES[name][0]}"')]
        assert counted(checked) in before
        assert author in before
        assert "tiny" not in report.title
        idea, *others = report.sections[0].result.findings()
        assert idea.weight > max((finding.weight for finding in others), default=0)


def test_an_infinite_number_never_holds() -> None:
    claim = Claim(
        text="It is large.", value=lambda r: math.inf, measured="it", holds=at_least(1), corrected=at_least(0)
    )
    assert claim.verdict(math.inf) == "does not hold"
    assert claim.verdict(1e300) == "holds"


@pytest.mark.parametrize(
    ("given_range", "words"),
    [(exactly(12656), "12,656"), (at_most(1e-5), "at most 1e\N{MINUS SIGN}5"), (at_least(0.05), "at least 0.05"),
     (Range(0.875, 0.885), "0.875 to 0.885"), (exactly(0), "0")],
)  # fmt: skip
def test_a_range_says_what_is_expected(given_range: Range, words: str) -> None:
    assert str(given_range) == words


def test_every_claim_can_fail(tiny: HookedGPT) -> None:
    """For every claim of every study there are numbers for which it does not simply hold."""
    for declared in (wolfram(tiny), potions(tiny), illustrated(tiny)):
        for item in declared.items:
            for claim in item.claims:
                found = {claim.verdict(x) for x in (-1e12, -1.0, 0.0, 0.5, 1e12)}
                assert "holds" not in found or len(found) > 1, claim.text
                assert claim.verdict(math.nan) == "not measured"
                assert (claim.corrected is None) == (claim.correction == "")


def test_an_analysis_that_cannot_use_the_input_leaves_a_note() -> None:
    def broken() -> Any:
        raise InputError("too short", "expected more")

    claim = Claim(text="It holds.", value=lambda r: r["a"].x, measured="x", holds=exactly(0))
    item = Item(address="S9.1", title="T", words="W", shows=("a.figure",), claims=(claim,))
    declared = Study(title="T", model=make_gpt(), runs={"a": broken}, items=(item,))
    (section,) = carry_out(declared).sections
    assert isinstance(section.result, ItemResult)
    assert section.result.shown[0].title == "Not run on this input"
    assert section.result.checked[0].verdict == "not measured"
    with pytest.raises(KeyError, match="no panel"):  # a wrong name is a bug, not a remark
        run_item(replace(item, shows=("b.wrong",)), {"b": section.result})


# Planted violations.


@contextmanager
def mixed_by(model: HookedGPT, mix: Callable[..., torch.Tensor]) -> Iterator[HookedGPT]:
    """Every attention mixes its values by another rule: pattern [batch head query key] from q and k, and v."""
    for block in model.blocks:
        block.attn.mix = MethodType(mix, block.attn)  # type: ignore[method-assign]
    try:
        yield model
    finally:
        for block in model.blocks:
            del block.attn.mix


def mixer(
    change_scores: Callable[[torch.Tensor], torch.Tensor] = lambda s: s,
    change_z: Callable[[torch.Tensor], torch.Tensor] = lambda z: z,
    causal: bool = True,
) -> Callable[..., torch.Tensor]:
    """Attention as in the model, with its scores or its outputs changed, or without the mask."""

    def mix(self: Any, q: Any, k: Any, v: Any, mask: Any, visit: Any = None) -> torch.Tensor:
        scores = change_scores(q @ k.transpose(-1, -2) / math.sqrt(self.d_head))
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool)
        scores = self.hook_attn_scores(scores.masked_fill(~(seen.tril() if causal else seen), -torch.inf))
        return change_z((self.hook_pattern(scores.softmax(-1)) @ v).transpose(1, 2)).transpose(1, 2)

    return mix


def no_self(scores: torch.Tensor) -> torch.Tensor:
    """Nobody looks at itself, but for the first token, which has nothing else."""
    own = torch.eye(scores.shape[-1], dtype=torch.bool)
    own[0, 0] = False
    return scores.masked_fill(own, -torch.inf)


def nearer_is_better(scores: torch.Tensor) -> torch.Tensor:
    """A position-dependent bias, as in ALiBi: attention that does see the order."""
    n = scores.shape[-1]
    return scores - (torch.arange(n)[:, None] - torch.arange(n)).abs()


ROWS = "The weights of a row sum to one."
ITSELF = "A token attends to itself too."
LATER = "A token never attends to later ones."
ORDER = "Without position information the order of the earlier tokens makes no difference to attention."
HEADS = "Heads do not meet before the output projection."
MLP = "The MLP works on each position alone."


@pytest.fixture
def model(toy_tokenizer: Any) -> HookedGPT:
    return make_gpt(tokenizer=toy_tokenizer)


def test_a_sound_model_passes(model: HookedGPT) -> None:
    """The control of the controls: attention rebuilt here, unchanged, gives the verdicts of the model itself."""
    plain = verdicts(potions(model, text=TEXT), "S1.2")
    assert {plain[claim] for claim in (ROWS, ITSELF, LATER, ORDER, HEADS, MLP)} == {"holds"}
    with mixed_by(model, mixer()):
        assert verdicts(potions(model, text=TEXT), "S1.2") == plain


@pytest.mark.parametrize(
    ("violation", "claims"),
    [
        (mixer(causal=False), {LATER}),
        (mixer(no_self), {ITSELF}),
        (mixer(nearer_is_better), {ORDER}),
        (mixer(change_z=lambda z: z + 0.1 * z.mean(2, keepdim=True)), {HEADS}),
    ],
    ids=["unmasked", "never itself", "sees the order", "heads mixed"],
)
def test_another_attention_changes_its_verdict(model: HookedGPT, violation: Any, claims: set[str]) -> None:
    with mixed_by(model, violation):
        found = verdicts(potions(model, text=TEXT), "S1.2")
    watched = {ROWS, ITSELF, LATER, ORDER, HEADS, MLP}
    assert {claim for claim in watched if found[claim] == "does not hold"} == claims


def test_an_mlp_that_mixes_positions_changes_its_verdict(model: HookedGPT) -> None:
    mlp = model.blocks[1].mlp
    usual = mlp.forward
    mlp.forward = lambda x: usual(x + 0.01 * x.roll(1, 1))  # type: ignore[method-assign]
    found = verdicts(potions(model, text=TEXT), "S1.2")
    assert found[MLP] == "does not hold"
    assert found[HEADS] == found[ROWS] == "holds"


def test_rows_that_do_not_sum_to_one_change_their_verdicts(model: HookedGPT) -> None:
    with model.hooks([("pattern", lambda x, hook: 0.9 * x)]):
        declared = potions(model, text=TEXT, layer=0, head=1)
        assert verdicts(declared, "S1.2")[ROWS] == "does not hold"
        assert (
            verdicts(declared, "S1.1")["These steps are all there is: they give the head's output."] == "does not hold"
        )
        six = verdicts(illustrated(model, text=TEXT, layer=0, head=1), "S2.1")
        assert six["The weights sum to one."] == "does not hold"
        assert six["On a real head the six steps give what the model computes."] == "does not hold"


def test_heads_that_do_not_add_up_change_their_verdict(model: HookedGPT) -> None:
    claim = "That sum, with the bias, is what the model writes."
    assert verdicts(illustrated(model, text=TEXT), "S2.2")[claim] == "holds"
    with model.hooks([("attn_out", lambda x, hook: x.relu())]):
        assert verdicts(illustrated(model, text=TEXT), "S2.2")[claim] == "does not hold"


def test_a_model_that_reads_twice_or_forgets_is_seen(model: HookedGPT) -> None:
    once = "There is no loop inside: for one token the model goes through once."
    reads = "Each new token depends on all the earlier ones."
    last = "Only the last position's final embedding is decoded."
    declared = wolfram(model, text=TEXT, steps=2)
    assert verdicts(declared, "S0.8")[once] == verdicts(declared, "S0.8")[reads] == "holds"
    assert verdicts(declared, "S0.6")[last] == "holds"
    block = model.blocks[0]
    usual = block.forward
    block.forward = lambda x, mask=None, past=None: usual(usual(x, mask, past), mask, past)  # type: ignore[method-assign]
    assert verdicts(wolfram(model, text=TEXT, steps=2), "S0.8")[once] == "does not hold"
    block.forward = usual  # type: ignore[method-assign]
    with model.hooks([("attn_out", lambda x, hook: torch.zeros_like(x))]):  # nothing is read but the last token
        assert verdicts(wolfram(model, text=TEXT, steps=2), "S0.8")[reads] == "does not hold"
    decode = model.unembedded
    model.unembedded = lambda x: decode(x) + decode(x).mean(-2, keepdim=True) if x.ndim == 3 else decode(x)  # type: ignore[method-assign]
    assert verdicts(wolfram(model, text=TEXT, steps=2), "S0.6")[last] == "does not hold"


def test_weights_without_structure_change_their_verdicts(model: HookedGPT) -> None:
    """Random weights, the same law in every block, against weights with a planted hill and another law."""
    structure, differ = (
        "Averaging brings out structure that is in the weights.",
        "The distribution differs between blocks.",
    )
    normal, random_positions = "It is not always Gaussian.", "The position embeddings look random."
    model = make_gpt(tokenizer=model.tokenizer, d_model=128, n_ctx=128)
    declared = wolfram(model)
    assert verdicts(declared, "S0.4")[structure] == "does not hold"
    assert verdicts(declared, "S0.5")[normal] == verdicts(declared, "S0.5")[differ] == "does not hold"
    assert verdicts(declared, "S0.1")[random_positions] == "holds"
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.W_in[:64, :64] += 0.1
        model.blocks[1].mlp.W_in.copy_(
            torch.distributions.Laplace(0.0, 0.3).sample(model.blocks[1].mlp.W_in.shape) + 0.0
        )
        model.blocks[1].mlp.W_in[:64, :64] += 0.2
        model.W_pos += torch.sin(torch.arange(128.0) / 10)[:, None]
    changed = wolfram(model)
    assert verdicts(changed, "S0.4")[structure] == "holds"
    assert verdicts(changed, "S0.5")[normal] == verdicts(changed, "S0.5")[differ] == "holds"
    assert verdicts(changed, "S0.1")[random_positions] == "does not hold"


# The parts.


def test_the_example_repeats_two_words_of_one_token_or_those_given(tiny: HookedGPT) -> None:
    words, ids = example(tiny, None, None)
    assert ids.shape == (1, 20)
    assert len(set(ids[0, :10].tolist())) == len(set(ids[0, 10:].tolist())) == 1
    assert tiny.to_string(ids[0]).split() == [words[0]] * 10 + [words[1]] * 10
    _, several = example(tiny, "hello", "bye")  # three tokens and two
    assert tiny.to_string(several[0]).split() == ["hello"] * 10 + ["bye"] * 10
    claim = "The same word has the same token embedding wherever it stands."
    assert verdicts(wolfram(tiny, first="hello", second="bye"), "S0.1")[claim] == "holds"
    columns = tiny.W_E.detach()[several[0]].numpy()
    assert _repeat_difference(columns, 3) == 0
    assert _repeat_difference(columns, 2) > 0.1  # the control: cut at the wrong places


def test_the_articles_softmax() -> None:
    """112 and 96 over 8 are 14 and 12; softmax of two scores is a logistic function of their difference."""
    first, second = article_weights()
    assert first == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-15)
    assert (round(first, 2), round(second, 2)) == (0.88, 0.12)
    unscaled = 1 / (1 + math.exp(-16))  # the control: without the division nothing is left for the second word
    assert round(unscaled, 2) == 1.0


def test_sharpening_against_entropies_written_out() -> None:
    scores = torch.tensor([[0.0, 0, 0], [1.0, 2.0, 0], [3.0, 0.0, 1.0]])
    pattern = scores.masked_fill(~torch.ones(3, 3).tril().bool(), -torch.inf).softmax(-1).numpy()[None, None]
    before, after = sharpening(pattern.astype(float))
    linear = np.array([3, 0, 1]) / 4
    entropy = lambda p: -sum(x * math.log(x) for x in p if x > 0)  # noqa: E731
    assert before[0, 0, 2] == pytest.approx(entropy(linear), abs=1e-6)
    assert after[0, 0, 2] == pytest.approx(entropy(pattern[0, 0, 2]), abs=1e-6)
    assert np.isnan(before[..., :2]).all()
    steep, flat = (sharpening((scores * c).masked_fill(~torch.ones(3, 3).tril().bool(), -torch.inf)
                              .softmax(-1).double().numpy()[None, None]) for c in (5, 0.01))  # fmt: skip
    assert steep[1][0, 0, 2] < steep[0][0, 0, 2]
    assert flat[1][0, 0, 2] > flat[0][0, 0, 2]  # scores that are all close: softmax spreads them


def test_a_query_is_a_word_or_a_position(tiny: HookedGPT) -> None:
    text = "Sarah lies still on the bed, feeling"
    tokens = tiny.to_str_tokens(text)
    assert tokens[find_position(tiny, text, "the")] == " the"
    assert tokens[find_position(tiny, text, "feeling")] == "ing"  # the last of its tokens
    assert find_position(tiny, text, "") == len(tokens) - 1 == find_position(tiny, text, "-1")
    assert find_position(tiny, text, "3") == 3


def test_the_busiest_head_mixes_most(model: HookedGPT) -> None:
    """Against a slow loop over heads and keys."""
    ids = model.to_tokens(TEXT)
    at = ids.shape[1] - 2
    _, cache = model.run_with_cache(ids)
    best, most = (0, 0), -1.0
    for layer in range(2):
        for head in range(4):
            lengths = [
                (cache["pattern", layer][0, head, at, key] * cache["v", layer][0, key, head]
                 @ model.blocks[layer].attn.W_O[head]).norm().item()
                for key in range(1, at)
            ]  # fmt: skip
            if sum(lengths) - max(lengths) > most:
                best, most = (layer, head), sum(lengths) - max(lengths)
    assert busiest_head(model, ids, at) == best


def test_nearest_pair() -> None:
    values = np.array([[0.0, 0], [3, 4], [3, 4.5]])
    assert nearest_pair(values) == pytest.approx(0.5)
    assert nearest_pair(np.repeat(values, 2, axis=0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_an_untrained_translator_changes_the_verdicts(tiny: HookedGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.models.encoder_decoder import HookedEncoderDecoder
    from reports.studies import _translation

    trained = _translation.translator("fr-en")
    untrained = HookedEncoderDecoder(trained.config, tokenizer=trained.tokenizer)
    before = verdicts(illustrated(tiny, text=TEXT), "S2.4")
    monkeypatch.setattr(_translation, "translator", lambda source: untrained)
    after = verdicts(illustrated(tiny, text=TEXT), "S2.4")
    for claim in before:
        if "becomes" in claim or "never seen" in claim or "finds the word" in claim or "pronoun is translated" in claim:
            assert (before[claim], after[claim]) == ("holds", "does not hold"), claim
    assert any("becomes" in claim for claim in before)


def test_an_encoder_that_cannot_look_ahead_changes_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    from reports.studies import _translation

    model, tokens, other = _translation._words_encoder()
    assert _translation._reached((model, tokens, other)) > 1e-4
    for block in model.blocks:
        block.attn.causal = True
    assert _translation._reached((model, tokens, other)) < 1e-6
