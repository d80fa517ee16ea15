"""Model names: aliases of the paper's backbones, and explicit names of a library. No torch here.

An explicit name is ``timm:NAME[.TAG]`` or ``open_clip:ARCHITECTURE/TAG``; it and its alias give the same cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featcache.store.errors import RequestError, UnknownNameError

FAMILIES = ("timm", "open_clip")

# The eleven backbones of arXiv 2601.09322. CLIP's plain open_clip names would run GELU where OpenAI trained with QuickGELU.
ALIASES: Mapping[str, str] = {
    "clip-vit-b-32": "open_clip:ViT-B-32-quickgelu/openai",
    "clip-vit-b-16": "open_clip:ViT-B-16-quickgelu/openai",
    "clip-vit-l-14": "open_clip:ViT-L-14-quickgelu/openai",
    "vit-l-14": "open_clip:ViT-L-14-quickgelu/openai",
    "dinov2-vit-s-14": "timm:vit_small_patch14_dinov2.lvd142m",
    "dinov2-vit-b-14": "timm:vit_base_patch14_dinov2.lvd142m",
    "dinov2-vit-l-14": "timm:vit_large_patch14_dinov2.lvd142m",
    "augreg-vit-s-16": "timm:vit_small_patch16_224.augreg_in21k_ft_in1k",
    "augreg-vit-b-16": "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "augreg-vit-l-16": "timm:vit_large_patch16_224.augreg_in21k_ft_in1k",
    "mae-vit-b-16": "timm:vit_base_patch16_224.mae",
    "mae-vit-l-16": "timm:vit_large_patch16_224.mae",
}

# The field runs these at 224 px after a bilinear resize to 256 px; timm's own settings are 518 px and 248 px.
# DINOv2's names stand here without their tag too, because it is timm's default for them.
_RESIZE_256_CROP_224 = {"input_size": (3, 224, 224), "interpolation": "bilinear", "crop_pct": 224 / 256}
_PREPROCESSING: Mapping[str, Mapping[str, Any]] = {
    f"{name}{tag}": _RESIZE_256_CROP_224
    for names, tags in (
        (
            ("vit_small_patch14_dinov2", "vit_base_patch14_dinov2", "vit_large_patch14_dinov2"),
            ("", ".lvd142m"),
        ),
        (("vit_base_patch16_224", "vit_large_patch16_224"), (".mae",)),
    )
    for name in names
    for tag in tags
}


@dataclass(frozen=True)
class ModelName:
    """A model name, resolved."""

    given: str
    """As the user wrote it."""
    family: str
    """``timm`` or ``open_clip``."""
    name: str
    """The library's own name, such as ``vit_small_patch14_dinov2.lvd142m`` or ``ViT-L-14-quickgelu/openai``."""

    @property
    def explicit(self) -> str:
        """``family:name``."""
        return f"{self.family}:{self.name}"

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """What differs from the library's own preprocessing, in timm's terms."""
        return _PREPROCESSING.get(self.name, {})


def model_names(name: str) -> list[str]:
    """Return `name` and every other name of the same model, whether alias or explicit."""
    explicit = ALIASES.get(name.lower(), name)
    return list(
        dict.fromkeys((name, explicit, *(alias for alias, meant in ALIASES.items() if meant == explicit)))
    )


def resolve_model(name: str) -> ModelName:
    """Resolve an alias or an explicit name; whether the library knows an explicit name is seen when it is loaded.

    Raises:
        UnknownNameError: the name is neither.
        RequestError: an open_clip name lacks its tag.
    """
    family, separator, model = ALIASES.get(name.lower(), name).partition(":")
    if not separator or family not in FAMILIES or not model:
        raise UnknownNameError(
            "model", name, ALIASES, "(or an explicit timm:NAME or open_clip:ARCHITECTURE/TAG)"
        )
    if family == "open_clip" and "/" not in model:
        raise RequestError(
            f"model {name!r} lacks its pretrained tag; write open_clip:{model}/TAG, for example {model}/openai"
        )
    return ModelName(name, family, model)
