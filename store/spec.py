"""The spec: everything that fixes the values in a cache. Its digest is the cache's key."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Self

from featcache.store.errors import CacheError
from featcache.store.files import JsonObject, canonical_json, field, sha256_hex
from featcache.store.quantization import INT8

KEY_VERSION = 2
"""Format version in the canonical JSON of every key, whatever version a cache has: the key tells what values are, the version what a
reader must know."""
FORMAT_VERSIONS = (2, 3)
"""Versions that this featcache reads; `featcache.store.inventory.Inventory.format_version` says which one a cache has."""
KEY_DIGITS = 12
FLOAT_DTYPES = ("float16", "bfloat16", "float32")
STORED_DTYPES = (*FLOAT_DTYPES, INT8)
FP32, MIXED, BF16 = PRECISIONS = ("fp32", "mixed", "bf16")
PILLOW, UINT8_ANTIALIAS = "pillow", "uint8-antialias"
RESIZES = (PILLOW, UINT8_ANTIALIAS)
"""Versions of resizing, a part of the preprocessing: by the model's library on Pillow's image, or torch's antialiased resize of
8-bit pixels. Both have the same filter and size; pixels differ by at most 2 of 255."""
STATED = ("timm", "open_clip", "transformers")
"""Libraries whose preprocessing is stated in terms that are known here: those of timm, or those of open_clip."""
_RESIZE = "resize_version"
_ORIENTATION, _EXIF = "orientation", "exif"


def is_upright(preprocessing: Mapping[str, Any]) -> bool:
    """Return whether the preprocessing of a spec turns images upright by their EXIF orientation."""
    return preprocessing.get(_ORIENTATION) == _EXIF


@dataclass(frozen=True)
class BackboneSpec:
    """Everything that determines the function from image to tokens."""

    architecture: str
    """Library and model definition without pretrained tag, such as ``timm:vit_small_patch14_dinov2``."""
    weights_digest: str
    """SHA-256 over the names, shapes, types and bytes of the loaded state, whatever file it came from."""
    num_layers: int
    """Number L of transformer blocks."""
    width: int
    """Token width D."""
    input_size: int
    """Side of the square input, pixels; of an input that is no square its width, see `image_size`."""
    preprocessing: Mapping[str, Any]
    """Preprocessing of an image, as plain values. ``resize_version`` names the version of
    resizing; without it, Pillow resizes. ``orientation`` is ``exif`` where images are turned upright; without it,
    they are taken as stored."""

    @property
    def upright(self) -> bool:
        """Whether images are turned upright by their EXIF orientation before anything else is done to them."""
        return is_upright(self.preprocessing)

    def with_upright(self, upright: bool) -> Self:
        """Return the spec of the same function with images turned upright, or taken as stored."""
        others = {name: value for name, value in self.preprocessing.items() if name != _ORIENTATION}
        # Caches of before the choice take images as stored, do not say so, and keep their keys.
        return replace(self, preprocessing={**others, _ORIENTATION: _EXIF} if upright else others)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input, pixels."""
        # timm's name, then open_clip's. Other preprocessing may call anything so, and its input is a square.
        for name in ("input_size", "size"):
            shape = self.preprocessing.get(name)
            if (
                self.preprocessing.get("library") in STATED
                and isinstance(shape, list | tuple)
                and len(shape) in (2, 3)
                and isinstance(shape[-2], int)
                and shape[-2] >= 1
                and shape[-1] == self.input_size
            ):
                return shape[-2], self.input_size
        return self.input_size, self.input_size

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        shape = self.preprocessing.get("input_size")
        of_timm = (
            self.preprocessing.get("library") == "timm"
            and isinstance(shape, list | tuple)
            and len(shape) == 3
        )
        return int(shape[0]) if of_timm and isinstance(shape[0], int) and shape[0] >= 1 else 3  # type: ignore[index]

    @property
    def resize(self) -> str:
        """Version of resizing, one of `RESIZES`."""
        return UINT8_ANTIALIAS if self.preprocessing.get(_RESIZE) == UINT8_ANTIALIAS else PILLOW

    def resized_by(self, resize: str) -> Self:
        """Return the spec of the same function with another version of resizing."""
        others = {name: value for name, value in self.preprocessing.items() if name != _RESIZE}
        # Caches of before the second version do not name theirs, and keep their keys.
        return replace(self, preprocessing=others if resize == PILLOW else {**others, _RESIZE: resize})


@dataclass(frozen=True)
class CacheSpec:
    """Everything that fixes the values in a cache; batch size, device and host are provenance instead."""

    backbone: BackboneSpec
    dataset: Mapping[str, Any]
    """Identity of the dataset's content; never an absolute path."""
    dtype: str
    """Stored type of the features, one of `STORED_DTYPES`."""
    precision: str
    """``fp32``, ``mixed`` for a forward pass under autocast, or ``bf16`` for one with bfloat16 weights."""
    format_version: int = KEY_VERSION
    converted_from: str | None = None
    """Stored type of the cache that an int8 cache was converted from. An extraction fits other scales, to values that were not rounded
    before, so the two caches have different values and different keys. None, and absent in JSON, after an extraction."""

    @cached_property
    def key(self) -> str:
        """First 12 hex digits of SHA-256 over the canonical JSON of the spec."""
        return sha256_hex(canonical_json(self.to_dict()))[:KEY_DIGITS]

    def to_dict(self) -> JsonObject:
        """Return the spec as plain JSON values."""
        document = asdict(self)
        # Caches of before do not have the field, and keep their keys.
        if self.converted_from is None:
            del document["converted_from"]
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], where: str) -> Self:
        """Read a spec back; `where` names the file in errors.

        Raises:
            CacheError: a field is missing, of the wrong type, or of a format that this version cannot read.
        """
        version = field(document, "format_version", int, where)
        if version not in FORMAT_VERSIONS:
            remedy = "upgrade featcache" if version > max(FORMAT_VERSIONS) else "extract it again"
            readable = " and ".join(map(str, FORMAT_VERSIONS))
            raise CacheError(
                f"{where}: format version {version}; this featcache reads versions {readable}: {remedy}"
            )
        backbone = field(document, "backbone", dict, where)
        texts = {name: field(backbone, name, str, where) for name in ("architecture", "weights_digest")}
        counts = {name: field(backbone, name, int, where) for name in ("num_layers", "width", "input_size")}
        for name, value in counts.items():
            if not 1 <= value <= 2**20:
                raise CacheError(f"{where}: field {name!r} must be from 1 to {2**20}, got {value}")
        spec = cls(
            backbone=BackboneSpec(
                **texts, **counts, preprocessing=field(backbone, "preprocessing", dict, where)
            ),
            dataset=field(document, "dataset", dict, where),
            dtype=field(document, "dtype", str, where),
            precision=field(document, "precision", str, where),
            converted_from=field(document, "converted_from", str, where)
            if "converted_from" in document
            else None,
        )
        for name, value, valid in (
            ("dtype", spec.dtype, STORED_DTYPES),
            ("precision", spec.precision, PRECISIONS),
            ("converted_from", spec.converted_from, (None, *FLOAT_DTYPES)),
        ):
            if value not in valid:
                names = ", ".join(filter(None, valid))
                raise CacheError(f"{where}: field {name!r} must be one of {names}, got {value!r}")
        if spec.converted_from is not None and spec.dtype != INT8:
            raise CacheError(f"{where}: field 'converted_from' is for the dtype {INT8}, not {spec.dtype}")
        return spec
