"""Every family that has an alias, and what else is supported: all taps of a small random member against loops over the
library's parts (forward.py), its blocks and final tokens against the library's own `forward_intermediates`."""

from functools import partial

import open_clip
import pytest
import timm
import torch
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock, ResPostBlock

from featcache.extraction.backbones.base import TokenLayout
from featcache.extraction.backbones.open_clip_vit import _backbone, _untrained, stated_preprocessing
from featcache.extraction.backbones.timm_vit import backbone_of, layout_of
from featcache.extraction.forward_pass.selftest import self_test
from featcache.extraction.models.names import ALIASES, ModelName
from featcache.extraction.models.preprocessing import Preprocessing
from featcache.store.errors import BackboneError
from featcache.store.inventory import TAPS

from .forward import open_clip_forward, timm_forward
from .tiny import loaded, randomise, record

CPU = torch.device("cpu")
WIDTH, LAYERS = 32, 2
TINY = {"embed_dim": WIDTH, "depth": LAYERS, "num_heads": 2}
POST_NORM, PARALLEL = ("block", "attn", "mlp"), ("block",)

# Family: timm's model, what to change to make it small, class token, registers, side of the grid.
TIMM = {
    "augreg": ("vit_base_patch16_224", {"img_size": 64}, 1, 0, 4),
    "dino": ("vit_small_patch8_224", {"img_size": 32}, 1, 0, 4),
    "dinov2": ("vit_small_patch14_dinov2", {"img_size": 56}, 1, 0, 4),
    "dinov2, SwiGLU": ("vit_giant_patch14_dinov2", {"img_size": 56}, 1, 0, 4),
    "dinov2-reg": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, 1, 4, 4),
    "dinov3": ("vit_small_patch16_dinov3", {"img_size": 64}, 1, 4, 4),
    "dinov3, SwiGLU": ("vit_small_plus_patch16_dinov3", {"img_size": 64}, 1, 4, 4),
    "mae": ("vit_base_patch16_224.mae", {"img_size": 64}, 1, 0, 4),
    "deit": ("deit_small_patch16_224", {"img_size": 64}, 1, 0, 4),
    "deit-distilled": ("deit_small_distilled_patch16_224", {"img_size": 64}, 1, 1, 4),
    "deit3": ("deit3_small_patch16_224", {"img_size": 64}, 1, 0, 4),
    "siglip": ("vit_base_patch16_siglip_224", {"img_size": 64}, 0, 0, 4),
    "siglip2": ("vit_giantopt_patch16_siglip_256", {"img_size": 64}, 0, 0, 4),
    "siglip, averaged": ("vit_base_patch16_siglip_gap_224", {"img_size": 64}, 0, 0, 4),
    "beit": ("beit_base_patch16_224", {"img_size": 64}, 1, 0, 4),
    "beit, one bias for all": ("beit_base_patch16_224", {"img_size": 64, "use_shared_rel_pos_bias": True}, 1, 0, 4),
    "beitv2": ("beitv2_base_patch16_224", {"img_size": 64}, 1, 0, 4),
    "beit3": ("beit3_base_patch16_224", {"img_size": 64}, 1, 0, 4),
    "eva02": ("eva02_base_patch14_224", {"img_size": 56}, 1, 0, 4),
    "eva02, packed SwiGLU": ("eva02_tiny_patch14_224", {"img_size": 56}, 1, 0, 4),
    "eva, averaged": ("eva_giant_patch14_224", {"img_size": 56}, 1, 0, 4),
    "pe-core": ("vit_pe_core_base_patch16_224", {"img_size": 64, "attn_pool_num_heads": 2}, 1, 0, 4),
    "pe-core, no class token": ("vit_pe_core_gigantic_patch14_448", {"img_size": 56, "attn_pool_num_heads": 2}, 0, 0, 4),
    "pe-spatial": ("vit_pe_spatial_base_patch16_512", {"img_size": 64}, 1, 0, 4),
    "pe-lang": ("vit_pe_lang_large_patch14_448", {"img_size": 56}, 1, 0, 4),
    "rope, one embedding a block": ("vit_small_patch16_rope_mixed_224", {"img_size": 64}, 1, 0, 4),
    "relpos": ("vit_relpos_medium_patch16_cls_224", {"img_size": 64}, 1, 0, 4),
    "relpos, averaged": ("vit_relpos_small_patch16_224", {"img_size": 64}, 0, 0, 4),
    "relpos, one bias for all": ("vit_srelpos_small_patch16_224", {"img_size": 64}, 0, 0, 4),
    "tipsv2": ("vit_base_patch14_reg1_tipsv2", {"img_size": 56}, 1, 1, 4),
    "aimv2": ("aimv2_large_patch14_224", {"img_size": 56}, 0, 0, 4),
    "radio": ("vit_so400m_patch16_radio_v4", {"img_size": 64}, 1, 9, 4),
    "registers without class token": ("vit_medium_patch16_reg4_gap_256", {"img_size": 64}, 0, 4, 4),
    "max pooling": ("vit_base_patch16_224", {"img_size": 64, "global_pool": "max"}, 1, 0, 4),
}  # fmt: skip
# Blocks in which no norm comes between attention and MLP.
OTHER_BLOCKS = {
    "eva02-clip enormous": ("eva02_enormous_patch14_clip_224", {"img_size": 56}, POST_NORM),
    "post-norm": ("vit_base_patch16_224", {"img_size": 64, "block_fn": ResPostBlock}, POST_NORM),
    "relpos, post-norm": ("vit_relpos_medium_patch16_rpn_224", {"img_size": 64}, POST_NORM),
    "parallel": ("vit_base_patch16_224", {"img_size": 64, "block_fn": ParallelScalingBlock}, PARALLEL),
    "parallel, differential": ("vit_base_patch16_224", {"img_size": 64, "block_fn": DiffParallelScalingBlock}, PARALLEL),
    "parallel things": ("vit_small_patch16_18x2_224", {"img_size": 64}, PARALLEL),
}  # fmt: skip

