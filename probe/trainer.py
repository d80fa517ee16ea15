"""Training of all members of a sweep over the same mini-batches.

The protocol is that of arXiv 2601.09322. The authors train the members of a sweep one after another; here every
mini-batch is read, normalised and jittered once and then shown to all of them. The result is the same: what a
member draws at random comes from generators that are seeded for it alone.

Shapes: N samples, T tokens, D width, C classes, B batch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from featcache.probe.batches import Batch, Seeds, mini_batches
from featcache.probe.heads.base import Head
from featcache.probe.metrics import class_weights
from featcache.probe.protocol import Member, Protocol, learning_rate_at, plan_training
from featcache.probe.tokens import TokenSource

BuildHead = Callable[[int, int, int, float], Head]
"""Called with T, D, C and the dropout; `HeadInfo.build` is one."""


def flush_denormals() -> None:
    """Let the CPU treat denormal numbers as 0, which it otherwise computes with many times slower.

    Adam's moments run into denormals as gradients vanish. The setting belongs to a thread and is inherited by the
    threads it starts, so entry points call this first: before any torch operation has started the thread pool.
    """
    torch.set_flush_denormal(True)


def initial_head(build: BuildHead, tokens: TokenSource, num_classes: int, dropout: float, seed: int) -> Head:
    """Build a head whose initialisation depends on `seed` alone, without disturbing torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(tokens.num_tokens, tokens.width, num_classes, dropout)


class MemberState:
    """One member while it trains: its head, optimiser and source of dropout masks."""

    def __init__(
        self, member: Member, head: Head, protocol: Protocol, seeds: Seeds, device: torch.device | str
    ) -> None:
        """Start training `head` on `device`."""
        self.member = member
        self.protocol = protocol
        self.head = head.to(device).train()
        self.head.generator = torch.Generator(device).manual_seed(seeds.dropout)
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(),
            lr=member.learning_rate,
            betas=protocol.betas,
            eps=protocol.eps,
            weight_decay=member.weight_decay,
            fused=True,  # the same update in one pass over memory; the plain loop takes three times as long
        )

    def step(self, batch: Batch, weights: Tensor, learning_rate: float) -> None:
        """Update the head once; `weights` ``[C]`` are those of the classes."""
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.zero_grad()
        logits = self.head(batch.tokens)
        # The weighted mean divides by the sum of the weights in the batch.
        loss = F.cross_entropy(logits, batch.labels, weight=weights.to(logits.dtype))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), self.protocol.grad_clip_norm)
        self.optimizer.step()

    def finish(self) -> Head:
        """Return the trained head in eval mode."""
        self.head.generator = None
        self.optimizer.zero_grad()
        return self.head.eval()


def step_members(
    states: Sequence[MemberState], batch: Batch, weights: Tensor, step: int, num_steps: int
) -> None:
    """Update every member on one mini-batch. A leading member axis on all parameters would replace this loop."""
    for state in states:
        peak, floor = state.member.learning_rate, state.protocol.lr_floor
        state.step(batch, weights, learning_rate_at(step, num_steps, peak, floor))


def fit_members(
    build: BuildHead,
    tokens: TokenSource,
    labels: Tensor,
    rows: Tensor,
    members: Sequence[Member],
    *,
    protocol: Protocol,
    batch_size: int,
    seed: int,
    num_classes: int,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
) -> list[Head]:
    """Train one head per member on `rows`, all over the same mini-batches.

    Args:
        build: makes a head of T, D, C and dropout.
        tokens: the token source of N samples; only `rows` are read.
        labels: ``[N]``, int64, on the CPU.
        rows: ``[M]``, int64, on the CPU: the samples to train on.
        members: what to train; no member's result depends on the others.
        protocol: every other constant.
        batch_size: as found for the full train split; enlarged where the last batch would hold one sample.
        seed: fixes initialisation, order, jitter and dropout, the same for every member.
        num_classes: C.
        device: where to train; the tokens may live elsewhere.
        on_step: called after every mini-batch with the number of members that it updated.

    Returns:
        The trained heads in the order of `members`, in eval mode.

    Raises:
        RequestError: fewer than 2 rows, or the head cannot have this size.
    """
    seeds = Seeds.derive(seed)
    plan = plan_training(len(rows), batch_size, protocol)
    weights = class_weights(labels[rows], num_classes).to(device)
    states = []
    for member in members:
        head = initial_head(build, tokens, num_classes, member.dropout, seeds.init)
        states.append(MemberState(member, head, protocol, seeds, device))
    batches = mini_batches(tokens, labels, rows, plan, protocol, seeds, device)
    for step, batch in enumerate(batches):
        step_members(states, batch, weights, step, plan.num_steps)
        if on_step is not None:
            on_step(len(states))
    return [state.finish() for state in states]


def predict(head: Head, tokens: TokenSource, rows: Tensor, batch_size: int) -> Tensor:
    """Compute the logits ``[M, C]`` of `rows` (``[M]``, int64, on the CPU); leaves `head` in eval mode."""
    head.eval()
    device = next(head.parameters()).device
    with torch.inference_mode():
        return torch.cat([head(tokens.batch(part).to(device)) for part in torch.split(rows, batch_size)])
