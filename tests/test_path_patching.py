"""Path patching: against the paper's four runs with hooks, against activation patching, on a model made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_gpt
from handmade import induction_model, repeated
from shapes import toy

from analyses.activation_patching import activation_patching
from analyses.path_patching import path_patching
from analyses.shared.components import choose
from analyses.shared.panels import Bars
from analyses.shared.paths import Paths, parse_receivers
from interp.errors import InputError

MODEL = make_gpt(dtype=torch.float64, n_layers=3, n_heads=2, d_model=24)
CLEAN = torch.randint(0, 300, (2, 6), generator=torch.Generator().manual_seed(3))
CORRUPTED = CLEAN.clone()
CORRUPTED[0, 2], CORRUPTED[1, 1] = 7, 8
ANSWER, WRONG = torch.tensor([11, 12]), torch.tensor([21, 22])
TIGHT = {"rtol": 0, "atol": 1e-10}
FEWER = {"n_heads": 2, "d_model": 24, "n_kv_heads": 1, "windows": None, "local_rotary_base": None}
"""Small enough for every path of the slow way; the one key-value head is shared."""


def run(**options):
    return path_patching(MODEL, CLEAN, CORRUPTED, answer=ANSWER, wrong=WRONG, **options)


def metric(logits):
    last = logits[:, -1]
    return (last.gather(1, ANSWER[:, None]) - last.gather(1, WRONG[:, None]))[:, 0].numpy()


def four_runs(model, base, source, sender, targets, recompute_mlps):
    """Wang et al.'s steps with plain hooks: two caches, a run with all but the sender frozen, a run with receivers."""
    with torch.no_grad():
        _, kept = model.run_with_cache(base)
        _, other = model.run_with_cache(source)

        def freeze(x, hook):
            return kept[hook.name]

        def send(x, hook):
            if sender.kind == "head":
                x[:, :, sender.index] = other[hook.name][:, :, sender.index]
                return x
            return other[hook.name]

        names = [
            name
            for name in model.hook_points
            if name.endswith("hook_z") or (name.endswith("mlp_out") and not recompute_mlps)
        ]
        frozen = [(name, freeze) for name in names]
        sending = [(sender.names[0], send)]
        seen = {}
        for target in targets:
            if target.label == "logits":
                continue
            site = f"blocks.{target.layer}." + ("hook_mlp_out" if target.head is None else f"attn.hook_{target.input}")

            def look(x, hook):
                seen[hook.name] = x.clone()

            # The receiver itself must answer: look before its own output is frozen again.
            with model.hooks([(site, look), *frozen, *sending]):
                model(base)
        if any(target.label == "logits" for target in targets):
            assert len(targets) == 1
            with model.hooks([*frozen, *sending]):
                return metric(model(base))

        def receive(x, hook):
            for target in targets:
                if target.head is None and hook.name.endswith(f"{target.layer}.hook_mlp_out"):
                    return seen[hook.name]
                if target.head is not None and hook.name == f"blocks.{target.layer}.attn.hook_{target.input}":
                    x[:, :, target.head] = seen[hook.name][:, :, target.head]
            return x

        return metric(model.run_with_hooks(base, fwd_hooks=[(name, receive) for name in seen]))


@pytest.mark.parametrize("mlps", ["frozen", "recomputed"])
@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("shape", ["gpt2", "llama", "gemma3", "olmo2", "neox", "gptj"])
def test_every_path_equals_the_four_runs_of_the_paper(shape, mlps, direction):
    fewer = FEWER if shape not in ("neox", "gptj") else FEWER | {"n_kv_heads": 2}
    model = MODEL if shape == "gpt2" else toy(shape, dtype=torch.float64, n_layers=3, **fewer)
    shared = model.config.n_kv_heads < model.config.n_heads
    names = ["logits", "L1H0.q", "mlp 1", "L2H0.q+L2H1.q"]
    names += ["L2KV0.k", "L2KV0.v", "L2KV0"] if shared else ["L2H1.k", "L2H0.v", "L2H1"]
    options = {"senders": "heads,mlps,embed", "receivers": ",".join(names), "mlps": mlps, "direction": direction}
    result = path_patching(model, CLEAN, CORRUPTED, answer=ANSWER, wrong=WRONG, **options)
    base, source = (CLEAN, CORRUPTED) if direction == "noise" else (CORRUPTED, CLEAN)
    checked = 0
    for r, name in enumerate(names):
        targets = parse_receivers(model, name)
        for s, sender in enumerate(result.senders):
            if not all(target.hears(sender) for target in targets):
                assert np.isnan(result.values[:, r, s]).all()
                continue
            expected = four_runs(model, base, source, sender, targets, mlps == "recomputed")
            np.testing.assert_allclose(result.values[:, r, s], expected, **TIGHT)
            checked += 1
    assert checked > 25
    assert np.nanmax(np.abs(result.effects)) > 1e-2  # there was something to get wrong


def test_keys_of_several_heads_are_asked_for_by_their_own_name():
    with pytest.raises(InputError, match=r"share keys and values(.|\n)*L1KV0\.k"):
        parse_receivers(toy("llama"), "L1H0.k")
    assert [one.label for one in parse_receivers(toy("llama"), "L1KV1")] == ["L1KV1.k", "L1KV1.v"]


