"""What an update of all members costs, once their gradients are there.

Shapes: M members, T tokens, D width, C classes.
"""

import torch
from timing import Document, side_by_side
from torch import Tensor

from featcache.probing.heads.registry import HEADS
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import PAPER
from featcache.probing.training.optimizer import MemberAdamW
from featcache.probing.training.trainer import initial_head

GRID = [
    (rate, decay) for rate in PAPER.learning_rates for decay in PAPER.weight_decays for _ in PAPER.dropouts
]
"""Rate and decay of every member of the paper's sweep of attentive heads; three dropouts share both."""
UPDATES = 50
SHAPES = {"ViT-S, 13 layers, 10 classes": (26, 384, 10), "ViT-B, 13 layers, 100 classes": (26, 768, 100)}
"""By name: T, D, C."""
TOY_SHAPES = {"toy": (4, 16, 3)}


def bench_optimizer(toy: bool) -> Document:
    """An optimizer step of 63 attentive members, against torch.optim.AdamW(fused=True) on the stacked parameters.

    Our members have 21 pairs of rate and decay, and the norm of each one's gradient is taken; torch's optimizer has one rate
    and decay for all members and clips nothing. So torch's time is the least that reading and writing this memory takes.
    """
    return {
        name: _steps(*shape, updates=3 if toy else UPDATES)
        for name, shape in (TOY_SHAPES if toy else SHAPES).items()
    }


def _steps(num_tokens: int, width: int, num_classes: int, updates: int) -> Document:
    tokens = InMemoryTokens(torch.randn(2, num_tokens, width))
    head = initial_head(HEADS["attentive"].build, tokens, num_classes, [0.0] * len(GRID), seed=0)
    parameters = [parameter.detach() for parameter in head.parameters()]
    gradients = [1e-3 * torch.randn_like(parameter) for parameter in parameters]
    rates, decays = zip(*GRID, strict=True)
    ours = MemberAdamW([parameter.clone() for parameter in parameters], decays, PAPER)
    stacked = [
        _with_gradient(parameter, gradient) for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    torchs = torch.optim.AdamW(stacked, lr=1e-3, weight_decay=1e-2, fused=True)
    return {
        "parameters of a member": sum(parameter[0].numel() for parameter in parameters),
        **side_by_side(lambda: ours.step(gradients, rates), torchs.step, runs=updates),
    }


def _with_gradient(parameter: Tensor, gradient: Tensor) -> Tensor:
    leaf = parameter.clone().requires_grad_()
    leaf.grad = gradient.clone()
    return leaf
