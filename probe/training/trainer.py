"""Training of all members of a sweep over the same mini-batches, side by side.

The protocol is that of arXiv 2601.09322. The authors train the members of a sweep one after another; here every
mini-batch is read, normalized and jittered once, and every parameter has a leading member axis. A member is what it
would be alone: nothing mixes members, and what is drawn at random does not depend on them.

Shapes: M members, N samples, R training rows, T tokens, D width, C classes, B batch.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from featcache.devices.float32 import exact_float32
from featcache.devices.precision import FP32, products
from featcache.probing.heads.base import Head
from featcache.probing.inputs.tokens import TokenSource
from featcache.probing.inputs.transforms import fit_input_transform
from featcache.probing.protocols.protocol import Member, Plan, Protocol, learning_rate_at, plan_training
from featcache.probing.scoring.losses import Loss
from featcache.probing.scoring.tasks import SingleLabel, Task
from featcache.probing.training.batches import Batch, Seeds, mini_batches
from featcache.probing.training.optimizer import MemberAdamW

BuildHead = Callable[[int, int, int, Sequence[float]], Head]
"""Called with T, D, C and every member's dropout; `HeadInfo.build` is one."""

# Bytes of parameters that go through a step together. Gradients and what else has their size is then small enough for
# the allocator to hand out the same memory again, which is much faster than fresh pages from the system.
STEP_BYTES = {"cpu": 2**25}
DEFAULT_STEP_BYTES = 2**40
# Bytes of what a step keeps of a batch of usual size, for the members that go through it as one head.
ACTIVATION_BYTES = 2**28
LARGE_BATCH = 2048


def initial_head(
    build: BuildHead, tokens: TokenSource, num_classes: int, dropouts: Sequence[float], seed: int
) -> Head:
    """Build a head whose initialization depends on `seed` alone, without disturbing torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build(tokens.num_tokens, tokens.width, num_classes, dropouts)


class Training:
    """Members while they train: heads, optimizers and losses.

    Args:
        heads: initialized, each with some of the members, in order.
        members: what they do not share.
        protocol: every other constant.
        loss: of outputs and targets; see `featcache.probing.scoring.losses`.
        num_steps: updates in all, for the schedule.
        precision: of matrix products, ``fp32`` or ``bf16``.
        generator: where dropout masks are drawn from.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        members: Sequence[Member],
        protocol: Protocol,
        loss: Loss,
        num_steps: int,
        precision: str,
        generator: torch.Generator | None = None,
    ) -> None:
        self.heads = [head.train() for head in heads]
        self.loss_history: list[Tensor] = []
        """Losses ``[M]`` of every update so far."""
        self._floor = protocol.lr_floor
        self._loss = loss
        self._num_steps = num_steps
        self._precision = precision
        self._generator = generator
        self._drops = any(member.dropout for member in members)
        self._done = 0
        left = list(members)
        self._parts = [[left.pop(0) for _ in head.dropouts] for head in heads]
        self._optimizers = [
            MemberAdamW(list(head.parameters()), [member.weight_decay for member in part], protocol)
            for head, part in zip(heads, self._parts, strict=True)
        ]

    def step(self, batch: Batch) -> None:
        """Update every member on one mini-batch."""
        with products(self._precision, batch.tokens.device):
            inputs = self.heads[0].prepare(batch.tokens, self._drops, self._generator)
        member_losses: list[Tensor] = []
        for head, members, optimizer in zip(self.heads, self._parts, self._optimizers, strict=True):
            with products(self._precision, batch.tokens.device):
                logits = head.classify(inputs)
            losses = self._loss(logits, batch.labels)
            # The members share nothing, so the gradient of the sum is the gradient of each.
            gradients = torch.autograd.grad(
                losses.sum(), optimizer.parameters, allow_unused=True, materialize_grads=True
            )
            # A member may have several classifiers, each with its loss.
            member_losses.append(losses.detach().view(len(members), -1).mean(1))
            optimizer.step(gradients, [self._learning_rate(member) for member in members])
        # They stay on the device: reading them would make it wait.
        self.loss_history.append(torch.cat(member_losses))
        self._done += 1

    def _learning_rate(self, member: Member) -> float:
        return learning_rate_at(self._done, self._num_steps, member.learning_rate, self._floor)


