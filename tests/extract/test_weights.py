"""Loading backbones: which weights are taken, which are refused, and with which preprocessing."""

import os
import pickle
import re
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.model import resize_pos_embed
from PIL import Image
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import nn

from featcache.extraction.backbones import load_backbone
from featcache.extraction.backbones.base import TokenLayout
from featcache.extraction.backbones.checkpoint import choice_text
from featcache.extraction.backbones.checkpoint_names import _EMBEDDINGS, find_prefixes, to_timm_names
from featcache.extraction.backbones.timm_vit import why_not_supported
from featcache.extraction.backbones.timm_weights import load_state
from featcache.extraction.backbones.weights import fit_position_embedding, state_digest
from featcache.extraction.forward_pass.selftest import self_test
from featcache.extraction.models.names import resolve_model
from featcache.extraction.models.preprocessing import preset
from featcache.extraction.requests.request import ExtractRequest
from featcache.store.errors import BackboneError, RequestError, UnknownNameError

from .oracle import gelu, open_clip_forward, quick_gelu, timm_forward
from .tiny import noise, randomise

TIMM_TINY = "timm:test_vit.r160_in1k"
OPEN_CLIP_TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}


def save(state, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def tiny_state():
    """Random weights of timm's test_vit (6 blocks of width 64, 160 px), with its classifier."""
    torch.manual_seed(0)
    return timm.create_model("test_vit").state_dict()


def test_the_file_format_does_not_change_the_digest(tmp_path, tiny_state):
    bare = {name: tensor for name, tensor in tiny_state.items() if not name.startswith("head.")}
    files = {
        "a.safetensors": tiny_state,
        "b.pt": tiny_state,
        "c.pth": {"state_dict": tiny_state, "epoch": 3},
        "d.bin": {"model": bare},
        "without-head.safetensors": bare,
    }
    loaded = [load_backbone(resolve_model(TIMM_TINY), save(s, tmp_path / f)) for f, s in files.items()]
    model = timm.create_model("test_vit", num_classes=0)
    model.load_state_dict(bare)
    assert {backbone.spec.weights_digest for backbone in loaded} == {state_digest(model)}
    assert not loaded[0].module.training
    changed = {**bare, "norm.bias": bare["norm.bias"] + 1e-6}
    other = load_backbone(resolve_model(TIMM_TINY), save(changed, tmp_path / "e.pt"))
    assert other.spec.weights_digest != loaded[0].spec.weights_digest


def test_the_digest_covers_names_shapes_and_types():
    def digest(name, shape, dtype):
        module = nn.Module()
        module.register_buffer(name, torch.zeros(shape, dtype=dtype))
        return state_digest(module)

    variants = [
        ("a", (2, 3), torch.float16),
        ("b", (2, 3), torch.float16),
        ("a", (3, 2), torch.float16),
        ("a", (2, 3), torch.bfloat16),
        ("a", (), torch.int64),
    ]
    assert len({digest(*variant) for variant in variants}) == len(variants)


def test_a_loaded_timm_model_is_the_one_of_the_file(tmp_path, tiny_state):
    backbone = load_backbone(resolve_model(TIMM_TINY), save(tiny_state, tmp_path / "weights.safetensors"))
    spec, loaded = backbone.spec, backbone.loaded
    assert (spec.architecture, spec.num_layers, spec.width, spec.input_size) == ("timm:test_vit", 6, 64, 160)
    assert loaded.layout == TokenLayout(True, 0, (10, 10))
    assert loaded.weights_source.keys() == {"origin", "file", "sha256"}
    assert (loaded.weights_source["origin"], loaded.weights_source["file"]) == ("file", "weights.safetensors")
    assert re.fullmatch("[0-9a-f]{64}", loaded.weights_source["sha256"])
    image = loaded.transform(Image.new("RGB", (200, 170), "red"))
    self_test(backbone, torch.device("cpu"))
    with torch.inference_mode():
        got = backbone.forward(image[None])[0]
    bare = {name: tensor for name, tensor in tiny_state.items() if not name.startswith("head.")}
    torch.testing.assert_close(got, timm_forward(bare, image[None], 2).output[0], rtol=1e-4, atol=1e-5)


def test_layer_scale_of_deit3_is_found_under_its_published_name():
    """Facebook's checkpoints call it ``blocks.i.gamma_1``, timm ``blocks.i.ls1.gamma``."""
    torch.manual_seed(0)
    source, target = (timm.create_model("test_vit", num_classes=0, init_values=0.1) for _ in range(2))
    published = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): t for name, t in source.state_dict().items()}
    assert "blocks.0.gamma_1" in published
    load_state(target, published)
    assert state_digest(target) == state_digest(source)


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("model", [TIMM_TINY, "open_clip:tiny/any"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_is_never_executed(tmp_path, monkeypatch, model, writer):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", OPEN_CLIP_TINY)
    marker, file = tmp_path / "executed", tmp_path / "evil.pt"
    if writer == "torch":
        torch.save({"norm.weight": Evil(marker)}, file)
    else:
        file.write_bytes(pickle.dumps({"norm.weight": Evil(marker)}))
    with pytest.raises(BackboneError, match=re.escape(f"weights file {file} ")) as caught:
        load_backbone(resolve_model(model), file)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists(), "the pickle was harmless"


def without_block_5(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("blocks.5.")}


def with_block_6(state):
    return state | {name.replace("blocks.5.", "blocks.6."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: timm.create_model("test_resnet").state_dict(), "it lacks cls_token, pos_embed, "),
        (lambda state: timm.create_model("test_vit3").state_dict(), "size mismatch for "),
        (without_block_5, "it lacks blocks.5.norm1.weight, "),
        (with_block_6, "it has, and the model has not, blocks.6."),
        (lambda state: {}, "it lacks cls_token, pos_embed, "),
    ],
    ids=["resnet", "other-width", "too-shallow", "too-deep", "empty"],
)
def test_weights_of_another_model_are_refused(tmp_path, tiny_state, change, reason):
    file = save(change(tiny_state), tmp_path / "other.pt")
    with pytest.raises(BackboneError) as caught:
        load_backbone(resolve_model(TIMM_TINY), file)
    assert str(caught.value).startswith(f"weights file {file} does not fit {TIMM_TINY} ({reason}")
    assert len(str(caught.value).removeprefix(f"weights file {file}")) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("weights.safetensors", b"hello", "cannot be read (Error while deserializing header"),
        ("weights.pt", b"hello", "it must be safetensors, or a state dict saved by torch"),
        ("weights.pt", [1, 2], "holds list, not a state dict"),
    ],
)
def test_files_that_hold_no_weights_are_refused(tmp_path, file, content, message):
    path = tmp_path / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(BackboneError, match=re.escape(message)) as caught:
        load_backbone(resolve_model(TIMM_TINY), path)
    assert str(path) in str(caught.value)


