"""Names of backbones: aliases, explicit names, what the libraries know of them, and the table that lists them."""

import re

import open_clip
import pytest
import timm

from featcache.extraction.backbones import load_backbone
from featcache.extraction.models.listing import listed_models
from featcache.extraction.models.names import ALIASES, at_recorded_commit, resolve_model
from featcache.extraction.models.preprocessing import Preprocessing, preset
from featcache.extraction.models.table import TABLE
from featcache.extraction.tabulate import first_aliases, row_of
from featcache.store.errors import RequestError, UnknownNameError


def test_an_alias_is_its_explicit_name():
    for alias, explicit in ALIASES.items():
        model = resolve_model(alias)
        assert (model.given, model.explicit) == (alias, explicit)
        again = resolve_model(explicit)
        assert (again.explicit, again.is_alias, model.is_alias) == (explicit, False, True)
        assert resolve_model(alias.upper()).explicit == explicit


def test_the_libraries_know_every_alias():
    published = set(timm.list_pretrained())
    for alias in ALIASES:
        model = resolve_model(alias)
        if model.family == "timm":
            assert model.name in published
        else:
            architecture, _, tag = model.name.partition("/")
            assert tag in open_clip.list_pretrained_tags_by_model(architecture)


def test_aliases_run_the_activation_that_their_weights_were_trained_with():
    for alias in ("vit-l-14", "clip-vit-l-14"):
        assert resolve_model(alias).explicit == "open_clip:ViT-L-14-quickgelu/openai"
    trained = {}
    for explicit in ALIASES.values():
        if explicit.startswith("open_clip:"):
            architecture, _, tag = explicit.removeprefix("open_clip:").partition("/")
            trained[explicit] = open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False)
            assert open_clip.get_model_config(architecture).get("quick_gelu", False) == trained[explicit]
    assert set(trained.values()) == {True, False}


QUICK_GELU = {
    "open_clip:ViT-L-14/openai": "open_clip:ViT-L-14-quickgelu/openai",
    "open_clip:ViT-H-14/dfn5b": "open_clip:ViT-H-14-quickgelu/dfn5b",
    "open_clip:ViT-B-32/laion400m_e32": "open_clip:ViT-B-32-quickgelu/laion400m_e32",
    "timm:vit_base_patch16_clip_224.openai": "timm:vit_base_patch16_clip_quickgelu_224.openai",
    "timm:vit_huge_patch14_clip_378": "timm:vit_huge_patch14_clip_quickgelu_378.dfn5b",
}


@pytest.mark.parametrize("name", QUICK_GELU)
def test_weights_of_quick_gelu_are_refused_under_gelu(name):
    with pytest.raises(RequestError) as caught:
        load_backbone(resolve_model(name))
    assert str(caught.value).startswith(
        f"{name}: these weights were trained with QuickGELU and this model runs GELU, which gives other features; "
        f"write {QUICK_GELU[name]}"
    )
    family, _, right = QUICK_GELU[name].partition(":")
    if family == "timm":
        assert right in timm.list_pretrained()
    else:
        architecture, _, tag = right.partition("/")
        assert tag in open_clip.list_pretrained_tags_by_model(architecture)


@pytest.mark.parametrize(("which", "interpolation"), [("own", "bicubic"), ("paper", "bilinear")])
def test_dinov2_and_mae_run_at_224_after_a_resize_to_256(which, interpolation):
    changed = {alias for alias in ALIASES if preset(resolve_model(alias), which) != Preprocessing()}
    assert changed == {alias for alias in ALIASES if alias.startswith(("dinov2-", "mae-"))}
    for alias in changed:
        preprocessing = preset(resolve_model(alias), which)
        assert preprocessing.input_size == (224, 224) or alias.startswith("mae-")
        assert 224 / preprocessing.crop_pct == 256
        assert preprocessing.interpolation == interpolation


