"""Interface of a backbone, independent of the library that it comes from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor, nn

from featcache.store.errors import BackboneError, RequestError
from featcache.store.files import JsonObject
from featcache.store.inventory import TAPS
from featcache.store.spec import BackboneSpec


@dataclass(frozen=True)
class TokenLayout:
    """Order of the N tokens of a layer: the class token, then registers, then patches row by row."""

    has_class_token: bool
    num_registers: int
    """Further tokens before the patches; the distillation token of DeiT is one of them."""
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

    @property
    def num_tokens(self) -> int:
        """All tokens of a layer, N."""
        return self.num_prefix_tokens + self.num_patches


@dataclass(frozen=True)
class TapPoint:
    """Hook point of a tap: the output of `module`, or its input."""

    module: nn.Module
    width: int
    """Channels of a token there."""
    side: Literal["output", "input"] = "output"

    def tokens(self, inputs: tuple[Any, ...], output: Any) -> Any:
        """Return the tapped tokens from the arguments of a forward hook on `module`; the first of several outputs."""
        seen = inputs[0] if self.side == "input" else output
        return seen[0] if isinstance(seen, tuple) else seen


@dataclass(frozen=True)
class LoadedModel:
    """The parts of a backbone that every family provides."""

    spec: BackboneSpec
    module: nn.Module
    """The image tower in eval mode."""
    transform: Callable[[Image], Tensor]
    """The model's own preprocessing: RGB image to ``[3, S, S]`` float32."""
    layout: TokenLayout
    weights_source: JsonObject
    """Provenance of the weights: ``origin`` (``hub``, ``url``, ``file`` or ``memory``), the file and its
    ``sha256``; from the hub also ``model``, ``repository`` and ``revision`` (the commit)."""
    notes: tuple[str, ...] = ()
    """Choices made while the model was loaded that a user should know."""


@dataclass(frozen=True)
class Check:
    """A value that the self-test recomputed, and what the forward pass gave."""

    what: str
    recomputed: Tensor
    recorded: Tensor


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
        self._sized = _Sized()
        self.load_at: Callable[[int], Backbone] | None = None
        """Loads the same weights for another input size in pixels; None where this backbone has no other."""

    def at_size(self, input_size: int) -> "Backbone":
        """Return the backbone of the same weights for another input size, on the same device.

        Its position embedding is that of the model loaded at this size; all other weights are shared.

        Args:
            input_size: side of the square input, pixels.

        Raises:
            RequestError: a model of this kind has no other input size, or the size is no multiple of its patches.
            BackboneError: the weights do not fit at this size.
        """
        if self.spec.image_size == (input_size, input_size):
            return self
        if input_size not in self._sized:
            if self.load_at is None:
                raise RequestError(
                    f"{self.spec.architecture} runs at its own input size of {'x'.join(map(str, self.spec.image_size))} px alone; leave views of other "
                    "sizes out of --views"
                )
            self._sized[input_size] = _share_weights(self.load_at(input_size), self)
        return self._sized[input_size]

    @property
    def sequence_first(self) -> bool:
        """Whether tokens are ``[N, B, D]`` inside the blocks."""
        return False

    @abstractmethod
    def tap_point(self, tap: str, block: int) -> TapPoint:
        """Return the point where `tap`, one of `inventory.TAPS`, hooks into one of the L blocks.

        Raises:
            BackboneError: the blocks of this backbone have no such place; the message says what they have.
        """

    @property
    def taps(self) -> tuple[str, ...]:
        """The members of `TAPS` that the blocks have."""

        def present() -> Iterator[str]:
            for tap in TAPS:
                with suppress(BackboneError):
                    self.tap_point(tap, 0)
                    yield tap

        return tuple(present())

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The module whose output is the tokens of the last layer, ``[B, N, D]``.

        The model's final norm. Where that comes only after pooling (or the model has none), the tokens are those that
        enter the pooling, and this is the place where they can be seen: an Identity, or the transformer itself.
        """

    @property
    def embedding_point(self) -> TapPoint | None:
        """Hook point of the pooled output ``[B, E]``, if pooling is more than picking or averaging tokens.

        Where the model continues with a projection that `projection` cannot express (with a bias, or of another width
        than D), what is seen is the model's own output, already projected.
        """
        return None

    @property
    def projection(self) -> Tensor | None:
        """The matrix ``[D, E]`` that the model multiplies its pooled token with, if it has one."""
        return None

    def final_tokens(self, tokens: Tensor) -> Tensor:
        """Return the tokens of the last layer, from what the last block gives; both ``[B, N, D]``."""
        final: Tensor = self.final_norm(tokens)
        return final

    def output_from_final(self, tokens: Tensor) -> Tensor | None:
        """Return the model's own output from the tokens of the last layer ``[B, N, D]``; None if that is not known."""
        return None

    def block_checks(self, block: int, entered: Tensor, taps: Mapping[str, Tensor]) -> list[Check]:
        """Recompute parts of a block from each other, where its form is known.

        Args:
            block: index of the block.
            entered: the tokens that entered it.
            taps: what every tap of `self.taps` saw.

        Returns:
            Nothing if the form of the block is not known; the self-test then disturbs the taps instead.
        """
        return []

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's own output for images ``[B, 3, S, S]``."""
        output: Tensor = self.module(images)
        return output


class _Sized(dict[int, Backbone]):
    """The backbones of other input sizes; a copied backbone begins without them."""

    def __deepcopy__(self, memo: object) -> "_Sized":
        return _Sized()


def _share_weights(other: Backbone, own: Backbone) -> Backbone:
    """Move `other` to the device of `own`, and let both have the same memory where their weights are equal."""
    shared = {**dict(own.module.named_parameters()), **dict(own.module.named_buffers())}
    tensors = [*other.module.named_parameters(), *other.module.named_buffers()]
    for name, tensor in tensors:
        mine = shared.get(name)
        same = mine is not None and mine.shape == tensor.shape and mine.dtype == tensor.dtype
        if mine is not None and same and torch.equal(mine.detach().cpu(), tensor.detach().cpu()):
            tensor.data = mine.data
    device = next(own.module.parameters()).device
    other.module.to(device)
    return other


def missing_tap_error(architecture: str, tap: str, taps: tuple[str, ...], reason: str = "") -> BackboneError:
    """Return the error for a tap that the blocks of a model do not have."""
    because = f" ({reason})" if reason else ""
    return BackboneError(
        f"the blocks of {architecture} have no tap {tap!r}{because}; they have {', '.join(taps)}"
    )
