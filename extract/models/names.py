"""Model names: aliases of the usual backbones, and explicit names of a library. No torch here.

An explicit name is ``timm:NAME[.TAG]``, ``open_clip:ARCHITECTURE/TAG`` or ``transformers:OWNER/NAME[@REVISION]``. It and its alias give
the same cache wherever both have the same preprocessing; see `featcache.extraction.models.preprocessing`. ``transformers:./FOLDER`` is a
local copy of a repository.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featcache.store.errors import RequestError, UnknownNameError

TRANSFORMERS = "transformers"
FAMILIES = ("timm", "open_clip", TRANSFORMERS)
_FOLDER_STARTS = ("/", "./", "../", "~")
"""Beginnings that tell a local folder from a repository of the Hub; ``.`` and ``..`` alone are folders too."""
_REPOSITORY = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*(?:@[\w.][\w./-]*)?")

# The eleven backbones of arXiv 2601.09322. CLIP's plain open_clip names would run GELU where OpenAI trained with QuickGELU.
_PAPER: Mapping[str, str] = {
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

# Trained with images and texts. Where timm has just the image tower, its name is taken: less to download.
_IMAGE_TEXT: Mapping[str, str] = {
    "clip-vit-l-14-336": "open_clip:ViT-L-14-336-quickgelu/openai",
    "openclip-vit-b-32": "open_clip:ViT-B-32/laion2b_s34b_b79k",
    "openclip-vit-b-16": "open_clip:ViT-B-16/laion2b_s34b_b88k",
    "openclip-vit-l-14": "open_clip:ViT-L-14/laion2b_s32b_b82k",
    "openclip-vit-h-14": "open_clip:ViT-H-14/laion2b_s32b_b79k",
    "openclip-vit-g-14": "open_clip:ViT-g-14/laion2b_s34b_b88k",
    "openclip-vit-bigg-14": "open_clip:ViT-bigG-14/laion2b_s39b_b160k",
    "laion400m-vit-b-32": "open_clip:ViT-B-32-quickgelu/laion400m_e32",
    "laion400m-vit-b-16": "open_clip:ViT-B-16/laion400m_e32",
    "laion400m-vit-l-14": "open_clip:ViT-L-14/laion400m_e32",
    "datacomp-vit-b-32": "open_clip:ViT-B-32/datacomp_xl_s13b_b90k",
    "datacomp-vit-b-16": "open_clip:ViT-B-16/datacomp_xl_s13b_b90k",
    "datacomp-vit-l-14": "open_clip:ViT-L-14/datacomp_xl_s13b_b90k",
    "dfn-vit-l-14": "open_clip:ViT-L-14-quickgelu/dfn2b",
    "dfn-vit-h-14": "open_clip:ViT-H-14-quickgelu/dfn5b",
    "dfn-vit-h-14-378": "open_clip:ViT-H-14-378-quickgelu/dfn5b",
    "metaclip-vit-b-32": "open_clip:ViT-B-32-quickgelu/metaclip_fullcc",
    "metaclip-vit-b-16": "open_clip:ViT-B-16-quickgelu/metaclip_fullcc",
    "metaclip-vit-l-14": "open_clip:ViT-L-14-quickgelu/metaclip_fullcc",
    "metaclip-vit-h-14": "open_clip:ViT-H-14-quickgelu/metaclip_fullcc",
    "metaclip-vit-bigg-14": "open_clip:ViT-bigG-14-quickgelu/metaclip_fullcc",
    "metaclip2-vit-h-14": "open_clip:ViT-H-14-worldwide-quickgelu/metaclip2_worldwide",
    "metaclip2-vit-bigg-14": "open_clip:ViT-bigG-14-worldwide/metaclip2_worldwide",
    "clipa-vit-l-14": "open_clip:ViT-L-14-CLIPA/datacomp1b",
    "clipa-vit-l-14-336": "open_clip:ViT-L-14-CLIPA-336/datacomp1b",
    "clipa-vit-h-14": "open_clip:ViT-H-14-CLIPA/datacomp1b",
    "coca-vit-b-32": "open_clip:coca_ViT-B-32/laion2b_s13b_b90k",
    "coca-vit-l-14": "open_clip:coca_ViT-L-14/laion2b_s13b_b90k",
    "eva-clip-vit-g-14": "open_clip:EVA01-g-14/laion400m_s11b_b41k",
    "eva02-clip-vit-b-16": "open_clip:EVA02-B-16/merged2b_s8b_b131k",
    "eva02-clip-vit-l-14": "open_clip:EVA02-L-14/merged2b_s4b_b131k",
    "eva02-clip-vit-l-14-336": "open_clip:EVA02-L-14-336/merged2b_s6b_b61k",
    "vitamin-s": "open_clip:ViTamin-S/datacomp1b",
    "vitamin-b": "open_clip:ViTamin-B/datacomp1b",
    "vitamin-l": "open_clip:ViTamin-L/datacomp1b",
    "mobileclip-vit-b": "open_clip:MobileCLIP-B/datacompdr",
    "mobileclip2-vit-b": "open_clip:MobileCLIP2-B/dfndr2b",
    "mobileclip2-vit-l-14": "open_clip:MobileCLIP2-L-14/dfndr2b",
    "pe-core-vit-t-16-384": "open_clip:PE-Core-T-16-384/meta",
    "pe-core-vit-s-16-384": "open_clip:PE-Core-S-16-384/meta",
    "pe-core-vit-b-16": "open_clip:PE-Core-B-16/meta",
    "pe-core-vit-l-14-336": "open_clip:PE-Core-L-14-336/meta",
    "pe-core-vit-g-14-448": "open_clip:PE-Core-bigG-14-448/meta",
    "pe-spatial-vit-b-16-512": "timm:vit_pe_spatial_base_patch16_512.fb",
    "pe-spatial-vit-l-14-448": "timm:vit_pe_spatial_large_patch14_448.fb",
    "pe-spatial-vit-g-14-448": "timm:vit_pe_spatial_gigantic_patch14_448.fb",
    "pe-lang-vit-l-14-448": "timm:vit_pe_lang_large_patch14_448.fb",
    "pe-lang-vit-g-14-448": "timm:vit_pe_lang_gigantic_patch14_448.fb",
    "siglip-vit-b-16": "timm:vit_base_patch16_siglip_224.webli",
    "siglip-vit-b-16-256": "timm:vit_base_patch16_siglip_256.webli",
    "siglip-vit-b-16-384": "timm:vit_base_patch16_siglip_384.webli",
    "siglip-vit-b-16-512": "timm:vit_base_patch16_siglip_512.webli",
    "siglip-vit-l-16-256": "timm:vit_large_patch16_siglip_256.webli",
    "siglip-vit-l-16-384": "timm:vit_large_patch16_siglip_384.webli",
    "siglip-vit-so400m-14": "timm:vit_so400m_patch14_siglip_224.webli",
    "siglip-vit-so400m-14-378": "timm:vit_so400m_patch14_siglip_378.webli",
    "siglip-vit-so400m-14-384": "timm:vit_so400m_patch14_siglip_384.webli",
    "siglip2-vit-b-32-256": "timm:vit_base_patch32_siglip_256.v2_webli",
    "siglip2-vit-b-16": "timm:vit_base_patch16_siglip_224.v2_webli",
    "siglip2-vit-b-16-256": "timm:vit_base_patch16_siglip_256.v2_webli",
    "siglip2-vit-b-16-384": "timm:vit_base_patch16_siglip_384.v2_webli",
    "siglip2-vit-b-16-512": "timm:vit_base_patch16_siglip_512.v2_webli",
    "siglip2-vit-l-16-256": "timm:vit_large_patch16_siglip_256.v2_webli",
    "siglip2-vit-l-16-384": "timm:vit_large_patch16_siglip_384.v2_webli",
    "siglip2-vit-l-16-512": "timm:vit_large_patch16_siglip_512.v2_webli",
    "siglip2-vit-so400m-14": "timm:vit_so400m_patch14_siglip_224.v2_webli",
    "siglip2-vit-so400m-14-378": "timm:vit_so400m_patch14_siglip_378.v2_webli",
    "siglip2-vit-so400m-16-256": "timm:vit_so400m_patch16_siglip_256.v2_webli",
    "siglip2-vit-so400m-16-384": "timm:vit_so400m_patch16_siglip_384.v2_webli",
    "siglip2-vit-so400m-16-512": "timm:vit_so400m_patch16_siglip_512.v2_webli",
    "siglip2-vit-gopt-16-256": "timm:vit_giantopt_patch16_siglip_256.v2_webli",
    "siglip2-vit-gopt-16-384": "timm:vit_giantopt_patch16_siglip_384.v2_webli",
    "aimv2-vit-l-14": "timm:aimv2_large_patch14_224.apple_pt",
    "aimv2-vit-h-14": "timm:aimv2_huge_patch14_224.apple_pt",
    "aimv2-vit-1b-14": "timm:aimv2_1b_patch14_224.apple_pt",
}

# Trained with images alone, mostly without labels.
_SELF_SUPERVISED: Mapping[str, str] = {
    "dino-vit-s-16": "timm:vit_small_patch16_224.dino",
    "dino-vit-s-8": "timm:vit_small_patch8_224.dino",
    "dino-vit-b-16": "timm:vit_base_patch16_224.dino",
    "dino-vit-b-8": "timm:vit_base_patch8_224.dino",
    "dinov2-vit-g-14": "timm:vit_giant_patch14_dinov2.lvd142m",
    "dinov2-reg-vit-s-14": "timm:vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2-reg-vit-b-14": "timm:vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2-reg-vit-l-14": "timm:vit_large_patch14_reg4_dinov2.lvd142m",
    "dinov2-reg-vit-g-14": "timm:vit_giant_patch14_reg4_dinov2.lvd142m",
    "dinov3-vit-s-16": "timm:vit_small_patch16_dinov3.lvd1689m",
    "dinov3-vit-s-plus-16": "timm:vit_small_plus_patch16_dinov3.lvd1689m",
    "dinov3-vit-b-16": "timm:vit_base_patch16_dinov3.lvd1689m",
    "dinov3-vit-l-16": "timm:vit_large_patch16_dinov3.lvd1689m",
    "dinov3-vit-h-plus-16": "timm:vit_huge_plus_patch16_dinov3.lvd1689m",
    "dinov3-vit-7b-16": "timm:vit_7b_patch16_dinov3.lvd1689m",
    "dinov3-sat-vit-l-16": "timm:vit_large_patch16_dinov3.sat493m",
    "dinov3-sat-vit-7b-16": "timm:vit_7b_patch16_dinov3.sat493m",
    "mae-vit-h-14": "timm:vit_huge_patch14_224.mae",
    "eva02-vit-ti-14": "timm:eva02_tiny_patch14_224.mim_in22k",
    "eva02-vit-s-14": "timm:eva02_small_patch14_224.mim_in22k",
    "eva02-vit-b-14": "timm:eva02_base_patch14_224.mim_in22k",
    "eva02-vit-l-14": "timm:eva02_large_patch14_224.mim_m38m",
    "beit3-vit-b-16": "timm:beit3_base_patch16_224.pt",
    "beit3-vit-l-16": "timm:beit3_large_patch16_224.pt",
}

# Trained or fine-tuned with labels.
_SUPERVISED: Mapping[str, str] = {
    "augreg-vit-ti-16": "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "augreg-vit-b-32": "timm:vit_base_patch32_224.augreg_in21k_ft_in1k",
    "augreg-vit-b-8": "timm:vit_base_patch8_224.augreg2_in21k_ft_in1k",
    "augreg-in21k-vit-ti-16": "timm:vit_tiny_patch16_224.augreg_in21k",
    "augreg-in21k-vit-s-16": "timm:vit_small_patch16_224.augreg_in21k",
    "augreg-in21k-vit-b-16": "timm:vit_base_patch16_224.augreg_in21k",
    "augreg-in21k-vit-l-16": "timm:vit_large_patch16_224.augreg_in21k",
    "deit-vit-ti-16": "timm:deit_tiny_patch16_224.fb_in1k",
    "deit-vit-s-16": "timm:deit_small_patch16_224.fb_in1k",
    "deit-vit-b-16": "timm:deit_base_patch16_224.fb_in1k",
    "deit-distilled-vit-ti-16": "timm:deit_tiny_distilled_patch16_224.fb_in1k",
    "deit-distilled-vit-s-16": "timm:deit_small_distilled_patch16_224.fb_in1k",
    "deit-distilled-vit-b-16": "timm:deit_base_distilled_patch16_224.fb_in1k",
    "deit3-vit-s-16": "timm:deit3_small_patch16_224.fb_in22k_ft_in1k",
    "deit3-vit-m-16": "timm:deit3_medium_patch16_224.fb_in22k_ft_in1k",
    "deit3-vit-b-16": "timm:deit3_base_patch16_224.fb_in22k_ft_in1k",
    "deit3-vit-l-16": "timm:deit3_large_patch16_224.fb_in22k_ft_in1k",
    "deit3-vit-h-14": "timm:deit3_huge_patch14_224.fb_in22k_ft_in1k",
    "beit-vit-b-16": "timm:beit_base_patch16_224.in22k_ft_in22k",
    "beit-vit-l-16": "timm:beit_large_patch16_224.in22k_ft_in22k",
    "beitv2-vit-b-16": "timm:beitv2_base_patch16_224.in1k_ft_in22k",
    "beitv2-vit-l-16": "timm:beitv2_large_patch16_224.in1k_ft_in22k",
}

ALIASES: Mapping[str, str] = {**_PAPER, **_IMAGE_TEXT, **_SELF_SUPERVISED, **_SUPERVISED}


@dataclass(frozen=True)
class ModelName:
    """A model name, resolved."""

    given: str
    """As the user wrote it."""
    family: str
    """``timm``, ``open_clip`` or ``transformers``."""
    name: str
    """The library's own name, such as ``vit_small_patch14_dinov2.lvd142m`` or ``ViT-L-14-quickgelu/openai``."""
    folder: Path | None = None
    """Local folder of the model; of family ``transformers`` alone."""

    @property
    def explicit(self) -> str:
        """``family:name``."""
        return f"{self.family}:{self.name}"

    @property
    def repository(self) -> str:
        """``OWNER/NAME`` of a repository of the Hub; of family ``transformers`` alone."""
        return self.name.partition("@")[0]

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit that the name asks for; None for the main branch."""
        return self.name.partition("@")[2] or None

    @property
    def is_alias(self) -> bool:
        """Whether the user wrote an alias, and not the library's own name."""
        return self.given.lower() in ALIASES


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
        RequestError: an open_clip name lacks its tag, or a transformers name is of no repository.
    """
    family, separator, model = ALIASES.get(name.lower(), name).partition(":")
    if not separator or family not in FAMILIES or not model:
        raise UnknownNameError(
            "model",
            name,
            ALIASES,
            "(or an explicit timm:NAME, open_clip:ARCHITECTURE/TAG or transformers:OWNER/NAME; see `featcache models`)",
        )
    if family == TRANSFORMERS:
        return _transformers_name(name, model)
    if family == "open_clip" and "/" not in model:
        raise RequestError(
            f"model {name!r} lacks its pretrained tag; write open_clip:{model}/TAG, for example {model}/openai"
        )
    return ModelName(name, family, model)


def is_folder_name(place: str) -> bool:
    """Return whether the text behind ``transformers:`` means a local folder, and no repository of the Hub."""
    return place.startswith(_FOLDER_STARTS) or place in (".", "..")


def _transformers_name(given: str, place: str) -> ModelName:
    if is_folder_name(place):
        folder = Path(place).expanduser()
        if not folder.is_dir():
            raise RequestError(
                f"model {given!r}: there is no folder {place}; give the folder of a model that transformers saved, as "
                "--model transformers:./FOLDER, or a repository, transformers:OWNER/NAME"
            )
        # Caches, their folders and their provenance show the name, which must not be a path.
        public = f"./{folder.resolve().name}"
        return ModelName(f"{TRANSFORMERS}:{public}", TRANSFORMERS, public, folder)
    if not _REPOSITORY.fullmatch(place):
        raise RequestError(
            f"model {given!r} names no repository; write transformers:OWNER/NAME, transformers:OWNER/NAME@REVISION, or "
            "transformers:./FOLDER for a local one"
        )
    return ModelName(given, TRANSFORMERS, place)


def at_recorded_commit(name: str, weights_source: object) -> str:
    """Return the name of a model of transformers with the commit that a cache's weights came from; other names as they are.

    Args:
        name: explicit name.
        weights_source: provenance of the weights, which may come from anywhere.
    """
    revision = weights_source.get("revision") if isinstance(weights_source, dict) else None
    if not name.startswith(f"{TRANSFORMERS}:") or not isinstance(revision, str) or not revision.isalnum():
        return name
    return f"{name.partition('@')[0]}@{revision}"
