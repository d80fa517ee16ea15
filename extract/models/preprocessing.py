"""Preprocessing of a model: the settings of its library, and what a request or an alias changes in them. No torch.

``own`` is the model's own evaluation. Explicit names take their library's settings for it. Aliases do too, but for DINOv2 and MAE, whose
authors' settings are stated here. ``paper`` is the preprocessing of the runs published in arXiv 2601.09322.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from featcache.extraction.models.names import ModelName
from featcache.store.errors import CacheError, RequestError
from featcache.store.files import JsonObject
from featcache.store.spec import STATED, BackboneSpec

OWN, PAPER = PRESETS = ("own", "paper")
CENTER, NONE, PAD = CROPS = ("center", "none", "pad")
"""Ways to make an image of any shape fit: cut the center out, squash the whole image, or add borders to the whole image."""
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "nearest", "box", "hamming")

ANTIALIASED = "bicubic, antialiased"
PLAIN = "bicubic"
OFFSET = "bicubic, offset 0.1"
ALIGNED = "bilinear, aligned corners"
POSITION_METHODS = (ANTIALIASED, PLAIN, OFFSET, ALIGNED)
"""Ways to resize a position embedding. timm and open_clip antialias; authors do it in other ways, see `_POSITION_METHODS`."""

Size = tuple[int, int]
"""Height and width, pixels."""

_TIMM_CROPS = {CENTER: "center", NONE: "squash", PAD: "border"}
_OPEN_CLIP_CROPS = {CENTER: "shortest", NONE: "squash", PAD: "longest"}


@dataclass(frozen=True)
class Preprocessing:
    """Changes to the preprocessing of a model's library; None keeps the library's value."""

    input_size: Size | None = None
    interpolation: str | None = None
    """One of `INTERPOLATIONS`."""
    crop: str | None = None
    """One of `CROPS`."""
    crop_pct: float | None = None
    """Side of the crop over side of the resized image."""
    resize_size: int | None = None
    """Shorter side of the resized image, pixels, which stands for `crop_pct`."""
    mean: tuple[float, ...] | None = None
    """Of each channel, of values from 0 to 1, like `std`."""
    std: tuple[float, ...] | None = None
    position_embedding: str | None = None
    """One of `POSITION_METHODS`, used where `input_size` makes a position embedding of another size."""

    def to_dict(self) -> JsonObject:
        """Return the values that are not None as plain JSON values; empty for the library's own preprocessing."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self | None:
        """Read back what `to_dict` wrote; None if it is nothing of the kind."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
        }
        return cls(**values) if all(_fits(name, value) for name, value in values.items()) else None

    @classmethod
    def of_spec(cls, spec: BackboneSpec, where: str) -> Self | None:
        """Return the preprocessing that a cache was made with; None where its library states it in a form of its own.

        Args:
            spec: spec of the backbone, which may come from anywhere.
            where: names the cache in errors.

        Raises:
            CacheError: a field is missing or makes no sense.
        """
        stated = spec.preprocessing
        library = stated.get("library")
        if library not in STATED:
            return None
        if "processor" in stated:  # of transformers, used as it is; only its size can have been changed
            return cls(input_size=spec.image_size)
        crops = _OPEN_CLIP_CROPS if library == "open_clip" else _TIMM_CROPS
        crop = stated.get("resize_mode" if library == "open_clip" else "crop_mode")
        position = stated.get("position_embedding")
        found = cls(
            input_size=spec.image_size,
            interpolation=stated.get("interpolation"),
            crop=next((name for name, theirs in crops.items() if theirs == crop), None),
            crop_pct=stated.get("crop_pct", 1.0),
            mean=_numbers(stated.get("mean")),
            std=_numbers(stated.get("std")),
            position_embedding=position if position in POSITION_METHODS else None,
        )
        sound = (
            found.crop is not None
            and found.interpolation in INTERPOLATIONS
            and isinstance(found.crop_pct, float | int)
            and 0 < found.crop_pct <= 1
            and found.mean is not None
            and found.std is not None
            and 0 not in found.std
            and len(found.mean) == len(found.std) == spec.channels
        )
        if not sound:
            raise CacheError(
                f"{where}: the spec's preprocessing {dict(stated)!r} makes no sense, so it cannot be repeated"
            )
        return found


@dataclass(frozen=True)
class Settings:
    """Complete preprocessing: resize, crop, normalize."""

    input_size: Size
    interpolation: str
    crop: str
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def resized(self) -> Size:
        """Height and width to which an image is resized before the crop, pixels; without a square, at least that much."""
        height, width = (math.floor(side / self.crop_pct) for side in self.input_size)
        return height, width

    def changed(self, by: Preprocessing, name: str) -> Self:
        """Return the settings with the changes of a request.

        Args:
            by: the changes.
            name: of the model, for errors.

        Raises:
            RequestError: the changes do not go together, or not with the model's own settings.
        """
        size = by.input_size or self.input_size
        crop = by.crop or self.crop
        # Squashed and padded images are there to lose nothing, so the library's crop does not apply to them.
        crop_pct = self.crop_pct if by.crop in (None, CENTER) else 1.0
        if by.crop is None and crop != CENTER and (by.resize_size or by.crop_pct) is not None:
            option = "--resize-size" if by.resize_size else "--crop-pct"
            raise RequestError(
                f"{option} is for --crop center, but {name} is run with --crop {crop} by its own settings; give --crop center "
                f"as well, or leave {option} out"
            )
        if by.resize_size is not None:
            crop_pct = crop_fraction(min(size), by.resize_size)
        elif by.crop_pct is not None:
            crop_pct = by.crop_pct
        return replace(
            self,
            input_size=size,
            interpolation=by.interpolation or self.interpolation,
            crop=crop,
            crop_pct=crop_pct,
            mean=by.mean or self.mean,
            std=by.std or self.std,
        )

    @classmethod
    def of_timm(cls, config: Mapping[str, Any]) -> Self:
        """Return the settings that timm resolves for a model."""
        crop = next(name for name, theirs in _TIMM_CROPS.items() if theirs == config["crop_mode"])
        height, width = config["input_size"][-2:]
        return cls(
            (height, width),
            config["interpolation"],
            crop,
            config["crop_pct"],
            tuple(config["mean"]),
            tuple(config["std"]),
        )

    def for_timm(self) -> dict[str, Any]:
        """Return the settings in timm's terms."""
        return {
            "input_size": (len(self.mean), *self.input_size),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": _TIMM_CROPS[self.crop],
            "mean": self.mean,
            "std": self.std,
        }

    @classmethod
    def of_open_clip(cls, config: Mapping[str, Any], size: Size) -> Self:
        """Return the settings that open_clip resolves for a model whose input has `size`."""
        crop = next(name for name, theirs in _OPEN_CLIP_CROPS.items() if theirs == config["resize_mode"])
        return cls(size, config["interpolation"], crop, 1.0, tuple(config["mean"]), tuple(config["std"]))

    def for_open_clip(self, own: Self) -> dict[str, Any]:
        """Return what differs from the library's own settings in open_clip's terms, and ``crop_pct``, which it has not.

        Args:
            own: the library's own settings.
        """
        changes: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in (("interpolation", self.interpolation), ("mean", self.mean), ("std", self.std))
            if value != getattr(own, name)
        }
        if self.crop != own.crop:
            changes["resize_mode"] = _OPEN_CLIP_CROPS[self.crop]
        if self.crop == PAD and self != own:
            changes["fill_color"] = [round(255 * value) for value in self.mean]
        return changes if self.crop_pct == 1.0 else {**changes, "crop_pct": self.crop_pct}


