"""AdamW for members side by side: the numbers of torch's own AdamW, member by member, in fewer calls."""

from itertools import product

import pytest
import torch

from featcache.probing.protocols.protocol import PAPER, Member
from featcache.probing.training.optimizer import MemberAdamW

SHAPES = ((7, 33), (1031,), (5, 5))
MEMBERS = [Member(rate, decay, drop) for drop, rate, decay in product((0.0, 0.1), (1e-2, 1e-3), (0.1, 0.0))]


def gradients_of(step: int) -> list[torch.Tensor]:
    """Gradients ``[M, ...]`` of which some members' exceed the bound on the norm."""
    generator = torch.Generator().manual_seed(step)
    sizes = torch.tensor([0.01, 0.2, 0.05, 0.12, 0.3, 0.02, 0.2, 0.05])
    return [
        torch.randn(len(MEMBERS), *shape, generator=generator) * sizes.view(-1, *[1] * len(shape))
        for shape in SHAPES
    ]


def rates_of(step: int) -> list[float]:
    return [member.learning_rate * (1 - step / 10) for member in MEMBERS]


def initial() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(len(MEMBERS), *shape)) for shape in SHAPES]


def test_members_are_updated_as_alone():
    together, expected = initial(), initial()
    optimizer = MemberAdamW(together, [member.weight_decay for member in MEMBERS], PAPER)
    alone = [
        torch.optim.AdamW(
            [torch.nn.Parameter(parameter.detach()[index]) for parameter in expected],
            weight_decay=member.weight_decay,
            fused=True,
        )
        for index, member in enumerate(MEMBERS)
    ]
    clipped = 0
    for step in range(5):
        gradients, rates = gradients_of(step), rates_of(step)
        for index, own in enumerate(alone):
            group = own.param_groups[0]
            group["lr"] = rates[index]
            for parameter, gradient in zip(group["params"], gradients, strict=True):
                parameter.grad = gradient[index].clone()
            norm = torch.linalg.vector_norm(
                torch.stack([torch.linalg.vector_norm(one.grad) for one in group["params"]])
            )
            if norm > PAPER.grad_clip_norm:
                clipped += 1
                own.grad_scale = (norm + 1e-6) / PAPER.grad_clip_norm
            own.step()
            own.grad_scale = None
        optimizer.step(gradients, rates)
    assert 0 < clipped < 5 * len(MEMBERS)
    for own, other in zip(together, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-7)


def test_members_that_share_rate_and_decay_share_a_call(monkeypatch):
    calls = []
    update = torch._fused_adamw_
    monkeypatch.setattr(
        torch, "_fused_adamw_", lambda *lists, **numbers: (calls.append(numbers), update(*lists, **numbers))
    )
    optimizer = MemberAdamW(initial(), [member.weight_decay for member in MEMBERS], PAPER)
    optimizer.step([1e-3 * gradient for gradient in gradients_of(0)], rates_of(0))
    assert len(calls) == len(MEMBERS) // 2
    assert all(call["grad_scale"] is None for call in calls)


@pytest.mark.parametrize("size", [2, 3])
def test_a_smaller_group_gives_the_same_bits(size):
    """A group of one member does not: torch sums the squares of a single row in another order."""
    whole, parts = initial(), initial()
    decays = [member.weight_decay for member in MEMBERS]
    optimizer = MemberAdamW(whole, decays, PAPER)
    starts = range(0, len(MEMBERS), size)
    smaller = [
        MemberAdamW(
            [torch.nn.Parameter(parameter.detach()[start : start + size]) for parameter in parts],
            decays[start : start + size],
            PAPER,
        )
        for start in starts
    ]
    for step in range(3):
        gradients, rates = gradients_of(step), rates_of(step)
        for start, part in zip(starts, smaller, strict=True):
            part.step([one[start : start + size].clone() for one in gradients], rates[start : start + size])
        optimizer.step(gradients, rates)
    for own, other in zip(whole, parts, strict=True):
        assert torch.equal(own, other)
