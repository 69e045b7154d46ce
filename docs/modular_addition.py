"""(a + b) mod p, learned by one block in a plain PyTorch loop, and looked into: half a minute on one core.

The task of Nanda et al. 2023, "Progress measures for grokking via mechanistic interpretability", smaller.
"""

import torch
import torch.nn.functional as F

from interp import GPTConfig, HookedGPT

P, STEPS = 31, 1500
torch.manual_seed(0)
config = GPTConfig(
    n_layers=1, n_heads=4, d_model=64, n_ctx=3, d_vocab=P + 1, d_vocab_out=P, tied=False, norm=None, act_fn="relu",
    init_std=0.12,
)  # fmt: skip
model = HookedGPT(config)

a, b = torch.meshgrid(torch.arange(P), torch.arange(P), indexing="ij")
tokens = torch.stack([a.flatten(), b.flatten(), torch.full((P * P,), P)], dim=1)  # a, b, "="
labels = (tokens[:, 0] + tokens[:, 1]) % P
order = torch.randperm(P * P)
train, held_out = order[: P * P * 7 // 10], order[P * P * 7 // 10 :]

optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0, betas=(0.9, 0.98))
sizes = []
with model.hooks([("mlp_out", lambda x, hook: sizes.append(x.detach().norm().item()))], reads_only=True):
    for step in range(STEPS):
        loss = F.cross_entropy(model(tokens[train])[:, -1], labels[train])  # read at the "="
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 500 == 0:
            print(f"step {step:>4}  loss {loss.item():.4f}  the MLP writes {sizes[-1]:.1f}")


@torch.no_grad()
def accuracy(logits: torch.Tensor, which: torch.Tensor) -> float:
    return float((logits[:, -1].argmax(-1) == labels)[which].float().mean())


with torch.no_grad():
    print(f"trained on: {accuracy(model(tokens), train):.1%}".replace("%", " %"))
    print(f"held out: {accuracy(model(tokens), held_out):.1%}".replace("%", " %"))
    without = model.run_with_hooks(tokens, fwd_hooks=[("mlp_out", lambda x, hook: torch.zeros_like(x))])
    print(f"without MLP: {accuracy(without, held_out):.1%}".replace("%", " %"))

    # The embedding of numbers is made of few frequencies: the share of each in its Fourier transform.
    power = torch.fft.rfft(model.W_E[:P], dim=0)[1:].abs().square().sum(1)
    share, found = (power / power.sum()).topk(5)
    print("frequencies:", ", ".join(f"{k + 1} ({s:.0%})" for s, k in zip(share.tolist(), found.tolist(), strict=True)))

# A model of one's own is saved, and every command takes it: interp report --model DIR --tokens "3 4 31"
# model.save_pretrained("modular-addition")