def test_all_paths_of_a_sender_are_activation_patching_of_it():
    """The last MLP has one path, to the logits; a head of the last layer two, and where MLPs answer one."""
    direct = run(senders="mlps,heads", receivers="logits,mlp 2+logits")
    through = run(senders="heads", receivers="logits", mlps="recomputed")
    heads = activation_patching(MODEL, CLEAN, CORRUPTED, site="z", answer=ANSWER, wrong=WRONG, direction="noise")
    z = np.stack(heads.patched[0].values)  # [text layer head]
    last = [part.label for part in direct.senders].index("L2H0")
    np.testing.assert_allclose(direct.values[:, 1, last : last + 2], z[:, 2], **TIGHT)
    np.testing.assert_allclose(through.values[:, 0, -2:], z[:, 2], **TIGHT)
    assert np.abs(direct.values[:, 0, last : last + 2] - z[:, 2]).max() > 1e-4  # the control: one path is not all paths
    everywhere = activation_patching(
        MODEL, CLEAN, CORRUPTED, site="mlp_out", answer=ANSWER, wrong=WRONG, direction="noise", positions=(-1,)
    )
    mlp = [part.label for part in direct.senders].index("mlp 2")
    np.testing.assert_allclose(direct.values[:, 0, mlp], np.stack(everywhere.patched[0].values)[:, 2, 0], **TIGHT)


def test_all_senders_together_are_activation_patching_of_the_receiver():
    senders = choose(MODEL, "heads,mlps,embed", allowed=("heads", "mlps", "embed"))
    (target,) = parse_receivers(MODEL, "L2H1.k")
    with torch.no_grad():
        paths = Paths(MODEL, CLEAN, CORRUPTED)
        heard = [sender for sender in senders if target.hears(sender)]
        total = sum(paths.change(sender) for sender in heard)
        (edit,) = paths.edits(total, heard[0], [target])
        k = MODEL.run_with_cache(CORRUPTED, names="k")[1]["k", 2][:, :, 1]
        assert list(edit.pos) == [i for i in range(k.shape[1]) if (CLEAN != CORRUPTED)[:, : i + 1].any()]
        np.testing.assert_allclose(edit.value[:, edit.pos, 0], k[:, edit.pos], **TIGHT)
        missing = total - paths.change(heard[-1])
        (edit,) = paths.edits(missing, heard[0], [target])
        assert (edit.value[:, edit.pos, 0] - k[:, edit.pos]).abs().max() > 1e-3


def test_equal_texts_at_the_sender_have_no_effect():
    before = run(senders="heads,mlps,embed", receivers="logits", positions=(0,))  # tokens agree there
    np.testing.assert_allclose(before.effects, 0, atol=1e-12)
    after = run(senders="heads,mlps,embed", receivers="logits", positions=(5,))
    assert np.abs(after.effects).max() > 1e-2


def test_the_induction_circuit_is_read_off_a_model_made_by_hand():
    """Corrupted: the token that the last one should be found after; so only the induction head's keys are misled."""
    model, roles = induction_model()
    clean = repeated(40, 10, batch=4, seed=1)[:, :-1]
    corrupted, answer = clean.clone(), clean[:, 9]
    unused = torch.tensor([next(t for t in range(40) if t not in row.tolist()) for row in clean])
    corrupted[:, 8] = unused
    result = path_patching(model, clean, corrupted, answer=answer, wrong=clean[:, 3])
    assert result.receivers == ("logits", "L1H0.q", "L1H0.k", "L1H0.v")
    effects = result.effects.mean(0)
    labels = [part.label for part in result.senders]
    assert labels[int(np.argmin(effects[0]))] == "L1H0"  # the induction head writes the answer
    assert labels[int(np.nanargmin(effects[2]))] == "L0H0"  # the previous-token head makes its keys
    assert effects[2, labels.index("L0H0")] < 0.9 * result.gap
    assert np.nanmax(np.abs(effects[2][[labels.index("L0H3"), labels.index("mlp 0")]])) < 1e-5
    assert np.nanmax(np.abs(effects[1])) < 0.05 * abs(result.gap)  # nothing reaches its queries
    assert any("L0H0" in finding.text for finding in result.findings())
    bars = [panel for panel in result.panels() if isinstance(panel, Bars)]
    small = {panel.key: np.abs(panel.values).max() <= result.small for panel in bars}
    assert set(small.values()) == {True}  # MLPs carry nothing here
    assert all("None is beyond" in panel.caption for panel in bars)
    loud = replace(bars[0], values=bars[0].values + 2 * result.small)
    assert result.shown(loud) is loud  # control
    keys = [panel.key for panel in result.panels()]
    assert "graph" in keys
    assert all(finding.key in keys for finding in result.findings())
    assert roles["induction"] == (1, 0)


def test_tidy_columns():
    frame = run(receivers="logits,L2H0.q").to_dataframe()
    assert list(frame.columns) == ["sender", "layer", "head", "receiver", "clean", "corrupted", "value", "text"]
    assert len(frame) == 2 * (9 + 6)  # senders of the last layer do not precede L2H0
    table = run(receivers="logits").summary()
    assert (table["low"] <= table["effect"]).all()
    assert table["q"].between(0, 1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"receivers": "logit"}, "unknown receiver 'logit'"),
        ({"receivers": "L1H0.z"}, "unknown receiver"),
        ({"receivers": "L9H0.q"}, "expected L0H0.q to L2H1.q"),
        ({"receivers": "L0H0.q"}, "no sender writes before"),
        ({"senders": "neurons"}, "unknown component"),
        ({"positions": (6,)}, "position 6"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(InputError) as caught:
        run(**options)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_generated_prompts_are_the_default(toy_gpt):
    result = path_patching(toy_gpt)
    assert len(result.pairs.rows) == 12
    assert len(result.receivers) == 4
