"""What the extraction needs to know of a backbone, whatever library it comes from."""

import hashlib
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from featcache.extract.models import ModelName
from featcache.store.errors import BackboneError
from featcache.store.files import sha256_file
from featcache.store.spec import BackboneSpec


@dataclass(frozen=True)
class LoadedModel:
    """What every backbone family fills in."""

    spec: BackboneSpec
    module: nn.Module
    """The image tower in eval mode."""
    transform: Callable[[Image], Tensor]
    """The model's own preprocessing: RGB image to ``[3, S, S]`` float32."""
    num_prefix_tokens: int
    """Tokens before the patches: the class token and any registers."""
    num_patches: int
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

    @property
    def sequence_first(self) -> bool:
        """Whether tokens are ``[N, B, D]`` inside the blocks."""
        return False

    @abstractmethod
    def norm2(self, block: int) -> nn.Module:
        """The second norm of a block: its output is the normalised input of the MLP."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The model's final norm, applied to all tokens ``[B, N, D]``."""

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
