"""How much memory a probe may take, and for what."""

import math
from dataclasses import dataclass

import torch

from featcache.devices.memory import free_memory

TRAIN = "train"
# Of what is free now: others need memory too, and so do Python, torch and what a step makes on its way.
SHARE = 0.5


@dataclass(frozen=True)
class Budget:
    """Bytes for tokens and for members."""

    total: int

    @classmethod
    def of(cls, memory: int | None, device: torch.device) -> "Budget":
        """What was asked for, or about half of what `device` has to spare.

        The default is a power of two: the order in which rows are streamed depends on it, and should not change with every
        byte that is free.
        """
        if memory is not None:
            return cls(memory)
        return cls(2 ** round(math.log2(SHARE * free_memory(device))))

    def for_tokens(self, split: str) -> int:
        """Most that the tokens of a split may take; a larger one is streamed."""
        return self.total // (2 if split == TRAIN else 4)

    def for_members(self, tokens: int) -> int:
        """What `tokens` bytes of tokens leave for parameters and moments of the members that train together."""
        return self.total - min(tokens, 3 * self.total // 4)