@pytest.fixture(scope="module")
def dinov2_file(tmp_path_factory):
    """Random weights of DINOv2 ViT-S/14 in their published form, for 518 px."""
    torch.manual_seed(0)
    published = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    assert published["pos_embed"].shape[1] == 1 + 37 * 37
    return save(published, tmp_path_factory.mktemp("dinov2") / "dinov2.safetensors")


@pytest.mark.parametrize(
    ("which", "filter_", "positions"),
    [
        ("own", Image.Resampling.BICUBIC, "bicubic, offset 0.1"),
        ("paper", Image.Resampling.BILINEAR, "bicubic, antialiased"),
    ],
)
def test_dinov2_is_resized_to_224_px_and_preprocessed_as_its_authors_or_the_paper_do(
    dinov2_file, which, filter_, positions
):
    """Against the same steps written with Pillow and numpy: shorter side to 256, center 224, ImageNet's statistics."""
    name = resolve_model("dinov2-vit-s-14")
    backbone = load_backbone(name, dinov2_file, preprocessing=preset(name, which))
    assert (backbone.spec.input_size, backbone.layout.num_patches) == (224, 256)
    assert backbone.spec.preprocessing["position_embedding"] == positions
    assert backbone.module.pos_embed.shape == (1, 257, 384)

    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    image = Image.fromarray(pixels)
    resized = image.resize((341, 256), filter_).crop((58, 16, 58 + 224, 16 + 224))
    wanted = (np.asarray(resized) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(backbone.transform(image), wanted.transpose(2, 0, 1), atol=1e-5)


def test_timms_own_name_of_dinov2_runs_as_timm_does(dinov2_file):
    backbone = load_backbone(resolve_model("timm:vit_small_patch14_dinov2.lvd142m"), dinov2_file)
    stated = backbone.spec.preprocessing
    assert (backbone.spec.input_size, backbone.layout.grid) == (518, (37, 37))
    assert (stated["interpolation"], stated["crop_pct"], stated["position_embedding"]) == (
        "bicubic",
        1.0,
        "as stored",
    )


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("deit_small_distilled_patch16_224", {"img_size": 64}),
        ("vit_base_patch16_siglip_224", {"img_size": 64}),
        ("beit_base_patch16_224", {"img_size": 64}),
        ("eva02_base_patch14_224", {"img_size": 56}),
        ("eva02_tiny_patch14_224", {"img_size": 56}),
        ("vit_small_patch16_dinov3_qkvb", {"img_size": 64}),
        ("vit_pe_core_base_patch16_224", {"img_size": 64, "attn_pool_num_heads": 2}),
        ("vit_relpos_small_patch16_224", {"img_size": 64}),
    ],
)
def test_every_family_takes_its_own_weights_and_no_others(model, changes):
    source, target = (timm.create_model(model, **SMALL, **changes) for _ in range(2))
    state = randomise(source).state_dict()
    load_state(target, state | {"head.weight": torch.zeros(5, 32)})
    assert state_digest(target) == state_digest(source)
    name = next(key for key in state if key.startswith("blocks.1.attn"))
    with pytest.raises(ValueError, match=re.escape(f"it lacks {name}")):
        load_state(target, {key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match=re.escape("it has, and the model has not, blocks.2.norm1.weight")):
        load_state(target, state | {"blocks.2.norm1.weight": state["blocks.1.norm1.weight"]})


def test_the_published_names_of_dinov3(capsys):
    """Meta's checkpoints say storage tokens and ``ls1.gamma``, and keep the biases of queries, keys and values together."""
    source, target = (
        timm.create_model("vit_small_patch16_dinov3_qkvb", **SMALL, img_size=64) for _ in range(2)
    )
    state = randomise(source).state_dict()
    published = {"mask_token": torch.zeros(1, 32), "storage_tokens": state.pop("reg_token")}
    for name, tensor in state.items():
        if name.endswith("attn.q_bias"):
            values = state[name.replace("q_bias", "v_bias")]
            published[name.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros(32), values])
        elif not name.endswith("v_bias"):
            published[re.sub(r"gamma_(\d)", r"ls\1.gamma", name)] = tensor
    load_state(target, published)
    assert state_digest(target) == state_digest(source)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("model", "other", "reason"),
    [
        ("vit_base_patch16_224", {"patch_size": 8}, "its patch_embed.proj.weight has shape [32, 3, 8, 8], expected [32, 3, 16, 16]"),
        ("beit_base_patch16_224", {"img_size": 96}, "its blocks.0.attn.relative_position_bias_table has shape [124, 2], expected [52, 2]"),
    ],
)  # fmt: skip
def test_weights_that_timm_would_resize_in_float32_are_refused(tmp_path, monkeypatch, model, other, reason):
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
    file = save(timm.create_model(model, **(small | other)).state_dict(), tmp_path / "other.pt")
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **small))
    with pytest.raises(BackboneError) as caught:
        load_backbone(resolve_model(f"timm:{model}"), file)
    assert str(caught.value) == f"weights file {file} does not fit timm:{model} ({reason})"


