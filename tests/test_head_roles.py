"""Head roles: planted heads are found, with the score of a slow loop; random models and broken heads have none."""

import numpy as np
import pytest
import torch
from conftest import make_gpt
from handmade import NAMES, induction_model, repeated
from shapes import toy

from analyses.head_roles import MARGIN, head_roles, random_repeated
from analyses.shared.panels import Matrix, Note, Table
from interp.errors import InputError, NotApplicable
from interp.models.gpt import HookedGPT

PLANTED = ("previous_token", "duplicate_token", "induction", "first_token", "copying")


def score_of(frame, role, layer, head):
    row = frame[(frame.role == role) & (frame.layer == layer) & (frame["head"] == head)]
    assert len(row) == 1
    return row.iloc[0]


def named(measured, role):
    return set(measured.named.query("role == @role")["head"])


def test_planted_heads_are_found_and_no_others():
    model, roles = induction_model()
    result = head_roles(model, seed=0)
    frame = result.to_dataframe()
    assert list(frame.columns) == ["layer", "head", "role", "score", "null", "low", "high"]
    assert len(frame) == 6 * 2 * 4
    for role in PLANTED:
        row = score_of(frame, role, *roles[role])
        assert row.score > 0.9
        assert row.null < 0.2
        assert row.low <= row.score <= row.high
    label = {role: "L{}H{}".format(*place) for role, place in roles.items()}
    random = result.random
    assert named(random, "previous_token") == {label["previous_token"]}
    assert named(random, "duplicate_token") == {label["duplicate_token"]}
    assert named(random, "induction") == {label["induction"]}
    assert named(random, "first_token") == {label["first_token"]}
    assert named(random, "positional") == {label["previous_token"], label["first_token"]}
    assert named(random, "copying") == {label["copying"], label["induction"], label["name_mover"]}
    assert label["nothing"] not in set(random.named["head"])


def test_without_its_previous_token_head_the_induction_head_is_none():
    model, roles = induction_model(previous_token_head=False)
    result = head_roles(model)
    assert not named(result.random, "induction")
    assert not named(result.random, "previous_token")
    assert score_of(result.to_dataframe(), "induction", *roles["induction"]).score < 0.1
    assert named(result.random, "duplicate_token")  # the others are still there


@pytest.mark.parametrize("std", [0.02, 0.2])
def test_random_models_have_no_content_roles(std):
    for seed in range(3):
        random = head_roles(make_gpt(seed=seed, init_std=std, n_layers=3), seed=seed).random
        assert not set(random.named.role) - {"positional", "first_token", "previous_token"}
        if std == 0.02:  # weights too small to attend to anything
            assert random.named.empty


def test_a_head_that_always_looks_back_as_far_is_no_induction_head():
    """On repeated sequences a fixed distance mimics induction; only the shuffled run tells the two apart."""
    from handmade import Space, empty, put, read

    space = Space(40, 48)
    model = empty(space)
    position = read(space, space.position())
    back = position @ torch.eye(48).roll(-15, dims=1)  # 16 random tokens: the induction target lies 15 back
    put(model, 1, 2, q=4 * back, k=position)
    result = head_roles(model)
    row = score_of(result.to_dataframe(), "induction", 1, 2)
    assert row.score > 0.9
    assert row.null > 0.9
    assert not named(result.random, "induction")
    assert "L1H2" in named(result.random, "positional")


def test_scores_are_those_of_a_slow_loop():
    model = make_gpt(n_layers=2, d_vocab=12)  # few tokens, so that they repeat
    tokens = torch.randint(0, 12, (3, 14), generator=torch.Generator().manual_seed(1))
    frame = head_roles(model, tokens, seed=3).to_dataframe()
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    sums = {role: [] for role in ("previous_token", "duplicate_token", "induction", "first_token")}
    for pattern, ids in zip(cache["pattern", 1][:, 2], tokens.tolist(), strict=True):
        found = {role: [] for role in sums}
        for q in range(2, 14):
            found["previous_token"].append(float(pattern[q, q - 1]))
            found["first_token"].append(float(pattern[q, 0]))
        for q in range(14):
            earlier = [k for k in range(q) if ids[k] == ids[q]]
            if earlier:
                found["duplicate_token"].append(sum(float(pattern[q, k]) for k in earlier))
            following = [k + 1 for k in earlier if k + 1 < q]
            if following:
                found["induction"].append(sum(float(pattern[q, k]) for k in following))
        for role in sums:
            sums[role].append(np.mean(found[role]))
    for role, values in sums.items():
        assert score_of(frame, role, 1, 2).score == pytest.approx(np.mean(values), abs=1e-6)


