"""Compiled forward passes, which are held against the plain one before anything is written."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from featcache.devices.precision import BF16, FP32, MIXED, exact_context, forward_context
from featcache.extraction.backbones.base import Backbone
from featcache.extraction.forward_pass.replicas import noise_images, replica
from featcache.extraction.forward_pass.taps import Taps, Wanted
from featcache.store.errors import BackboneError

# Length of the difference over length of the token vector. Fused operations round less often: DINOv2 ViT-S/14 gave 0.009
# under bfloat16 autocast, which is what another composition of the batch makes.
TOLERANCE = {FP32: 1e-3, MIXED: 4e-2, BF16: 1e-1}
CHECK_IMAGES = 3


class CompiledPass:
    """A forward pass with its taps, compiled as one function for batches of one size; smaller ones are filled up.

    Args:
        backbone: the backbone, on `device`. The pass has hooks on a copy of it that shares its weights.
        device: where it runs.
        precision: of the forward pass; for ``bf16`` the backbone has bfloat16 weights already.
        arrays: what the pass records.
        batch_size: images of a pass.
    """

    def __init__(
        self,
        backbone: Backbone,
        device: torch.device,
        precision: str,
        arrays: Iterable[Wanted],
        batch_size: int,
    ) -> None:
        self._batch_size = batch_size
        # The hooks stay: a compiled function does not look again whether there are any.
        taps = Taps(replica(backbone), arrays).__enter__()

        def run(images: Tensor) -> dict[str, Tensor]:
            with forward_context(device, precision):
                return taps.forward(images)

        self._run: Callable[[Tensor], dict[str, Tensor]] = torch.compile(run, dynamic=False)

    def __call__(self, images: Tensor, at_most: int | None) -> dict[str, Tensor]:
        """Run the pass; see `Pass`."""
        # Another size would be compiled again, which takes longer than running some empty images.
        empty = (at_most or self._batch_size) - len(images)
        filled = torch.cat([images, images.new_zeros(empty, *images.shape[1:])]) if empty > 0 else images
        with torch.inference_mode(False), torch.no_grad():  # the compiler does not know inference tensors
            return {name: values[: len(images)] for name, values in self._run(filled.clone()).items()}


def compiled_pass(
    backbone: Backbone,
    device: torch.device,
    precision: str,
    arrays: Iterable[Wanted],
    batch_size: int,
    say: Callable[[str], None],
) -> CompiledPass | None:
    """Compile the forward pass and hold it against the plain one on a few noise images; arguments as for `CompiledPass`.

    Returns:
        The compiled pass, or None if its features are others than the plain one's; `say` is then told so.

    Raises:
        BackboneError: nothing can be compiled here, or not this backbone.
    """
    wanted = tuple(arrays)
    images = noise_images(backbone, device, CHECK_IMAGES)
    with (
        torch.inference_mode(),
        exact_context(precision),
        Taps(backbone, wanted) as taps,
        forward_context(device, precision),
    ):
        plain = taps.forward(images)
    try:
        compiled = CompiledPass(backbone, device, precision, wanted, batch_size)
        with exact_context(precision):
            fused = compiled(images, None)
    except Exception as error:  # the compiler and the compilers behind it raise many kinds
        raise BackboneError(
            f"the forward pass cannot be compiled here ({_reason(error)}); leave --compile out"
        ) from error
    name, difference = max(
        ((name, _difference(fused[name], plain[name])) for name in plain), key=lambda pair: pair[1]
    )
    # Not `difference > ...`: a NaN must not pass.
    if difference <= TOLERANCE[precision]:
        return compiled
    say(
        f"the compiled forward pass gives other features ({name!r} differs by {difference:.2g} of a token's length), "
        "so it is not used"
    )
    return None


def _difference(values: Tensor, wanted: Tensor) -> float:
    """Largest difference of a token vector, relative to its length; infinite if a value is not a number."""
    lengths = wanted.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    worst = ((values - wanted).norm(dim=-1) / lengths).max().item()
    return worst if worst == worst else float("inf")


def _reason(error: BaseException) -> str:
    # Inductor says first which backend failed, and then what it was.
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if not line.endswith(":")), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:196]} ..."