@pytest.mark.parametrize("key", ["visual.positional_embedding", "positional_embedding"])
def test_a_foreign_position_embedding_of_another_size_is_refused(tmp_path, tiny_state, key):
    """In the names of other libraries timm would resize it in float32."""
    file = save(tiny_state | {key: torch.zeros(26, 64)}, tmp_path / "foreign.pt")
    with pytest.raises(BackboneError, match=re.escape(f"its {key} has 26 tokens, expected 101")):
        load_backbone(resolve_model(TIMM_TINY), file)


# Models that are not supported; nothing is downloaded to find out.


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm:resnet18", "ResNet is not a plain vision transformer, with the same tokens in all layers"),
        ("timm:swin_tiny_patch4_window7_224", "SwinTransformer is not a plain vision transformer"),
        ("timm:convnext_tiny", "ConvNeXt is not a plain vision transformer"),
        ("timm:hiera_tiny_224", "Hiera is not a plain vision transformer"),
        ("timm:cait_xxs24_224", "Cait is not a plain vision transformer"),
        ("timm:samvit_base_patch16", "VisionTransformerSAM is not a plain vision transformer"),
        ("timm:naflexvit_base_patch16_siglip", "it takes images of any size and shape (NaFlex)"),
        ("open_clip:RN50-quickgelu/openai", "its image tower (ModifiedResNet) is not a vision transformer"),
        ("open_clip:MobileCLIP2-S0/dfndr2b", "FastVit is not a plain vision transformer"),
    ],
)
def test_other_models_are_refused(name, reason):
    if name.startswith("timm:") and not timm.is_model(name.removeprefix("timm:")):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    with pytest.raises(BackboneError, match=f"^{re.escape(f'{name} is not supported: {reason}')}") as caught:
        load_backbone(resolve_model(name))
    assert "\n" not in str(caught.value)


