"""How much memory a probe may take, and for what."""

from dataclasses import dataclass

import torch

from featcache.store.reading.machine import available_memory

TRAIN = "train"
# Of what is free now: others need memory too, and so do Python, torch and what a step makes on its way.
SHARE = 0.5


@dataclass(frozen=True)
class Budget:
    """Bytes for tokens and for members."""

    total: int

    @classmethod
    def of(cls, memory: int | None, device: torch.device) -> "Budget":
        """What was asked for, or half of what `device` has to spare."""
        if memory is not None:
            return cls(memory)
        if device.type == "cuda":
            return cls(int(SHARE * torch.cuda.mem_get_info(device)[0]))
        return cls(int(SHARE * available_memory()))

    def for_tokens(self, split: str) -> int:
        """Most that the tokens of a split may take; a larger one is streamed."""
        return self.total // (2 if split == TRAIN else 4)

    def for_members(self, tokens: int) -> int:
        """What `tokens` bytes of tokens leave for parameters and moments of the members that train together."""
        return self.total - min(tokens, 3 * self.total // 4)
