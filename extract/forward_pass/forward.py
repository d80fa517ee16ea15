"""The forward pass: preprocessed images to the token arrays of a batch, in the stored type, on their way to the host."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from featcache.devices.memory import is_out_of_memory
from featcache.devices.precision import FP32, exact_context, forward_context
from featcache.extraction.backbones.base import Backbone
from featcache.extraction.forward_pass.encoding import FloatEncoder
from featcache.extraction.forward_pass.taps import Taps, Wanted
from featcache.extraction.sources.base import Sample
from featcache.store.errors import BackboneError

NumpyBatch = dict[str, npt.NDArray[np.generic]]
T = TypeVar("T")


class NotFiniteError(Exception):
    """A value is not finite in the stored type; `FeatureExtractor.explain` finds out which."""


class Extractor(Protocol):
    """What the pipeline needs of whatever runs the forward passes."""

    at_once: int
    """Passes that run at the same time."""

    def start(self, images: Tensor) -> Callable[[], NumpyBatch]:
        """Begin one forward pass; see `FeatureExtractor.start`."""

    def explain(self, images: Tensor, samples: Sequence[Sample]) -> BackboneError:
        """Find out which value is not finite; see `FeatureExtractor.explain`."""

    def stop(self) -> None:
        """Let passes end that are under way and that nobody waits for any more."""


class Pass(Protocol):
    """A forward pass with taps."""

    def __call__(self, images: Tensor, at_most: int | None) -> dict[str, Tensor]:
        """Every array ``[B, L, K, D]`` in float32 of images ``[B, 3, S, S]``, B no more than `at_most`, if that is given."""


class FeatureExtractor:
    """Turns preprocessed images into the token arrays of a batch, in the stored type.

    Args:
        backbone: the backbone, already on `device`.
        device: where it runs.
        precision: of the forward pass; for ``bf16`` the backbone has bfloat16 weights already.
        arrays: the token arrays to fill.
        dtype: stored type of the features.
        say: is told when a batch has to be divided because it does not fit into the device's memory.
        compiled: the pass, if it was compiled; without it the backbone runs as it is.
        encoder: turns features into what is stored; by default it rounds to `dtype`, which is a float type then.
    """

    at_once = 1

    def __init__(
        self,
        backbone: Backbone,
        device: torch.device,
        precision: str,
        arrays: Iterable[Wanted],
        dtype: str,
        say: Callable[[str], None] = lambda text: None,
        compiled: Pass | None = None,
        encoder: FloatEncoder | None = None,
    ) -> None:
        wanted = tuple(arrays)
        self._layers = {array.name: array.layers for array in wanted}
        self._taps = Taps(backbone, wanted)
        self._device = device
        self._precision = precision
        self._encode = encoder or FloatEncoder(dtype)
        self._say = say
        self._pass = compiled or self._plain_pass
        self._fitting: int | None = None
        """Images that fit into the device's memory, once that is known to be less than a batch."""

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> NumpyBatch:
        """Run one forward pass and wait for it.

        Args:
            images: ``[B, 3, S, S]`` float32.
            samples: the B samples, to name one in an error.

        Returns:
            Every array by name as ``[B, L, K, D]`` as it is stored: bfloat16 as its uint16 bits, int8 as codes.

        Raises:
            BackboneError: a value is not finite in the stored type, or one image does not fit into memory.
        """
        try:
            return self.start(images)()
        except NotFiniteError:
            raise self.explain(images, samples) from None

    @torch.inference_mode()
    def start(self, images: Tensor) -> Callable[[], NumpyBatch]:
        """Begin one forward pass; arguments as for a call.

        Returns:
            A function that waits for the values and returns them, to be called from any thread. It raises
            `NotFiniteError` where a value is not finite.
        """
        parts = self._in_parts(images, self._begin)

        def result() -> NumpyBatch:
            batches = [part() for part in parts]
            if len(batches) == 1:
                return batches[0]
            return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

        return result

    @torch.inference_mode()
    def explain(self, images: Tensor, samples: Sequence[Sample]) -> BackboneError:
        """Run the pass again and say which value is not finite, and what to do."""
        parts = self._in_parts(images, self._features_on_host)
        for name in parts[0]:
            values = torch.cat([part[name] for part in parts])
            finite = self._encode.finite(values)
            if not finite.all():
                return self._not_finite(name, values, finite, samples)
        return BackboneError(
            "the backbone gave values that are not finite, but not a second time; check the device"
        )

    def stop(self) -> None:
        """Nothing is under way that nobody waits for: `start` comes back when its pass is through, or is the device's."""

    def _in_parts(self, images: Tensor, run: Callable[[Tensor], T]) -> list[T]:
        """What `run` gives for all images on the device, or for parts of them where the whole does not fit into its memory."""
        while True:
            size = min(self._fitting or len(images), len(images))
            try:
                return [run(part.to(self._device, non_blocking=True)) for part in torch.split(images, size)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise BackboneError(
                        f"one image does not fit into the memory of {self._device}; use a smaller model or --device cpu"
                    ) from error
                self._fitting = size // 2
            # Outside the handler, whose traceback keeps the tensors of the failed pass alive.
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._say(f"out of memory on {self._device}: going on with {self._fitting} images at a time")

    def _begin(self, images: Tensor) -> Callable[[], NumpyBatch]:
        """Begin to compute the arrays and to copy them to the host; the function returned waits for them."""
        stored = {name: self._encode(name, values) for name, values in self._features(images).items()}
        finite = torch.stack([array.finite for array in stored.values()]).all()
        on_host = {name: _to_host(array.values) for name, array in stored.items()}
        flag = _to_host(finite)
        clipped = {name: _to_host(a.clipped) for name, a in stored.items() if a.clipped is not None}
        wait = _end_of_queue(self._device)

        def result() -> NumpyBatch:
            wait()  # before this, what is on the host is not yet what was computed
            if not flag.item():
                raise NotFiniteError
            sizes = {name: values.numel() for name, values in on_host.items()}
            self._encode.count(sizes, {name: int(count.item()) for name, count in clipped.items()})
            return {name: _as_numpy(values) for name, values in on_host.items()}

        return result

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        """Every array ``[B, L, K, D]`` in float32."""
        with exact_context(self._precision):
            return self._pass(images, self._fitting)

    def _features_on_host(self, images: Tensor) -> dict[str, Tensor]:
        return {name: values.cpu() for name, values in self._features(images).items()}

    def _plain_pass(self, images: Tensor, at_most: int | None) -> dict[str, Tensor]:
        with self._taps as taps, forward_context(self._device, self._precision):
            return taps.forward(images)

    def _not_finite(
        self, name: str, values: Tensor, finite: Tensor, samples: Sequence[Sample]
    ) -> BackboneError:
        sample, layer = (int(i) for i in (~finite).nonzero()[0][:2])
        place = f"sample {samples[sample].id!r}, {name}, layer {self._layers[name][layer]}"
        if values[sample, layer].isfinite().all():
            peak = values[sample, layer].abs().max().item()
            remedy = "use --dtype float32 or --dtype bfloat16"
            return BackboneError(f"{place}: value {peak:.4g} is too large for {self._encode.dtype}; {remedy}")
        remedy = "the weights may be damaged" if self._precision == FP32 else "try --precision fp32"
        return BackboneError(f"{place}: the backbone gives values that are not finite; {remedy}")


def _to_host(values: Tensor) -> Tensor:
    """Begin to copy to the host; from a GPU into pinned memory, so that the next pass need not wait for it."""
    if values.device.type != "cuda":
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _end_of_queue(device: torch.device) -> Callable[[], None]:
    """A function that waits until everything that was begun on the device by now is through."""
    if device.type != "cuda":
        return lambda: None
    # Blocking: a thread that waits by asking again and again takes a core from those that decode.
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    # Without a stream, it would be recorded on that of the current device, which may be another one.
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def _as_numpy(values: Tensor) -> npt.NDArray[np.generic]:
    if values.dtype == torch.bfloat16:  # numpy has none
        return values.view(torch.int16).numpy().view("<u2")
    return values.numpy()