@pytest.mark.parametrize("shape", ["gpt2", "llama", "gemma2", "gemma3", "neox", "no norm"])
def test_copying_is_that_of_a_slow_loop(shape):
    model = toy(shape, dtype=torch.float64, d_vocab=12)
    tokens = torch.randint(0, 12, (1, 9), generator=torch.Generator().manual_seed(2))
    frame = head_roles(model, tokens).to_dataframe()
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    block, ids = model.blocks[1], tokens[0, 1:].tolist()

    def copied(head, kv_head):
        with torch.no_grad():
            written = block.ln1_post.share(cache["v", 1][0, 1:, kv_head] @ model.W_O[1, head], torch.ones(1))
            raised = model.ln_final.share(written, torch.ones(1)) @ model.W_U
        raised = raised - raised.mean(0)
        return np.mean([max(set(ids), key=lambda t: float(raised[k, t])) == ids[k] for k in range(8)])

    found = [score_of(frame, "copying", 1, head).score for head in range(4)]
    group = 4 // model.config.n_kv_heads
    assert found == pytest.approx([copied(head, head // group) for head in range(4)], abs=1e-12)
    if shape == "llama":  # the control: tiled rather than repeated
        assert found != pytest.approx([copied(head, head % 2) for head in range(4)], abs=1e-12)


def test_a_model_that_predicts_no_next_token_is_refused():
    with pytest.raises(NotApplicable, match="next token"):
        head_roles(toy("bidirectional"))


def test_name_movers_and_copy_suppression_need_the_answer():
    model, roles = induction_model()
    generator = torch.Generator().manual_seed(0)
    others = torch.stack([10 + torch.randperm(30, generator=generator)[:12] for _ in range(6)])
    others[:, 4] = NAMES[1]
    result = head_roles(model, others, answer=NAMES[1])
    frame = result.to_dataframe()
    for role in ("name_mover", "copy_suppression"):
        assert score_of(frame, role, *roles[role]).score > 0.9
        assert named(result.measured, role) == {"L{}H{}".format(*roles[role])}
    control = head_roles(model, others, answer=int(others[0, 7]))  # in the text, but no name
    assert not named(control.measured, "name_mover")
    assert "name_mover" not in set(head_roles(model, others).to_dataframe().role)


def test_one_text_has_no_interval_and_an_undefined_role_is_said(toy_gpt):
    result = head_roles(toy_gpt, "The cat sat")
    frame = result.to_dataframe()
    assert frame.low.isna().all()
    panels = {panel.key: panel for panel in result.panels()}
    assert isinstance(panels["text"], Matrix)
    assert panels["text"].low is None
    assert len(panels) == len(result.panels())
    assert result.random.interval.low is not None
    unrepeated = head_roles(make_gpt(), torch.arange(9)[None])
    panels = {panel.key: panel for panel in unrepeated.panels()}
    assert isinstance(panels["named"], Note)
    assert np.isnan(panels["text"].values[panels["text"].rows.index("induction")]).all()
    assert unrepeated.to_dataframe().query("role == 'induction'").score.isna().all()


def test_findings_name_the_heads():
    model, _ = induction_model()
    result = head_roles(model)
    texts = {finding.key: finding for finding in result.findings()}
    assert texts["induction"].text.startswith("L1H0 is an induction head: on repeated random tokens it gives ")
    assert texts["induction"].low <= texts["induction"].value <= texts["induction"].high
    assert isinstance(result.panels()[0], Table)


def test_no_head_that_is_named_is_grey():
    """Each is named against its own null: one of tiny's place heads is below that of another head."""
    result = head_roles(HookedGPT.from_pretrained("tiny"))
    panels = {panel.key: panel for panel in result.panels() if isinstance(panel, Matrix)}
    for head in result.random.named.itertuples():
        panel = panels[head.role.replace("_", "-")]
        layer, number = map(int, head.head[1:].split("H"))
        assert not panel.grey[layer, number]
    assert any(panel.grey.any() for panel in panels.values())  # others are
    index = result.random.roles.index("positional")
    named = result.random.named[result.random.named.role == "positional"]
    assert named.score.min() < np.nanmax(result.random.null[index])  # control: the largest null would grey one


def test_what_half_of_the_sequences_say_is_named():
    finding = next(one for one in head_roles(induction_model()[0]).findings() if one.key == "induction")
    assert (finding.held.again, finding.held.what, finding.held.n, finding.held.unit) == (True, "L1H0", 6, "sequences")
    (note,) = [panel for panel in head_roles(induction_model()[0]).panels() if panel.key == "methods"]
    assert "6 sequences (drawn with seed 0) choose the largest alone" in note.text
    few = head_roles(induction_model()[0], samples=11)
    assert all(one.held is None for one in few.findings())


def test_seeds_repeat_and_matter():
    model = make_gpt()
    first, again, other = (head_roles(model, seed=seed).to_dataframe() for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)


def test_random_sequences_repeat_behind_the_beginning_token(toy_gpt):
    ids = random_repeated(toy_gpt, 5, 10, torch.Generator().manual_seed(0))
    assert (ids[:, 0] == toy_gpt.tokenizer.bos).all()
    assert torch.equal(ids[:, 1:11], ids[:, 11:])
    assert len(ids[0, 1:11].unique()) == 10
    assert random_repeated(make_gpt(n_ctx=8), 2, 10, torch.Generator()).shape == (2, 6)


def test_what_cannot_be_used_is_refused(toy_gpt):
    with pytest.raises(InputError):
        head_roles(toy_gpt, answer="t")
    with pytest.raises(InputError):
        head_roles(toy_gpt, samples=0)


def test_margin_is_what_the_docstring_says():
    assert MARGIN == 0.3


@pytest.mark.parametrize("previous_token_head", [True, False])
def test_the_planted_model_does_induction(previous_token_head):
    """The hand-built model itself: it continues repeated text, and does not without its previous-token head."""
    model, _ = induction_model(previous_token_head=previous_token_head)
    tokens = repeated(40, 20, batch=4)
    with torch.no_grad():
        right = (model(tokens)[:, 20:-1].argmax(-1) == tokens[:, 21:]).float().mean()
    assert float(right) == (1.0 if previous_token_head else 0.0)
