"""Attribution patching: exact where the model is linear, against numerical gradients, and its own reliability check."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_gpt
from handmade import induction_model, repeated
from shapes import SHAPES, toy

from analyses.activation_patching import activation_patching
from analyses.attribution_patching import attribution_patching
from analyses.path_patching import path_patching
from analyses.shared.components import Component, choose
from analyses.shared.gradients import Gradients
from analyses.shared.paths import START, Paths, all_receivers, parse_receivers
from interp.errors import InputError

SHAPE = {"dtype": torch.float64, "n_layers": 2, "n_heads": 2, "d_model": 16}
MODEL = make_gpt(**SHAPE)
CLEAN = torch.randint(0, 300, (2, 6), generator=torch.Generator().manual_seed(3))
CORRUPTED = CLEAN.clone()
CORRUPTED[0, 2], CORRUPTED[1, 1] = 7, 8
ANSWER, WRONG = torch.tensor([11, 12]), torch.tensor([21, 22])
TIGHT = {"rtol": 0, "atol": 1e-9}
SERVED = [shape for shape in SHAPES if shape != "bidirectional"]
EVERYTHING = {"sample": 1000, "top": 1}


def run(model=MODEL, **options):
    return attribution_patching(model, CLEAN, CORRUPTED, answer=ANSWER, wrong=WRONG, **options)


def metric(logits):
    last = logits[:, -1]
    return (last.gather(1, ANSWER[:, None]) - last.gather(1, WRONG[:, None]))[:, 0]


def linear_model():
    """Layer norms with so large an epsilon that they only scale, even attention, MLPs far on GELU's straight part."""
    model = make_gpt(eps=1e18, **SHAPE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".w"):
                parameter.mul_(1e9)
        for block in model.blocks:
            block.attn.W_Q_flat.zero_()
            block.attn.W_K_flat.zero_()
            block.mlp.b_in.fill_(60.0)
            block.mlp.W_in.mul_(1e-3)
    return model


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_every_score_is_exact_on_a_linear_model(direction):
    result = run(linear_model(), direction=direction, steps=3, **EVERYTHING)
    assert np.abs(result.true_edges[np.isfinite(result.true_edges)]).max() > 1e-3
    for m in range(2):
        np.testing.assert_allclose(result.node_scores[m], result.true_nodes, rtol=1e-6, atol=1e-8)
        possible = np.isfinite(result.edge_scores[m])
        np.testing.assert_allclose(result.edge_scores[m][possible], result.true_edges[possible], rtol=1e-6, atol=1e-8)
    table = result.reliability().query("sample == 'random' and kind in ('nodes', 'edges')")
    np.testing.assert_allclose(table["pearson"], 1.0, atol=1e-6)
    np.testing.assert_allclose(table["slope"], 1.0, atol=1e-6)
    curved = run(direction=direction, **EVERYTHING)  # the control: an ordinary model is not linear
    assert np.abs(curved.node_scores[0] - curved.true_nodes).max() > 1e-3
    assert (curved.reliability()["pearson"].dropna() < 0.99999).all()


def test_true_patches_are_those_of_the_other_analyses():
    result = run(**EVERYTHING)
    heads = activation_patching(MODEL, CLEAN, CORRUPTED, site="z", answer=ANSWER, wrong=WRONG, direction="noise")
    labels = [node.label for node in result.nodes]
    first = labels.index("L0H0")
    expected = np.stack(heads.patched[0].values).reshape(2, 4) - result.measure.clean[:, None]
    np.testing.assert_allclose(result.true_nodes[:, first : first + 4], expected, **TIGHT)
    np.testing.assert_allclose(
        result.true_nodes[:, labels.index("embed")], result.measure.corrupted - result.measure.clean, **TIGHT
    )
    names = ["L1H1.k", "mlp 0", "logits"]
    paths = path_patching(
        MODEL, CLEAN, CORRUPTED, senders="embed,heads,mlps", receivers=",".join(names), answer=ANSWER, wrong=WRONG
    )
    ends = [one.label for one in result.receivers]
    for r, name in enumerate(names):
        np.testing.assert_allclose(result.true_edges[:, :, ends.index(name)], paths.effects[:, r], **TIGHT)


