"""The mini-batches of a training: drawn once, the same for every member.

Shapes: N samples, R training rows, T tokens, D width, B batch.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featcache.devices.transfer import send
from featcache.probing.heads.scratch import scratch
from featcache.probing.inputs.tokens import TokenSource
from featcache.probing.protocols.protocol import Plan, Protocol

STREAMS = 16
# Numbers that one thread draws in less time than others take to start.
SMALL_NOISE = 2**18


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
    """``[B, T, D]``, L2-normalized and jittered."""
    labels: Tensor
    """``[B]``, int64."""


class Jitter:
    """Gaussian noise on the elements of some samples, from a seed.

    Drawing it takes longer than reading the batch, so on a CPU it is drawn for the chosen samples only, and in several streams,
    each on a thread of its own. Their number is fixed, so the noise does not depend on the number of cores.

    Args:
        probability: that a sample is chosen.
        std: deviation of the noise.
        seed: of all draws.
        device: where they are made.
    """

    def __init__(self, probability: float, std: float, seed: int, device: torch.device | str) -> None:
        self._probability = probability
        self._std = std
        streams = STREAMS if torch.device(device).type == "cpu" else 1
        seeds = np.random.SeedSequence(seed).generate_state(1 + streams).tolist()
        self._choice, *self._noise = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def add_(self, tokens: Tensor) -> Tensor:
        """Add noise to about that part of the samples of `tokens` ``[B, T, D]``, in place."""
        draws = torch.rand(len(tokens), generator=self._choice, device=tokens.device)
        chosen = (draws < self._probability).nonzero().squeeze(1)
        noise = scratch("jitter", len(chosen) * tokens[0].numel(), tokens)
        parts = zip(noise.tensor_split(len(self._noise)), self._noise, strict=True)
        if len(self._noise) == 1 or len(noise) < SMALL_NOISE:
            for part, generator in parts:
                part.normal_(generator=generator)
        else:
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                list(pool.map(lambda pair: pair[0].normal_(generator=pair[1]), parts))
        return tokens.index_add_(0, chosen, noise.view(-1, *tokens.shape[1:]), alpha=self._std)


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
    jitter = Jitter(protocol.jitter_probability, protocol.jitter_std, seeds.jitter, device)
    for chosen, x in tokens.epochs(rows, plan.batch_size, plan.num_epochs, seeds.order):
        yield Batch(jitter.add_(x.to(device)), send(labels[chosen], device))
