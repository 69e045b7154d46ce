"""A model that is not as it was built: what one way of running it would see and another would not is refused."""

from hashlib import sha256

import pytest
import torch
from command_line import TEXT
from conftest import make_gpt
from torch import nn

from analyses.ablation import ablation
from analyses.direct_logit_attribution import direct_logit_attribution
from analyses.head_roles import head_roles
from analyses.logit_lens import logit_lens
from interp.errors import InputError
from interp.interventions import ablate_head, steer
from interp.loading.digests import parameters_sha256
from interp.models.gpt import HookedGPT
from interp.store.writing import plan
from interp.sweep import slow_sweep, sweep
from reports.running.report import report

VARIANTS = [ablate_head(0, 1), ablate_head(1, 2)]


@pytest.fixture
def model(toy_tokenizer):
    return make_gpt(tokenizer=toy_tokenizer)


def logit(logits):
    return {"logit": logits[..., 5]}


def tripled(module, args, out):
    return 3 * out


def replace_forward(model):
    mlp = model.blocks[1].mlp
    old = mlp.forward
    mlp.forward = lambda x: 3 * old(x)


def replace_part(model):
    class Tripled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 3 * self.inner(x)

    model.blocks[1].mlp = Tripled(model.blocks[1].mlp)


CHANGES = {
    "a hook on an MLP": lambda model: model.blocks[1].mlp.register_forward_hook(tripled),
    "a hook on an attention": lambda model: model.blocks[0].attn.register_forward_hook(tripled),
    "a hook on a block": lambda model: model.blocks[1].register_forward_hook(tripled),
    "a hook before a norm": lambda model: model.blocks[1].ln1.register_forward_pre_hook(lambda m, args: (3 * args[0],)),
    "a hook on the final norm": lambda model: model.ln_final.register_forward_hook(tripled),
    "a hook on the model": lambda model: model.register_forward_hook(tripled),
    "another forward": replace_forward,
    "another part": replace_part,
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_that_a_sweep_would_not_see_is_refused(model, change) -> None:
    """It changes the plain run (control), so everything that does without the modules' own calls must say no."""
    tokens = model.to_tokens(TEXT)
    before = model(tokens)
    CHANGES[change](model)
    assert not torch.allclose(model(tokens), before)
    for refused in (
        lambda: sweep(model, tokens, VARIANTS, logit, read=[-1]),
        lambda: ablation(model, tokens),
        lambda: direct_logit_attribution(model, tokens),
        lambda: plan(model, [TEXT], "z", "nowhere"),
    ):
        with pytest.raises(InputError, match="expected the model as it was built") as error:
            refused()
        assert len(str(error.value).splitlines()) <= 3


def test_a_hook_of_all_modules_is_refused_and_gone_with_its_handle(model) -> None:
    handle = nn.modules.module.register_module_forward_hook(tripled)
    try:
        with pytest.raises(InputError, match="PyTorch has hooks on all modules"):
            sweep(model, model.to_tokens(TEXT), VARIANTS, logit)
    finally:
        handle.remove()
    assert sweep(model, model.to_tokens(TEXT), VARIANTS, logit, read=[-1])["logit"].isfinite().all()


def test_weights_edited_in_place_or_parametrised_are_swept_as_they_are(model) -> None:
    tokens = model.to_tokens(TEXT)
    with torch.no_grad():
        model.blocks[0].mlp.W_out.mul_(-2)
    nn.utils.parametrize.register_parametrization(model.blocks[1].mlp, "W_in", nn.Softplus())
    found = sweep(model, tokens, VARIANTS, logit, read=[-1])["logit"]
    torch.testing.assert_close(found, slow_sweep(model, tokens, VARIANTS, logit, read=[-1])["logit"])


def test_sums_are_refused_inside_hooks_that_change_the_run(model) -> None:
    """Inside `steer` the parts of direct attribution do not sum to the logit; the lens shows the steered run."""
    edits = [steer(1, torch.randn(32))]
    plain = logit_lens(model, TEXT)
    with model.hooks(edits):
        for analysis in (direct_logit_attribution, head_roles, ablation):
            with pytest.raises(InputError, match=r"inside `model\.hooks`"):
                analysis(model, TEXT)
        steered = logit_lens(model, TEXT)
        final = model(TEXT).log_softmax(-1)[0, :-1].gather(-1, model.to_tokens(TEXT)[0, 1:, None])[:, 0]
    assert not torch.allclose(
        torch.as_tensor(steered.log_probability[0][-1][:-1]), torch.as_tensor(plain.log_probability[0][-1][:-1])
    )
    torch.testing.assert_close(torch.as_tensor(steered.log_probability[0][-1][:-1]).float(), final, rtol=0, atol=2e-4)
    with model.hooks([("ln_final.hook_normalized", lambda x, hook: x / 2)]), pytest.raises(InputError):
        logit_lens(model, TEXT)
    with model.hooks([("hook_embed", lambda x, hook: None)], reads_only=True):
        assert direct_logit_attribution(model, TEXT).error < 1e-4


def test_a_page_has_the_digest_of_the_weights_that_ran(tmp_path, toy_tokenizer) -> None:
    """Of the files as long as the model holds what they hold; else of what is in memory, and it says so."""
    make_gpt(tokenizer=toy_tokenizer).save_pretrained(tmp_path)
    model = HookedGPT.from_pretrained(tmp_path)
    facts = report(model, TEXT, analyses=["next_token"]).provenance
    assert facts["weights_sha256"] == sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert "weights" not in facts
    assert report(model.double(), TEXT, analyses=["next_token"]).provenance["weights_sha256"] == facts["weights_sha256"]
    model = HookedGPT.from_pretrained(tmp_path)
    model.blocks[0].mlp.W_out.data.mul_(0)
    edited = report(model, TEXT, analyses=["next_token"]).provenance
    assert edited["weights_sha256"] == parameters_sha256(model) != facts["weights_sha256"]
    assert "changed in memory" in edited["weights"]