def test_blocks_that_are_not_known_are_refused():
    class NewBlock(timm.models.vision_transformer.Block):
        pass

    model = timm.create_model("test_vit", block_fn=NewBlock)
    assert why_not_supported(model) == "its blocks (NewBlock) are not known"


# open_clip.


def test_gelu_where_quick_gelu_was_trained_must_be_meant(tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", OPEN_CLIP_TINY)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"any": {"quick_gelu": True}, "own": {}})
    torch.manual_seed(0)
    path = save(open_clip.create_model("tiny").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(
        RequestError, match=r"write open_clip:tiny-quickgelu/any, or open_clip:tiny-gelu/any to comp"
    ):
        load_backbone(resolve_model("open_clip:tiny/any"), path)
    backbone = load_backbone(resolve_model("open_clip:tiny-gelu/any"), path)
    assert backbone.spec.architecture == "open_clip:tiny-gelu", "a cache of its own"
    tower = backbone.loaded.module
    assert {type(block.mlp.gelu) for block in tower.transformer.resblocks} == {torch.nn.GELU}
    with pytest.raises(
        RequestError, match="-gelu is for weights that were trained with QuickGELU; leave it out"
    ):
        load_backbone(resolve_model("open_clip:tiny-gelu/own"), path)


@pytest.mark.parametrize("activation", [gelu, quick_gelu])
def test_a_loaded_open_clip_tower_is_the_one_of_the_file(tmp_path, monkeypatch, activation):
    config = OPEN_CLIP_TINY | {"quick_gelu": activation is quick_gelu}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    torch.manual_seed(0)
    state = open_clip.create_model("tiny").state_dict()
    name = resolve_model("open_clip:tiny/any")
    backbone, other = (
        load_backbone(name, save(state, tmp_path / file)) for file in ("weights.safetensors", "weights.pt")
    )
    assert backbone.spec == other.spec
    # The text tower is no part of the backbone.
    other_text = state | {"text_projection": state["text_projection"] + 1}
    assert load_backbone(name, save(other_text, tmp_path / "text.pt")).spec == backbone.spec
    spec, loaded = backbone.spec, backbone.loaded
    assert (spec.architecture, spec.num_layers, spec.width, spec.input_size) == ("open_clip:tiny", 2, 16, 32)
    assert (loaded.layout, loaded.module.training) == (TokenLayout(True, 0, (4, 4)), False)
    assert spec.preprocessing["interpolation"] == "bicubic"
    assert spec.preprocessing["mean"] == list(open_clip.OPENAI_DATASET_MEAN)
    self_test(backbone, torch.device("cpu"))
    image = loaded.transform(Image.new("RGB", (60, 40), "red"))
    tower = {n.removeprefix("visual."): t for n, t in state.items() if n.startswith("visual.")}
    wanted = open_clip_forward(tower, image[None], 2, activation).output
    with torch.inference_mode():
        torch.testing.assert_close(backbone.forward(image[None]), wanted, rtol=1e-4, atol=1e-5)


def test_open_clip_weights_of_another_model_are_refused(tmp_path, monkeypatch, tiny_state):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", OPEN_CLIP_TINY)
    file = save(tiny_state, tmp_path / "other.pt")
    with pytest.raises(BackboneError) as caught:
        load_backbone(resolve_model("open_clip:tiny/any"), file)
    assert str(caught.value).startswith(
        f"weights file {file} does not fit open_clip:tiny/any (Missing key(s) in state_dict: "
    )
    assert len(str(caught.value).removeprefix(f"weights file {file}")) < 300


def tiny_tower(monkeypatch, vision, **changes):
    """A tiny architecture of open_clip, registered, and its random weights."""
    config = OPEN_CLIP_TINY | changes | {"vision_cfg": OPEN_CLIP_TINY["vision_cfg"] | vision}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    model = open_clip.create_model("tiny")
    randomise(model.visual)
    return model.state_dict()


COCA = {"attentional_pool": True, "attn_pooler_queries": 3, "attn_pooler_heads": 2, "output_tokens": True}
CAPTIONS = {
    "context_length": 8,
    "vocab_size": 32,
    "width": 16,
    "heads": 2,
    "layers": 1,
    "attn_pooler_heads": 2,
}


@pytest.mark.parametrize(
    ("vision", "changes"),
    [
        ({}, {}),
        (COCA, {"multimodal_cfg": CAPTIONS, "custom_text": True}),
        ({"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "linear", "image_size": 160}, {"custom_text": True}),
    ],
    ids=["clip", "coca", "timm"],
)  # fmt: skip
@pytest.mark.parametrize("tower_alone", [False, True])
def test_the_image_tower_is_loaded_as_open_clip_loads_it(tmp_path, monkeypatch, vision, changes, tower_alone):
    file = save(tiny_tower(monkeypatch, vision, **changes), tmp_path / "weights.pt")
    wanted = open_clip.create_model("tiny", pretrained=str(file)).visual
    if tower_alone:
        save(wanted.state_dict(), file)
    backbone = load_backbone(resolve_model("open_clip:tiny/any"), file)
    assert backbone.spec.weights_digest == state_digest(wanted)
    assert backbone.spec.preprocessing["position_embedding"] == "as stored"
    self_test(backbone, torch.device("cpu"))


def test_a_text_tower_of_another_library_is_not_needed(tmp_path, monkeypatch):
    """Such as RoBERTa's, which would need its library and its configuration from the Hub."""
    state = tiny_tower(monkeypatch, {})
    text = {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base"}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", OPEN_CLIP_TINY | {"text_cfg": text})
    backbone = load_backbone(resolve_model("open_clip:tiny/any"), save(state, tmp_path / "weights.pt"))
    assert backbone.spec.num_layers == 2


def test_open_clip_weights_for_another_input_size_are_resized_as_open_clip_does_it(tmp_path, monkeypatch):
    state = tiny_tower(monkeypatch, {"image_size": 56})
    file = save(state, tmp_path / "weights.pt")
    tiny_tower(monkeypatch, {})
    backbone = load_backbone(resolve_model("open_clip:tiny/any"), file)
    resize_pos_embed(state, open_clip.create_model("tiny"))
    wanted = state["visual.positional_embedding"]
    assert wanted.shape == (17, 16)
    torch.testing.assert_close(backbone.module.positional_embedding.data, wanted, rtol=0, atol=1e-6)
    assert backbone.spec.preprocessing["position_embedding"] == "bicubic, antialiased"


def test_unfinished_pooling_of_open_clip_is_refused(tmp_path, monkeypatch):
    state = tiny_tower(monkeypatch, {"attentional_pool": "parallel", "width": 16, "attn_pooler_heads": 2})
    reason = "its parallel attention pooling is marked as unfinished in open_clip"
    with pytest.raises(BackboneError, match=f"^open_clip:tiny/any is not supported: {reason}$"):
        load_backbone(resolve_model("open_clip:tiny/any"), save(state, tmp_path / "weights.pt"))


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_the_position_embedding_is_resized_as_timm_does_it(prefix):
    # In float64 instead of float32, so that the bits, and with them the key, do not depend on the processor.
    stored = torch.randn(1, 11 * 11 + prefix, 8)
    resized = fit_position_embedding(stored, prefix, (8, 8))
    expected = resample_abs_pos_embed(stored, new_size=[8, 8], old_size=[11, 11], num_prefix_tokens=prefix)
    torch.testing.assert_close(resized, expected, rtol=0, atol=1e-6)
    assert resized.shape == (1, 64 + prefix, 8)
    assert fit_position_embedding(resized, prefix, (8, 8)) is resized
    with pytest.raises(ValueError, match="its position embedding of 77 tokens is of no square image"):
        fit_position_embedding(torch.zeros(1, 77, 8), prefix, (8, 8))


# Files that hold more than one set of weights.


def other_state(state):
    return {name: tensor + 1 if name == "norm.weight" else tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("state_dict", "state_dict_ema"), "state_dict_ema"),
        (("model", "model_ema"), "model_ema"),
        (("model_ema", "state_dict"), "model_ema"),
        (("model", "state_dict"), "state_dict"),
        (("model", "ema"), "model"),
        (("model", "teacher", "optimizer"), "model"),
    ],
)
def test_of_several_sets_the_one_is_taken_that_timm_takes_and_that_is_said(
    tmp_path, tiny_state, names, taken
):
    from timm.models import load_state_dict

    sets = {
        name: {key: tensor + place if key == "norm.weight" else tensor for key, tensor in tiny_state.items()}
        for place, name in enumerate(names)
    }
    optimizer = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}}
    path = save({**sets, **(optimizer if "optimizer" in names else {}), "epoch": 3}, tmp_path / "w.pth")
    backbone = load_backbone(resolve_model(TIMM_TINY), path)
    got = backbone.module.state_dict()["norm.weight"]
    torch.testing.assert_close(got, load_state_dict(str(path))["norm.weight"], rtol=0, atol=0)
    source = backbone.loaded.weights_source
    assert source["taken"] == taken
    assert sorted(source["not_taken"]) == sorted({*sets} - {taken, "optimizer"})
    assert f"{taken} is taken, not " in choice_text(source)