def test_an_explicit_name_has_its_librarys_own_preprocessing_unless_the_papers_is_asked_for():
    for explicit in ALIASES.values():
        name = resolve_model(explicit)
        assert preset(name, "own") == Preprocessing()
        assert (preset(name, "paper") == Preprocessing()) == (
            "dinov2" not in explicit and ".mae" not in explicit
        )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit-l-41", "unknown model 'vit-l-41'; did you mean vit-l-14, "),
        ("dinov2-vits-14", "did you mean dinov2-vit-s-14, "),
        ("qqq", "unknown model 'qqq'; valid: clip-vit-b-32, "),
        ("dinov4-vit-b-16", "did you mean dinov3-vit-b-16, "),
        (
            "timm:",
            "(or an explicit timm:NAME, open_clip:ARCHITECTURE/TAG or transformers:OWNER/NAME; see `featcache models`)",
        ),
        ("keras:vit", "unknown model 'keras:vit'"),
        (
            "open_clip:ViT-B-32",
            "model 'open_clip:ViT-B-32' lacks its pretrained tag; write open_clip:ViT-B-32/TAG, "
            "for example ViT-B-32/openai",
        ),
    ],
)
def test_names_that_do_not_resolve(name, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        resolve_model(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "timm:vit_smal_patch14_dinov2",
            "unknown timm model 'vit_smal_patch14_dinov2'; did you mean vit_small_",
        ),
        (
            "timm:vit_small_patch14_dinov2.lvd",
            "unknown pretrained tag of timm model vit_small_patch14_dinov2: 'lvd'; did you mean lvd142m?",
        ),
        ("open_clip:ViT-B-23/openai", "unknown open_clip architecture 'ViT-B-23'; did you mean ViT-"),
        (
            "open_clip:ViT-L-14-quickgelu/open",
            "unknown pretrained tag of open_clip architecture ViT-L-14-quickgelu: 'open'; did you mean openai?",
        ),
    ],
)
def test_names_that_the_library_does_not_know(name, message):
    with pytest.raises(UnknownNameError, match=re.escape(message)):
        load_backbone(resolve_model(name))


# The list.


def test_the_table_says_what_the_libraries_say():
    # Tags of one architecture share a row of it, and building each once takes seconds as it is.
    seen = set()
    assert list(TABLE) == list(dict.fromkeys(ALIASES.values()))
    aliases = first_aliases()
    for explicit, row in TABLE.items():
        name = resolve_model(aliases[explicit])
        architecture = re.split(r"[./]", name.name)[0]
        shape = (name.family, architecture, preset(name, "own"))
        if shape not in seen:
            assert row_of(name) == row, explicit
        seen.add(shape)
    assert len(seen) > 80


def test_the_list_of_models():
    everything = listed_models()
    assert [model.alias for model in everything] == list(ALIASES)
    (dinov2,) = listed_models("DINOv2-vit-s")
    assert dinov2.to_dict() == {
        "alias": "dinov2-vit-s-14",
        "name": "timm:vit_small_patch14_dinov2.lvd142m",
        "layers": 12,
        "width": 384,
        "class_token": True,
        "registers": 0,
        "patches": 256,
        "grid": [16, 16],
        "input_size": 224,
        "preprocessing": "224 px of 256 px bicubic",
        "bytes_per_image": 13 * 2 * 384 * 2,
    }
    # No class token, so only the average of the patches.
    assert listed_models("siglip-vit-b-16-256")[0].bytes_per_image == 13 * 1 * 768 * 2
    # Explicit names are searched too.
    assert {model.alias for model in listed_models("laion2b_s32b_b82k")} == {"openclip-vit-l-14"}
    with pytest.raises(UnknownNameError, match="unknown model 'siglop-vit'; did you mean siglip"):
        listed_models("siglop-vit")


@pytest.mark.parametrize(
    ("name", "source", "wanted"),
    [
        ("transformers:a/b", {"revision": "0123abc"}, "transformers:a/b@0123abc"),
        ("transformers:a/b@main", {"revision": "0123abc"}, "transformers:a/b@0123abc"),
        ("transformers:./folder", {"origin": "file"}, "transformers:./folder"),
        ("transformers:a/b", {"revision": "../x"}, "transformers:a/b"),
        ("timm:vit_tiny", {"revision": "0123abc"}, "timm:vit_tiny"),
        ("transformers:a/b", None, "transformers:a/b"),
    ],
)
def test_the_commit_of_a_cache_is_recomputed_with(name, source, wanted):
    assert at_recorded_commit(name, source) == wanted