SMALL_TOWER = {"image_size": 32, "patch_size": 8, "width": WIDTH, "layers": LAYERS, "head_width": 16}
# Family: open_clip's architecture, what to change of its tower, and of timm's model if that is the tower.
OPEN_CLIP = {
    "clip": ("ViT-B-32-quickgelu", SMALL_TOWER, {}),
    "openclip": ("ViT-bigG-14", SMALL_TOWER, {}),
    "clipa": ("ViT-L-14-CLIPA", SMALL_TOWER, {}),
    "coca": ("coca_ViT-B-32", {**SMALL_TOWER, "attn_pooler_queries": 5, "attn_pooler_heads": 2}, {}),
    "clip, normed queries and keys": ("ViT-B-32", {**SMALL_TOWER, "qk_norm": True, "scale_attn": True, "scale_fc": True}, {}),
    "clip, LayerScale": ("ViT-M-16-alt", SMALL_TOWER, {}),
    "siglip": ("ViT-B-16-SigLIP", {"image_size": 64}, TINY | {"img_size": 64}),
    "eva-clip": ("EVA01-g-14", {"image_size": 56}, TINY | {"img_size": 56}),
    "eva02-clip": ("EVA02-B-16", {"image_size": 64}, TINY | {"img_size": 64}),
    "pe-core": ("PE-Core-B-16", {"image_size": 64}, TINY | {"img_size": 64, "attn_pool_num_heads": 2}),
    # Their convolutions fix the width.
    "vitamin": ("ViTamin-S", {"image_size": 64}, {"depth": LAYERS, "img_size": 64}),
    "mobileclip": ("MobileCLIP-B", {"image_size": 64}, {"depth": LAYERS, "img_size": 64}),
}  # fmt: skip
SAME_TOWER = {
    "vit-l-14": "clip", "laion400m": "openclip", "datacomp": "openclip", "dfn": "clip", "metaclip": "clip",
    "metaclip2": "clip", "augreg-in21k": "augreg", "dinov3-sat": "dinov3", "mobileclip2": "mobileclip",
}  # fmt: skip


def test_every_family_with_an_alias_has_a_small_member_here():
    families = {
        alias if alias == "vit-l-14" else alias.partition("-vit")[0].removesuffix("-s")
        for alias in ALIASES
        if alias not in ("vitamin-b", "vitamin-l")
    }
    assert families - SAME_TOWER.keys() <= TIMM.keys() | OPEN_CLIP.keys()
    assert set(SAME_TOWER) <= families


def timm_member(model, changes):
    made = timm.create_model(model, num_classes=0, **(TINY | changes))
    layout = layout_of(made)
    size = made.patch_embed.img_size[0]
    return backbone_of(
        loaded(f"timm:{model}", made, layout, num_layers=len(made.blocks), width=made.embed_dim, size=size)
    )


def noise_for(backbone):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, backbone.spec.input_size, backbone.spec.input_size, generator=generator)


def assert_same(got, wanted, taps):
    assert got.taps.keys() == wanted.taps.keys() == set(taps)
    for tap in taps:
        for tokens, expected in zip(got.taps[tap], wanted.taps[tap], strict=True):
            torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.final, wanted.final, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.output, wanted.output, rtol=1e-4, atol=1e-5)


def pooled_like(backbone, final, output):
    """Whether the output is the class token or the average of the patches, projected if there is a projection."""
    prefix, projection = backbone.layout.num_prefix_tokens, backbone.projection
    candidates = [final[:, 0], final[:, prefix:].mean(1)]
    if projection is not None:
        candidates = [candidate @ projection for candidate in candidates]
    return any(
        candidate.shape == output.shape and torch.allclose(candidate, output, rtol=1e-4, atol=1e-5)
        for candidate in candidates
    )


