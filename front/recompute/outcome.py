"""Result of recomputing some rows of a cache, and the differences that are to be expected."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from featcache.store.files import JsonObject
from featcache.store.reading.dtype_loss import LayerLoss
from featcache.store.spec import BF16, FP32, MIXED, CacheSpec

# Largest relative difference of a token vector that the same computation may show. The forward pass differs with the
# composition of the batch and the device; the stored type then rounds. Measured with DINOv2 ViT-S/14 in mixed precision:
# 0.008 for other batches, 0.013 between bfloat16 autocast and fp32; bicubic instead of bilinear resizing gives 0.19,
# weights with 1 % of noise 0.08. The rest is room for deeper backbones and other devices.
FORWARD_TOLERANCE = {FP32: 5e-3, MIXED: 5e-2, BF16: 1e-1}
# A code of int8 is compared with all values that it stands for, so nothing is rounded.
STORED_TOLERANCE = {"float32": 0.0, "float16": 1e-3, "bfloat16": 8e-3, "int8": 0.0}


def tolerance(spec: CacheSpec) -> float:
    """Return the largest relative difference of a token vector at which a cache still agrees."""
    source = STORED_TOLERANCE[spec.converted_from] if spec.converted_from else 0.0
    return FORWARD_TOLERANCE[spec.precision] + STORED_TOLERANCE[spec.dtype] + source


@dataclass(frozen=True)
class LayerDifference:
    """Difference between one cached layer of one array and the backbone's present output."""

    split: str
    array: str
    layer: str
    largest_absolute: float
    """Over all elements."""
    largest_relative: float
    """Over all token vectors: length of the difference over length of the vector."""


@dataclass(frozen=True)
class Recomputation:
    """Result of recomputing some rows."""

    samples: int
    tolerance: float
    """Bound on the largest relative difference."""
    differences: Sequence[LayerDifference]
    other_samples: Sequence[str]
    """Rows whose sample id or label is another than the dataset's."""
    losses: Sequence[LayerLoss] = ()
    """Loss of the stored type by array, layer and token kind, if it was asked for."""

    @property
    def largest_relative(self) -> float:
        """The largest relative difference of all layers; infinite where a value is not a number."""
        return max(difference.largest_relative for difference in self.differences)

    @property
    def agrees(self) -> bool:
        """Whether the cache holds what the backbone gives."""
        return self.largest_relative <= self.tolerance and not self.other_samples

    def to_dict(self) -> JsonObject:
        """Return the result as plain JSON values; a difference that is not finite is None."""
        return {
            "samples": self.samples,
            "agrees": self.agrees,
            "tolerance": self.tolerance,
            "other_samples": list(self.other_samples),
            "layers": [_finite(asdict(difference)) for difference in self.differences],
            **({"dtype_loss": [loss.to_dict() for loss in self.losses]} if self.losses else {}),
        }


def _finite(values: JsonObject) -> JsonObject:
    return {name: None if value == float("inf") else value for name, value in values.items()}
