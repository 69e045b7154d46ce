"""How weights are updated: AdamW, and Muon for matrices."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models.gpt import HookedGPT
from interp.training.settings import TrainSettings


class Muon(torch.optim.Optimizer):
    """Momentum whose update is replaced by the nearest orthogonal matrix (Jordan et al. 2024, "Muon").

    Every parameter is [in out]. The update is scaled by sqrt(max(1, out / in)).
    """

    def __init__(self, matrices: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(average, group["momentum"])
                update = orthogonalise(ahead) * max(1.0, weight.shape[1] / weight.shape[0]) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"])


def orthogonalise(x: Float[Tensor, "*batch row column"], steps: int = 5) -> Float[Tensor, "*batch row column"]:
    """Nearly the orthogonal factor of the polar decomposition: singular values end between about 0.7 and 1.2.

    The quintic Newton-Schulz iteration of Jordan et al. (2024), in bfloat16 with their coefficients.
    """
    tall = x.shape[-2] > x.shape[-1]
    wide: Tensor = (x.mT if tall else x).bfloat16()
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
    return (wide.mT if tall else wide).type_as(x)


def optimisers(settings: TrainSettings, model: HookedGPT) -> list[torch.optim.Optimizer]:
    """AdamW for embeddings, gains and biases (or for everything), and Muon for the blocks' matrices."""
    embeddings, matrices = [model.W_E, model.W_pos], []
    if settings.optimiser == "muon":
        matrices = [x for name, x in model.named_parameters() if name.startswith("blocks.") and x.ndim == 2]
    apart = {id(weight) for weight in embeddings + matrices}
    others = [weight for weight in model.parameters() if id(weight) not in apart]
    decay = settings.weight_decay
    groups = [
        {"params": [x for x in others if x.ndim == 2], "weight_decay": decay},
        {"params": [x for x in others if x.ndim != 2], "weight_decay": decay if settings.decay_all else 0.0},
        {"params": embeddings, "weight_decay": decay, "lr": settings.embed_lr or settings.lr},
    ]
    groups = [group for group in groups if group["params"]]
    adamw = torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)
    if not matrices:
        return [adamw]
    return [adamw, Muon(matrices, lr=settings.matrix_lr, momentum=settings.momentum, weight_decay=decay)]
