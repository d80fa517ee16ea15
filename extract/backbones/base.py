"""What the extraction needs to know of a backbone, whatever library it comes from."""

import hashlib
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor, nn

from featcache.extract.models import ModelName
from featcache.store.errors import BackboneError
from featcache.store.files import sha256_file
from featcache.store.spec import BackboneSpec


@dataclass(frozen=True)
class TokenLayout:
    """How the N tokens of a layer are ordered: the class token, then registers, then patches row by row."""

    has_class_token: bool
    num_registers: int
    grid: tuple[int, int]
    """Rows and columns of patches."""

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches."""
        return int(self.has_class_token) + self.num_registers

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class TapPoint:
    """Where a tap hooks: what `module` gives, or what it takes."""

    module: nn.Module
    width: int
    """Channels of a token there."""
    side: Literal["output", "input"] = "output"


@dataclass(frozen=True)
class LoadedModel:
    """What every backbone family fills in."""

    spec: BackboneSpec
    module: nn.Module
    """The image tower in eval mode."""
    transform: Callable[[Image], Tensor]
    """The model's own preprocessing: RGB image to ``[3, S, S]`` float32."""
    layout: TokenLayout
    weights_source: str
    """Where the weights come from, for provenance: a hub name, or a file's name and digest."""


class Backbone(ABC):
    """A frozen vision transformer of L blocks and width D.

    A new family is one file with a subclass. Token tensors are ``[B, N, D]`` (or ``[N, B, D]`` where
    `sequence_first` says so inside the blocks), N = prefix tokens + patches.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.spec = loaded.spec
        self.module = loaded.module
        self.transform = loaded.transform
        self.layout = loaded.layout

    @property
    def sequence_first(self) -> bool:
        """Whether tokens are ``[N, B, D]`` inside the blocks."""
        return False

    @abstractmethod
    def tap_point(self, tap: str, block: int) -> TapPoint:
        """Where `tap`, one of `contents.TAPS`, hooks in one of the L blocks.

        Raises:
            BackboneError: the blocks of this backbone have no such place.
        """

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The model's final norm, applied to all tokens ``[B, N, D]``."""

    @property
    def embedding_point(self) -> TapPoint | None:
        """Where the pooled output ``[B, E]`` can be seen, if pooling is more than picking or averaging tokens."""
        return None

    @property
    def projection(self) -> Tensor | None:
        """The matrix ``[D, E]`` that the model multiplies its pooled token with, if it has one."""
        return None

    @abstractmethod
    def output_from_last_tap(self, residual: Tensor, tapped: Tensor) -> Tensor:
        """Recompute the model's own output from the last block's `norm2`.

        Args:
            residual: what entered the last `norm2`.
            tapped: what left it.
        """

    def forward(self, images: Tensor) -> Tensor:
        """The model's own output for images ``[B, 3, S, S]``."""
        output: Tensor = self.module(images)
        return output


def state_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of a module's state, whatever file it was loaded from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        # Through uint8, since numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_state(path: Path) -> Mapping[str, Any]:
    """Read a weights file: safetensors, or a PyTorch file in weights-only mode (nothing in it is executed).

    Raises:
        BackboneError: the file cannot be read.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the libraries raise many kinds
        raise BackboneError(
            f"weights file {path} cannot be read ({_reason(error)}); it must be safetensors, or a state dict saved by "
            "torch (no TorchScript archive, no pickled model)"
        ) from None
    for name in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict):
        raise BackboneError(f"weights file {path} holds {type(state).__name__}, not a state dict")
    return state


def weights_source(name: ModelName, weights: Path | None) -> str:
    """Where the weights come from, for provenance; a local file by name and digest, never by its path."""
    return f"hub:{name.name}" if weights is None else f"file:{weights.name} sha256:{sha256_file(weights)}"


def load_failure(name: ModelName, weights: Path | None, error: Exception) -> BackboneError:
    """Turn what a model library raised while loading into one line with the next step."""
    reason = _reason(error)
    if weights is not None:
        return BackboneError(f"weights file {weights} does not fit {name.explicit} ({reason})")
    return BackboneError(
        f"pretrained weights of {name.explicit} could not be loaded ({reason}); "
        "check the connection to the Hugging Face Hub, or give local weights with --weights FILE"
    )


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch's first line ends in a colon and says nothing yet.
    line = next((line for line in lines if not line.endswith(":")), "")
    # The text of a KeyError, for one, is just the key.
    return textwrap.shorten(
        line if " " in line else f"{type(error).__name__} {line}".rstrip(), 200, placeholder=" ..."
    )


def refuse_if(name: ModelName, reasons: Mapping[str, bool]) -> None:
    """Refuse a model for the first reason that holds.

    Raises:
        BackboneError: a reason holds.
    """
    for reason, holds in reasons.items():
        if holds:
            raise BackboneError(f"{name.explicit} is not supported yet: {reason}")
