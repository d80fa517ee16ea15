"""The mini-batches of a training: drawn once, the same for every member.

Shapes: N samples, R training rows, T tokens, D width, B batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featcache.probe.protocol import Plan, Protocol
from featcache.probe.tokens import TokenSource


@dataclass(frozen=True)
class Seeds:
    """Independent seeds for everything that a training draws, all members alike."""

    init: int
    order: int
    jitter: int
    dropout: int

    @classmethod
    def derive(cls, seed: int) -> "Seeds":
        """Spread the one seed of a run."""
        return cls(*np.random.SeedSequence(seed).generate_state(4).tolist())


@dataclass(frozen=True)
class Batch:
    """One mini-batch."""

    tokens: Tensor
    """``[B, T, D]``, L2-normalised and jittered."""
    labels: Tensor
    """``[B]``, int64."""


def jitter_(tokens: Tensor, probability: float, std: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise to every element of some samples, in place.

    Noise is drawn for the chosen samples only: on a CPU it takes longer than to read the batch.

    Args:
        tokens: ``[B, T, D]``; changed and returned.
        probability: that a sample is chosen.
        std: deviation of the noise.
        generator: on the device of `tokens`.
    """
    draws = torch.rand(len(tokens), generator=generator, device=tokens.device)
    chosen = (draws < probability).nonzero().squeeze(1)
    shape = (len(chosen), *tokens.shape[1:])
    noise = torch.randn(shape, generator=generator, dtype=tokens.dtype, device=tokens.device)
    return tokens.index_add_(0, chosen, noise, alpha=std)


def mini_batches(
    tokens: TokenSource,
    labels: Tensor,
    rows: Tensor,
    plan: Plan,
    protocol: Protocol,
    seeds: Seeds,
    device: torch.device | str,
) -> Iterator[Batch]:
    """Yield the ``plan.num_steps`` mini-batches of a training, in a new order every epoch.

    Args:
        tokens: the token source of N samples.
        labels: ``[N]``, int64, on the CPU.
        rows: ``[R]``, int64, on the CPU: the samples to train on.
        plan: batch size and number of epochs.
        protocol: for the jitter.
        seeds: for order and jitter.
        device: where the batches are wanted; noise is drawn there.
    """
    noise = torch.Generator(device).manual_seed(seeds.jitter)
    for chosen, x in tokens.epochs(rows, plan.batch_size, plan.num_epochs, seeds.order):
        x = x.to(device)
        jitter_(x, protocol.jitter_probability, protocol.jitter_std, noise)
        yield Batch(x, labels[chosen].to(device))