def preset(name: ModelName, which: str) -> Preprocessing:
    """Return the changes that one of `PRESETS` makes to the settings of a model's library."""
    if which == PAPER:
        return _PAPER if name.family == "timm" and _is_dinov2_or_mae(name.name) else Preprocessing()
    if not name.is_alias or name.family != "timm":
        return Preprocessing()
    if _DINOV2.fullmatch(name.name):
        return replace(_DINOV2_OWN, position_embedding=position_method(name))
    return _MAE_OWN if _MAE.fullmatch(name.name) else Preprocessing()


def position_method(name: ModelName) -> str | None:
    """Return how the authors of a model resize its position embedding; None for explicit names, which go by their library."""
    return _authors_method(name) if name.is_alias else None


def other_size(changes: Preprocessing, name: ModelName, spec: BackboneSpec, input_size: int) -> Preprocessing:
    """Return the preprocessing of a view with another input size.

    The position embedding is resized as for the model's own input, if that was resized; else as the model's authors do it, however the
    model's name was typed, since a cache has the same key under all names.

    Args:
        changes: those of the plain view.
        name: name of the model.
        spec: of the backbone with those changes.
        input_size: side of the square input of the view, pixels.
    """
    stated = spec.preprocessing.get("position_embedding")
    method = stated if stated in POSITION_METHODS else _authors_method(name)
    settled = Preprocessing.of_spec(spec, name.explicit) or changes
    return replace(settled, input_size=(input_size, input_size), position_embedding=method)


