"""Memory that a probe may take, and its division."""

from dataclasses import dataclass

import torch

from featcache.devices.memory import free_memory

TRAIN = "train"
# Shares of what is free now. Other programs, Python and torch take memory of the machine as well. A GPU is left a fifth, for
# workspaces of libraries and since what is allocated in pieces never fits exactly.
SHARE = {"cuda": 0.8}
DEFAULT_SHARE = 0.5


@dataclass(frozen=True)
class Budget:
    """Bytes for tokens, and for members that train."""

    total: int
    """Bytes of which tokens have their parts."""
    all_bytes: int | None = None
    """Bytes of tokens and members together; by default `total`."""

    @classmethod
    def of(cls, memory: int | None, device: torch.device) -> "Budget":
        """Return the budget that was asked for, or a share of what is free on `device`.

        By default, tokens have their parts of a power of two, rounded down: the order in which rows are streamed depends on it, and
        should not change with every byte that is free. Members have all of the rest.
        """
        if memory is not None:
            return cls(memory)
        spare = int(SHARE.get(device.type, DEFAULT_SHARE) * free_memory(device))
        return cls(1 << max(0, spare.bit_length() - 1), spare)

    def for_tokens(self, split: str) -> int:
        """Return the most bytes that the tokens of a split may take; a larger split is streamed."""
        return self.total // (2 if split == TRAIN else 4)

    def for_members(self, tokens: int) -> int:
        """Return the bytes that `tokens` bytes of tokens leave for the members that train together."""
        total = self.total if self.all_bytes is None else self.all_bytes
        return total - min(tokens, 3 * total // 4)