@exact_float32()
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
    task: Task | None = None,
    plan: Plan | None = None,
    device: torch.device | str = "cpu",
    precision: str = FP32,
    on_step: Callable[[int], None] | None = None,
) -> list[Head]:
    """Train a head for every member on `rows`, all over the same mini-batches.

    Args:
        build: makes a head of T, D, C and dropouts.
        tokens: the token source of N samples; only `rows` are read.
        labels: ``[N]``, int64, on the CPU; or other targets, as `task` has them.
        rows: ``[R]``, int64, on the CPU: the samples to train on, and to fit the protocol's input transform to.
        members: what to train; no member's result depends on the others.
        protocol: every other constant.
        batch_size: as found for the full train split; enlarged where the last batch would hold one sample.
        seed: fixes initialization, order, jitter and dropout, the same for every member.
        num_classes: C, or outputs of a regression.
        task: what the targets are; by default single labels.
        plan: batches and epochs; by default those of the protocol.
        device: where to train; the tokens may live elsewhere.
        precision: of matrix products, ``fp32`` or ``bf16``; parameters, statistics, softmax and loss are float32.
        on_step: called after every mini-batch with the number of members that it updated.

    Returns:
        The trained heads in the order of `members`, in eval mode, each with its input transform.

    Raises:
        RequestError: fewer than 2 rows, or the head cannot have this size.
    """
    seeds = Seeds.derive(seed)
    task = task or SingleLabel(num_classes)
    plan = plan or plan_training(len(rows), batch_size, protocol)
    transform = fit_input_transform(protocol.input, tokens, rows)
    tokens = tokens.with_transform(transform)
    scale = task.scale(labels[rows])
    targets = labels if scale is None else scale.undo(labels)
    heads = [
        initial_head(build, tokens, num_classes, [member.dropout for member in part], seeds.init).to(device)
        for part in divide(members, members_together(build, tokens, num_classes, torch.device(device)))
    ]
    dropout = torch.Generator(device).manual_seed(seeds.dropout)
    loss = task.loss(targets[rows], device)
    training = Training(heads, members, protocol, loss, plan.num_steps, precision, dropout)
    for batch in mini_batches(tokens, targets, rows, plan, protocol, seeds, device):
        training.step(batch)
        if on_step is not None:
            on_step(len(members))
    for head in heads:
        head.input_transform, head.output = transform, scale
    alone = [head.eval().member(index) for head in heads for index in range(head.num_members)]
    for head, losses in zip(alone, torch.stack(training.loss_history, 1).cpu(), strict=True):
        head.losses = losses
    return alone


def has_diverged(head: Head) -> bool:
    """Return whether a loss, weight or statistic of a trained head is not finite."""
    losses = [] if head.losses is None else [head.losses]
    return not all(bool(tensor.isfinite().all()) for tensor in (*head.state_dict().values(), *losses))


def members_together(build: BuildHead, tokens: TokenSource, num_classes: int, device: torch.device) -> int:
    """Return how many members go through a step as one head: so few that the memory of their gradients is reused."""
    most = STEP_BYTES.get(device.type, DEFAULT_STEP_BYTES)
    head = _abstract_head(build, tokens, num_classes)
    fitting = max(1, most // (4 * _count(head)))
    if head.activations:
        fitting = min(fitting, max(1, ACTIVATION_BYTES // (4 * LARGE_BATCH * head.activations)))
    return fitting


def num_parameters(build: BuildHead, tokens: TokenSource, num_classes: int) -> int:
    """Return the number of parameters of one member."""
    return _count(_abstract_head(build, tokens, num_classes))


def _abstract_head(build: BuildHead, tokens: TokenSource, num_classes: int) -> Head:
    with torch.device("meta"):  # nothing is allocated and nothing is drawn
        return build(tokens.num_tokens, tokens.width, num_classes, (0.0,))


def _count(head: Head) -> int:
    return sum(parameter.numel() for parameter in head.parameters())


def divide(members: Sequence[Member], size: int) -> list[Sequence[Member]]:
    """Cut members into parts of `size`, the last one perhaps smaller."""
    return [members[start : start + size] for start in range(0, len(members), size)]
