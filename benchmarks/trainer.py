"""What training a head costs, against the obvious implementation."""

from collections.abc import Callable

import torch
from oracle import ObviousAttentiveHead
from timing import Document, side_by_side

from featcache.probe.heads import get_head


def bench_trainer() -> Document:
    """All rows of the trainer."""
    return {
        "attentive head, one training step (batch x tokens x width)": {
            f"{batch} x {tokens} x {width}": bench_head(batch, tokens, width)
            for batch, tokens, width in ((300, 24, 384), (204, 48, 1024))
        }
    }


def bench_head(batch: int, tokens: int, width: int) -> Document:
    """One training step of the attentive head against the obvious module with materialised keys and values."""
    x = torch.nn.functional.normalize(torch.randn(batch, tokens, width), dim=-1)
    labels = torch.randint(0, 100, (batch,))
    heads = [get_head("attentive").build(tokens, width, 100, 0.1), ObviousAttentiveHead(width, 100, tokens)]

    def stepper(head: torch.nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(head.train()(x), labels).backward()
            optimizer.step()

        return step

    return side_by_side(stepper(heads[0]), stepper(heads[1]))