def assert_embedding(backbone, got, embedding):
    """The output follows from the tokens alone, or it is the embedding, projected if there is a projection."""
    if embedding is None:
        assert pooled_like(backbone, got.final, got.output)
    else:
        assert embedding.shape == (2, backbone.embedding_point.width)
        assert not pooled_like(backbone, got.final, got.output)
        projected = embedding if backbone.projection is None else embedding @ backbone.projection
        torch.testing.assert_close(projected, got.output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", TIMM)
def test_a_member_of_a_timm_family(family):
    model, changes, class_token, registers, side = TIMM[family]
    if not timm.is_model(model):
        pytest.skip(f"timm {timm.__version__} has no {model}")
    backbone = timm_member(model, changes)
    assert backbone.layout == TokenLayout(bool(class_token), registers, (side, side))
    images = noise_for(backbone)
    got, embedding = record(backbone, images)
    assert_same(got, timm_forward(backbone.module, images), TAPS)
    assert_embedding(backbone, got, embedding)
    self_test(backbone, CPU)
    prefix = backbone.layout.num_prefix_tokens
    with torch.inference_mode():
        final, blocks = backbone.module.forward_intermediates(images, output_fmt="NLC")
    for tokens, patches in zip(got.taps["block"], blocks, strict=True):
        torch.testing.assert_close(tokens[:, prefix:], patches, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.final, final, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", OTHER_BLOCKS)
def test_blocks_without_a_second_norm_before_the_mlp(kind):
    model, changes, taps = OTHER_BLOCKS[kind]
    backbone = timm_member(model, changes)
    assert backbone.taps == taps
    images = noise_for(backbone)
    got, embedding = record(backbone, images)
    assert_same(got, timm_forward(backbone.module, images), taps)
    assert_embedding(backbone, got, embedding)
    self_test(backbone, CPU)
    with pytest.raises(BackboneError) as caught:
        backbone.tap_point("norm2", 0)
    form = "parallel" if taps == PARALLEL else "post-norm"
    assert str(caught.value) == (
        f"the blocks of timm:{model} have no tap 'norm2' ({form} blocks); they have {', '.join(taps)}"
    )


def open_clip_member(monkeypatch, family, projection_bias=False):
    architecture, tower_changes, trunk_changes = OPEN_CLIP[family]
    config = open_clip.get_model_config(architecture)
    config["vision_cfg"] |= tower_changes
    config["embed_dim"] = (
        12 if "width" in tower_changes or "embed_dim" in trunk_changes else config["embed_dim"]
    )
    if config["vision_cfg"].get("timm_proj") == "none":
        config["embed_dim"] = WIDTH
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **trunk_changes))
    name = ModelName("tiny", "open_clip", "tiny/any")
    model = _untrained(name)
    tower = randomise(model.visual)
    if hasattr(tower, "output_tokens"):
        tower.output_tokens = False
    head = getattr(getattr(tower, "trunk", None), "head", None)
    if getattr(head, "bias", None) is not None and not projection_bias:
        torch.nn.init.zeros_(head.bias)  # as in PE, which was converted from a matrix
    stated = {"position_embedding": "as stored", **stated_preprocessing(name, model, Preprocessing())}
    return _backbone(name, model, stated, {"origin": "memory"})


# Family: whether there is a matrix that projects, and whether the embedding is more than a token.
EMBEDDINGS = {
    "clip": (True, False), "openclip": (True, False), "clipa": (True, True), "coca": (False, True),
    "clip, normed queries and keys": (True, False), "clip, LayerScale": (True, False), "siglip": (False, True),
    "eva-clip": (True, False), "eva02-clip": (True, False), "pe-core": (True, True), "vitamin": (True, True),
    "mobileclip": (True, False),
}  # fmt: skip


@pytest.mark.parametrize("family", OPEN_CLIP)
def test_a_member_of_an_open_clip_family(monkeypatch, family):
    backbone = open_clip_member(monkeypatch, family)
    images = noise_for(backbone)
    got, embedding = record(backbone, images)
    assert ((backbone.projection is not None), embedding is not None) == EMBEDDINGS[family]
    if backbone.projection is not None:
        assert backbone.projection.shape == (backbone.spec.width, got.output.shape[1])
    if hasattr(backbone, "trunk"):
        wanted = timm_forward(backbone.trunk, images)
        with torch.inference_mode():
            wanted = type(wanted)(wanted.taps, wanted.final, backbone.module.head(wanted.output))
    else:
        wanted = open_clip_forward(backbone.module, images)
    assert_same(got, wanted, TAPS)
    assert_embedding(backbone, got, embedding)
    self_test(backbone, CPU)
    with torch.inference_mode():
        own = backbone.module.forward_intermediates(images, output_fmt="NLC")
    prefix = backbone.layout.num_prefix_tokens
    for tokens, patches in zip(got.taps["block"], own["image_intermediates"], strict=True):
        torch.testing.assert_close(tokens[:, prefix:], patches, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.output, own["image_features"], rtol=1e-4, atol=1e-5)


def test_a_projection_with_a_bias_is_no_matrix(monkeypatch):
    """EVA-CLIP's projection has one: the tower's own output is cached instead."""
    backbone = open_clip_member(monkeypatch, "eva02-clip", projection_bias=True)
    assert backbone.projection is None
    got, embedding = record(backbone, noise_for(backbone))
    assert embedding.shape == (2, 12)
    torch.testing.assert_close(embedding, got.output)
    self_test(backbone, CPU)
