"""Training as one writes it down first: one member, one module, the optimiser of torch, in float32.

Shapes: N samples, T tokens, D width, B batch.
"""

import torch
from oracle import ObviousAttentiveHead, ObviousLinearHead
from torch import Tensor
from torch.nn import functional as F

from featcache.probing.protocols.protocol import Member, Protocol, learning_rate_at, plan_training
from featcache.probing.scoring.metrics import class_weights


class ObviousTraining:
    """A member while it trains.

    Args:
        head: name of the head, ``linear`` or ``attentive``.
        tokens: ``[N, T, D]``, as cached.
        labels: ``[N]``, int64.
        member: what is its own.
        protocol: every other constant.
        num_classes: of the head.
        num_heads: of an attentive head; by default T.
    """

    def __init__(
        self,
        head: str,
        tokens: Tensor,
        labels: Tensor,
        member: Member,
        protocol: Protocol,
        num_classes: int,
        num_heads: int | None = None,
    ) -> None:
        _, num_tokens, width = tokens.shape
        self.head: torch.nn.Module = (
            ObviousAttentiveHead(width, num_classes, num_heads or num_tokens)
            if head == "attentive"
            else ObviousLinearHead(num_tokens, width, num_classes)
        )
        self._tokens, self._labels = tokens, labels
        self._member, self._protocol = member, protocol
        self._weights = class_weights(labels, num_classes)
        self._num_heads = (num_heads or num_tokens) if head == "attentive" else 0
        self._optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=member.learning_rate, weight_decay=member.weight_decay
        )

    def step(self, rows: Tensor, learning_rate: float) -> None:
        """Update on the mini-batch of `rows` ``[B]``."""
        x = F.normalize(self._tokens[rows].float(), dim=-1)
        chosen = torch.rand(len(x)) < self._protocol.jitter_probability
        x[chosen] += self._protocol.jitter_std * torch.randn(int(chosen.sum()), *x.shape[1:])
        arguments, dropout = [x], self._member.dropout
        if dropout and self._num_heads:
            kept = torch.rand(len(x), self._num_heads, x.shape[1]) >= dropout
            arguments.append(kept.float() / (1 - dropout))
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.zero_grad()
        F.cross_entropy(self.head(*arguments), self._labels[rows], self._weights).backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), self._protocol.grad_clip_norm)
        self._optimizer.step()

    def fit(self, batch_size: int) -> torch.nn.Module:
        """Train to the end; the head in eval mode."""
        plan = plan_training(len(self._labels), batch_size, self._protocol)
        step = 0
        for _ in range(plan.num_epochs):
            for rows in torch.randperm(len(self._labels)).split(plan.batch_size):
                peak, floor = self._member.learning_rate, self._protocol.lr_floor
                self.step(rows, learning_rate_at(step, plan.num_steps, peak, floor))
                step += 1
        return self.head.eval()