def _authors_method(name: ModelName) -> str | None:
    if name.family != "timm":
        return None
    return next((method for form, method in _POSITION_METHODS if re.search(form, name.name)), None)


def require_patch_multiple(name: str, size: Size, patch: Size) -> None:
    """Refuse an input size that is no multiple of the patch.

    Raises:
        RequestError: it is none; the message names the nearest sizes.
    """
    if not any(side % step for side, step in zip(size, patch, strict=True)):
        return
    lower, upper = (
        tuple(max(side // step + more, 1) * step for side, step in zip(size, patch, strict=True))
        for more in (0, 1)
    )
    raise RequestError(
        f"--input-size {size_text(size, '')} is no multiple of the patch of {name}, {size_text(patch)}; the nearest ones are "
        f"{size_text((lower[0], lower[1]), '')} and {size_text((upper[0], upper[1]), '')}"
    )


def size_text(size: Size, unit: str = " px") -> str:
    """Return a size as it is typed, ``224x336``, or one number where it is a square."""
    return (f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}") + unit


def _is_dinov2_or_mae(name: str) -> bool:
    return bool(_DINOV2.fullmatch(name) or _MAE.fullmatch(name))


def crop_fraction(side: int, resized: int) -> float:
    """Return the fraction `side` / `resized`, such that the libraries' floor(side / fraction) is `resized`.

    Raises:
        RequestError: the crop is larger than the resized image.
    """
    if resized < side:
        raise RequestError(
            f"--resize-size {resized} is smaller than the {side} px that are cropped from it; give at least {side}, or a smaller "
            "--input-size"
        )
    fraction = side / resized
    while math.floor(side / fraction) < resized:
        fraction = math.nextafter(fraction, 0.0)
    return fraction


def _fits(name: str, value: object) -> bool:
    """Return whether a value may be that of a field of `Preprocessing`; a document may come from anywhere."""
    if name == "input_size":
        return isinstance(value, tuple) and len(value) == 2 and all(type(side) is int for side in value)
    if name in ("mean", "std"):
        return _numbers(value) is not None
    kinds: dict[str, type | tuple[type, ...]] = {
        **dict.fromkeys(("interpolation", "crop", "position_embedding"), str),
        "crop_pct": (int, float),
        "resize_size": int,
    }
    return name in kinds and isinstance(value, kinds[name])


def _numbers(given: object) -> tuple[float, ...] | None:
    """Return finite numbers, one for each channel, as a tuple; None for anything else."""
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        return None
    sound = all(isinstance(value, float | int) and math.isfinite(value) for value in given)
    return tuple(float(value) for value in given) if sound else None


# timm's default tag of DINOv2's names is lvd142m.
_DINOV2 = re.compile(r"vit_(small|base|large|giant)_patch14_(reg4_)?dinov2(\.lvd142m)?")
_MAE = re.compile(r"vit_(base|large|huge)_patch1[46]_224\.mae")
# The published runs: torchvision's Resize(256), which is bilinear by default, and CenterCrop(224).
_PAPER = Preprocessing(input_size=(224, 224), interpolation="bilinear", crop_pct=224 / 256)
# facebookresearch/dinov2, data/transforms.py: make_classification_eval_transform. timm's own are 518 px without a crop.
_DINOV2_OWN = Preprocessing(input_size=(224, 224), interpolation="bicubic", crop_pct=224 / 256)
# facebookresearch/mae, util/datasets.py: build_transform. timm's own resize is 248 px.
_MAE_OWN = Preprocessing(interpolation="bicubic", crop_pct=224 / 256)

# The first form found in a name counts. Models that are not here go by timm.
_POSITION_METHODS = (
    # facebookresearch/dinov2, models/vision_transformer.py: models with registers set interpolate_antialias and no offset.
    (r"reg4_dinov2", ANTIALIASED),
    # The same file, and facebookresearch/dino, vision_transformer.py: a scale factor made of the wanted grid + 0.1.
    (r"dinov2|\.dino$", OFFSET),
    # facebookresearch/mae, util/pos_embed.py, which comes from facebookresearch/deit, main.py.
    (r"\.mae$|^deit", PLAIN),
    # google-research/vision_transformer, checkpoint.py, and big_vision, models/vit.py: scipy.ndimage.zoom(order=1).
    (r"\.augreg|siglip", ALIGNED),
)