@pytest.mark.parametrize("shape", SERVED)
def test_gradients_are_those_of_small_true_changes(shape):
    """Edges: the slope of the metric when the sender's change is scaled down and patched truly."""
    model = toy(shape, dtype=torch.float64)
    receivers = all_receivers(model)
    with torch.no_grad():
        paths = Paths(model, CLEAN, CORRUPTED)
    result = run(model, methods=("eap",))
    size, layer_1 = 1e-5, "L1KV0" if model.config.n_kv_heads < model.config.n_heads else "L1H1"
    edges = [
        ("embed", "L0H1.q"),
        ("L0H0", f"{layer_1}.k"),
        ("L0H1", "mlp 0"),
        ("mlp 0", f"{layer_1}.v"),
        ("L1H0", "logits"),
    ]
    for node_label, receiver_label in edges:
        if model.config.attn_only and "mlp" in node_label + receiver_label:
            continue
        (node,) = choose(model, node_label, allowed=("embed", "heads", "mlps"))
        (target,) = parse_receivers(model, receiver_label)
        score = result.edge_scores[0, :, result.nodes.index(node), receivers.index(target)]
        if not target.hears(node):  # beside one another in a parallel block
            assert np.isnan(score).all()
            continue
        with torch.no_grad():
            change = paths.change(node)
            up, down = (
                metric(model.run_with_hooks(CLEAN, fwd_hooks=paths.edits(sign * size * change, node, [target])))
                for sign in (1, -1)
            )
        np.testing.assert_allclose(score, (up - down) / (2 * size), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("shape", SERVED)
def test_a_node_is_the_sum_of_its_edges(shape):
    result = run(toy(shape, dtype=torch.float64), steps=4)
    np.testing.assert_allclose(np.nansum(result.edge_scores, axis=-1), result.node_scores, **TIGHT)


def test_integrated_gradients_of_the_embedding_are_complete():
    """Their sum tends to the whole change of the metric as steps grow; one step, which is EAP, is far from it."""
    whole = run().measure.corrupted - run().measure.clean
    errors = []
    for steps in (1, 8, 64):
        result = run(steps=steps)
        embed = [node.label for node in result.nodes].index("embed")
        errors.append(np.abs(result.node_scores[1][:, embed] - whole).max())
        if steps == 1:
            np.testing.assert_allclose(result.node_scores[1], result.node_scores[0], **TIGHT)
    assert errors[2] < errors[1] / 4 < errors[0] / 4
    assert errors[2] < 0.05 * np.abs(whole).max()


@pytest.mark.parametrize("shape", ["gpt2", "llama", "no norm"])
def test_norm_backward_is_autograds(shape):
    norm = toy(shape, dtype=torch.float64, d_model=16, d_head=4).blocks[0].ln1
    x = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    grad = torch.randn(5, 2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = norm.backward(x.detach(), grad)
    for one, given in zip(ours, grad, strict=True):
        (expected,) = torch.autograd.grad((norm(x) - (0 if norm.b is None else norm.b)) / norm.gain, x, given)
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-12)


def test_nothing_stays_behind():
    before = {name: value.clone() for name, value in MODEL.state_dict().items()}
    run()
    assert all(torch.equal(value, before[name]) for name, value in MODEL.state_dict().items())
    assert all(parameter.grad is None for parameter in MODEL.parameters())
    frozen = make_gpt(**SHAPE).requires_grad_(False)  # a model whose weights need no gradient will do
    with torch.no_grad():
        np.testing.assert_allclose(run(frozen).node_scores, run().node_scores, **TIGHT)
        start = MODEL.run_with_cache(CLEAN, names=START)[1][START]
    gradients = Gradients(MODEL, CLEAN, start, metric, read=range(6))
    assert gradients.at_output(Component("embed", "embed")).shape == (2, 6, 16)


def test_the_induction_circuit_is_found_in_a_model_made_by_hand():
    model, _ = induction_model()
    clean = repeated(40, 10, batch=4, seed=1)[:, :-1]
    corrupted, answer = clean.clone(), clean[:, 9]
    corrupted[:, 8] = torch.tensor([next(t for t in range(40) if t not in row.tolist()) for row in clean])
    result = attribution_patching(model, clean, corrupted, answer=answer, wrong=clean[:, 3], steps=10)
    frame = result.to_dataframe().query("method == 'eap-ig' and kind == 'edge'")
    strongest = frame.iloc[np.argsort(-frame["score"].abs().to_numpy())[:3]]
    assert {("L0H0", "L1H0.k"), ("L1H0", "logits")} <= set(zip(strongest["sender"], strongest["receiver"], strict=True))
    assert strongest["true"].notna().all()  # the largest are always patched truly
    control, _ = induction_model(previous_token_head=False)
    broken = attribution_patching(control, clean, corrupted, answer=answer, wrong=clean[:, 3])
    edge = broken.to_dataframe().query("sender == 'L0H0' and receiver == 'L1H0.k'")
    assert (edge["score"].abs() < 1e-6).all()


def test_samples_do_not_look_at_scores_and_tables_are_tidy():
    one, other = run(sample=5, top=2, seed=1), run(sample=5, top=2, seed=1, direction="denoise")
    assert np.array_equal(one.random_edges, other.random_edges)
    assert one.random_edges.sum() == 5
    assert np.isfinite(one.true_edges[0]).sum() <= 5 + 2 * 2
    assert not np.array_equal(one.random_edges, run(sample=5, top=2, seed=2).random_edges)
    frame = one.to_dataframe()
    assert list(frame.columns) == ["method", "kind", "sender", "receiver", "score", "true", "sampled"]
    keys = [panel.key for panel in one.panels()]
    assert len(keys) == len(set(keys))
    assert all(finding.key in keys for finding in one.findings())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "rank"}, "no gradient"),
        ({"methods": ("eap_ig",)}, "did you mean 'eap-ig'"),
        ({"methods": ()}, "no methods"),
        ({"steps": 0}, "steps = 0"),
        ({"sample": 2}, "at least 3"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(InputError) as caught:
        run(**options)
    assert words in str(caught.value)


def test_generated_prompts_are_the_default(toy_gpt):
    result = attribution_patching(toy_gpt)
    assert len(result.pairs.rows) == 12
    assert np.isfinite(result.reliability()["n"]).all()


def test_estimates_are_warned_of_where_something_that_matters_goes_another_way() -> None:
    """Turned round they disagree: that is said of large effects, and not (control) of the same ones made tiny."""
    result = run(**EVERYTHING)
    true = result.true_nodes
    large = 10 * result.small * true / np.median(np.abs(true))
    made = {"random_nodes": np.ones_like(result.random_nodes), "random_edges": np.zeros_like(result.random_edges)}
    turned = replace(result, true_nodes=large, node_scores=np.stack([-large] * len(result.methods)), **made)
    (warned,) = turned._disagreement()
    assert "correlation \N{MINUS SIGN}1" in warned.text
    assert warned.kind == "warning"
    tiny = 1e-6 * large
    assert replace(turned, true_nodes=tiny, node_scores=-1e-6 * turned.node_scores)._disagreement() == []
    assert replace(turned, node_scores=-turned.node_scores)._disagreement() == []  # they agree
    wrong = replace(turned, true_nodes=tiny)  # estimates that are large for what does nothing are a failure too
    assert replace(wrong, node_scores=np.stack([-large] * len(result.methods)))._disagreement()