@pytest.mark.parametrize("key", ["state_dict", "state_dict_ema", "deep/inner", "teacher."])
def test_another_set_can_be_chosen(tmp_path, tiny_state, key):
    wanted = other_state(tiny_state)
    content = {"state_dict": tiny_state, "state_dict_ema": tiny_state, "deep": {"inner": tiny_state}}
    if key == "teacher.":
        content = {"state_dict": {**{f"student.{k}": v for k, v in tiny_state.items()}}}
        content["state_dict"] |= {f"teacher.{k}": v for k, v in wanted.items()}
    elif key == "deep/inner":
        content["deep"]["inner"] = wanted
    else:
        content[key] = wanted
    backbone = load_backbone(resolve_model(TIMM_TINY), save(content, tmp_path / "w.pth"), key)
    torch.testing.assert_close(backbone.module.state_dict()["norm.weight"], wanted["norm.weight"])
    assert backbone.loaded.weights_source["taken"] == key


def test_one_set_is_taken_whatever_it_is_called_and_nothing_is_said(tmp_path, tiny_state):
    wrapped = {f"module.{name}": tensor for name, tensor in tiny_state.items()}
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in tiny_state.items()}
    digests = set()
    for content in (
        {"module": tiny_state, "args": None},
        {"a": {"b": tiny_state}},
        wrapped,
        {"model": compiled},
    ):
        backbone = load_backbone(resolve_model(TIMM_TINY), save(content, tmp_path / "w.pth"))
        digests.add(backbone.spec.weights_digest)
        assert choice_text(backbone.loaded.weights_source) is None
    assert len(digests) == 1


