"""Random weights for work that needs no trained ones: tests, benchmarks and compiler runs."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

ModelT = TypeVar("ModelT", bound=nn.Module)

# Wan norms queries and keys to unit size, so random weights give logits of standard deviation 1 and attention that
# spreads over all keys alike. At 6 each query rests on a handful of keys, from a hundred keys to tens of thousands.
PEAKED_LOGIT_STD = 6.0


@torch.no_grad()
def init_random(model: ModelT, seed: int = 0, *, peaked: bool = False, device: torch.device | str = "cpu") -> ModelT:
    """Fill every parameter in place with numbers that depend on ``seed`` alone; returns the model.

    The usual initialisation of Wan makes the last layer zero, so its output says nothing. Here each layer keeps the
    scale of its input and the flow has a standard deviation near 1.

    ``peaked`` sharpens self-attention: its mean entropy falls below half of the logarithm of the number of keys.
    Attention that is nearly flat hides faults, as a key too many or too few hardly shows in its output.

    ``device`` is where the numbers are drawn. The default gives the same weights everywhere; a GPU is faster.
    """
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, device=device)
        parameter.copy_(_scaled(name, values, peaked))
    return model


def _scaled(name: str, values: Tensor, peaked: bool) -> Tensor:
    """Give standard normal values the mean and spread that suit the parameter of that name."""
    if name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight")):
        sharpen = peaked and "cross_attn" not in name
        # Queries and keys take half each of the factor on the logits.
        return (1 + 0.1 * values) * (math.sqrt(PEAKED_LOGIT_STD) if sharpen else 1.0)
    if name.endswith("modulation"):
        return values / math.sqrt(values.shape[-1])
    if name.endswith(".bias"):
        return 0.02 * values
    return values / math.sqrt(values[0].numel())  # inputs of a linear or convolution layer