def test_sets_without_a_usual_name_are_listed(tmp_path, tiny_state):
    path = save({"first": tiny_state, "second": tiny_state}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"several sets of weights: first, second; .*--weights-key first"):
        load_backbone(resolve_model(TIMM_TINY), path)
    with pytest.raises(UnknownNameError, match="unknown set of weights 'mine'; valid: first, second"):
        load_backbone(resolve_model(TIMM_TINY), path, "mine")
    with pytest.raises(RequestError, match="holds one set of weights"):
        load_backbone(resolve_model(TIMM_TINY), save(tiny_state, tmp_path / "one.pth"), "ema")


def below(prefix, state, change=0.0):
    return {prefix + name: tensor + change for name, tensor in state.items()}


def chunked(state, size):
    """As sharded training of DINOv2 saves blocks: in chunks, the number of a block counted through all of them."""
    return {
        re.sub(r"^blocks\.(\d+)", lambda block: f"blocks.{int(block[1]) // size}.{block[1]}", name): tensor
        for name, tensor in state.items()
    }


FORMS = {
    "a prefix": lambda state: {"model": below("backbone.", state)},
    "lightning": lambda state: {"state_dict": below("model.", state), "epoch": 3},
    "a wrapper and a prefix": lambda state: below("module.encoder.", state),
    "a teacher and a student as sets": lambda state: {
        "teacher": below("backbone.", state) | {"head.mlp.0.weight": torch.ones(2)},
        "student": below("module.backbone.", state, 1.0),
        "epoch": 100,
    },
    "a teacher and a student in one set": lambda state: {
        "model": below("teacher.backbone.", state) | below("student.backbone.", state, 1.0)
    },
    "open_clip": lambda state: below("visual.trunk.", state),
    "chunked blocks": lambda state: {"teacher": below("backbone.", chunked(state, 2))},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_checkpoints_give_the_same_weights(tmp_path, tiny_state, form):
    right = load_backbone(resolve_model(TIMM_TINY), save(tiny_state, tmp_path / "right.pth"))
    backbone = load_backbone(resolve_model(TIMM_TINY), save(FORMS[form](tiny_state), tmp_path / "w.pth"))
    assert backbone.spec.weights_digest == right.spec.weights_digest
    said = choice_text(backbone.loaded.weights_source)
    assert (said is not None) == ("student" in form)
    assert said is None or ("teacher" in said.split(", not ")[0] and "student" in said.split(", not ")[1])


def test_several_backbones_without_a_teacher_are_listed(tmp_path, tiny_state):
    path = save(below("first.", tiny_state) | below("second.", tiny_state), tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"begin with 'first\.', 'second\.'; .*--weights-key first\."):
        load_backbone(resolve_model(TIMM_TINY), path)
    assert load_backbone(resolve_model(TIMM_TINY), path, "second.").spec.num_layers


@pytest.mark.parametrize("prefix", ["backbone.", "model.", "teacher.backbone."])
def test_a_prefix_may_be_named(tmp_path, tiny_state, prefix):
    path = save({"model": below(prefix, tiny_state)}, tmp_path / "w.pth")
    right = save(tiny_state, tmp_path / "right.pth")
    digests = [
        load_backbone(resolve_model(TIMM_TINY), *arguments).spec.weights_digest
        for arguments in ((right,), (path, prefix), (path,))
    ]
    assert len({*digests}) == 1


def test_names_of_transformers_are_translated():
    """Against the modules of transformers, where it is installed: the same output for the same image."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    import timm

    config = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "image_size": 32, "patch_size": 8, "mlp_ratio": 2,
    }  # fmt: skip
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    cases = [
        ("ViTModel", "ViTConfig", {}),
        ("Dinov2Model", "Dinov2Config", {"init_values": 1.0}),
        (
            "Dinov2WithRegistersModel",
            "Dinov2WithRegistersConfig",
            {"init_values": 1.0, "reg_tokens": 4, "no_embed_class": True},
        ),
    ]
    images = noise(3)
    for model_class, config_class, options in cases:
        torch.manual_seed(0)
        options_of = {**config, **({"num_register_tokens": 4} if "Registers" in model_class else {})}
        source = getattr(transformers, model_class)(getattr(transformers, config_class)(**options_of)).eval()
        eps = source.config.layer_norm_eps
        model = timm.models.VisionTransformer(
            **size, **options, num_classes=0, norm_layer=partial(torch.nn.LayerNorm, eps=eps)
        ).eval()
        state = to_timm_names(below("vit.", source.state_dict())).state
        missing, _ = model.load_state_dict(state, strict=False)
        assert not missing, model_class
        with torch.inference_mode():
            expected = source(images).last_hidden_state
            torch.testing.assert_close(model.forward_features(images), expected, rtol=1e-4, atol=1e-4)


def test_translated_names_are_those_of_timm(tiny_state):
    """Without transformers: the names that it gives to a ViT, written out by hand, lead back to the same tensors."""
    renamed = {}
    for name, tensor in tiny_state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if block is None:
            renamed[{value: key for key, value in _EMBEDDINGS.items()}.get(name, name)] = tensor
            continue
        place = f"vit.encoder.layer.{block[1]}"
        inside = {
            "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
        }.get(block[2])  # fmt: skip
        if inside is None:
            assert block[2] == "attn.qkv"
            for kind, part in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"{place}.attention.attention.{kind}.{block[3]}"] = part
        else:
            renamed[f"{place}.{inside}.{block[3]}"] = tensor
    translated = to_timm_names(
        {name if name.startswith("vit.") else f"vit.{name}": value for name, value in renamed.items()}
    ).state
    assert translated.keys() == tiny_state.keys()
    for name, tensor in tiny_state.items():
        torch.testing.assert_close(translated[name], tensor, rtol=0, atol=0)


def test_a_form_that_is_not_read_is_named_with_its_names(tmp_path, tiny_state):
    foreign = {
        name.replace("blocks.", "model.layers.").replace("attn.", "self_attn."): t
        for name, t in tiny_state.items()
    }
    with pytest.raises(
        BackboneError, match=r"lacks blocks.0.*; it has .*; its names are those of Hugging Face"
    ):
        load_backbone(resolve_model(TIMM_TINY), save(foreign, tmp_path / "w.pth"))


def test_what_is_no_tensor_is_left_out_and_a_file_without_tensors_is_refused(tmp_path, tiny_state):
    plain = load_backbone(resolve_model(TIMM_TINY), save(tiny_state, tmp_path / "a.pth"))
    mixed = load_backbone(
        resolve_model(TIMM_TINY), save({**tiny_state, "epoch": 3, 7: "x"}, tmp_path / "b.pth")
    )
    assert plain.spec.weights_digest == mixed.spec.weights_digest
    for content in ({"epoch": 3}, [1, 2], {"blocks.0.weight": "text"}):
        with pytest.raises(BackboneError, match=r"it lacks cls_token|holds list, not a state dict"):
            load_backbone(resolve_model(TIMM_TINY), save(content, tmp_path / "c.pth"))
    damaged = {**tiny_state, "norm.weight": "text"}
    with pytest.raises(BackboneError, match=r"does not fit .*lacks norm\.weight"):
        load_backbone(resolve_model(TIMM_TINY), save(damaged, tmp_path / "d.pth"))


def test_open_clip_knows_no_averaged_weights_so_the_choice_is_said(tmp_path):
    from featcache.extraction.backbones.checkpoint import OPEN_CLIP_ORDER, read_checkpoint

    state = {"visual.proj": torch.zeros(2)}
    path = save({"state_dict": state, "state_dict_ema": {"visual.proj": torch.ones(2)}}, tmp_path / "w.pt")
    checkpoint = read_checkpoint(path, OPEN_CLIP_ORDER)
    assert (checkpoint.taken, checkpoint.others) == ("state_dict", ("state_dict_ema",))
    assert not checkpoint.state["visual.proj"].any()


def test_a_request_remembers_how_weights_are_chosen_only_where_a_file_may_hold_several(tmp_path, tiny_state):
    def literal(name, **options):
        weights = save(tiny_state, tmp_path / name)
        request = ExtractRequest(TIMM_TINY, "digits", weights=weights, **options)
        return [*request.literals(resolve_model(TIMM_TINY), {})][1]

    assert literal("a.safetensors").keys() == {"model", "weights", "dataset", "dtype", "precision"}
    assert literal("a.pth")["weights_rule"] == "averaged weights first"
    assert literal("a.pth", weights_key="model")["weights_key"] == "model"
    with pytest.raises(RequestError, match="name it with --weights FILE"):
        ExtractRequest(TIMM_TINY, "digits", weights_key="ema")


def test_a_copy_of_all_tensors_below_a_prefix_is_told(tmp_path, tiny_state):
    both = {**tiny_state, **{f"ema.{name}": tensor + 1 for name, tensor in tiny_state.items()}}
    backbone = load_backbone(resolve_model(TIMM_TINY), save(both, tmp_path / "w.pth"))
    torch.testing.assert_close(backbone.module.state_dict()["norm.weight"], tiny_state["norm.weight"])
    assert "several sets of weights: the one without a name is taken, not ema." in choice_text(
        backbone.loaded.weights_source
    )
    other = load_backbone(resolve_model(TIMM_TINY), tmp_path / "w.pth", "ema.")
    torch.testing.assert_close(other.module.state_dict()["norm.weight"], tiny_state["norm.weight"] + 1)


def test_a_teacher_is_suggested_before_a_student():
    names = dict.fromkeys(("student.backbone.cls_token", "teacher.backbone.cls_token", "cls_token"))
    assert find_prefixes(names, "cls_token") == ["teacher.backbone.", "student.backbone."]
