"""Names of backbones, and loading them: which weights are taken, which are refused, and with which preprocessing."""

import os
import pickle
import re
from pathlib import Path

import huggingface_hub
import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import ResPostBlock
from torch import nn

from featcache.extract.backbones import load_backbone
from featcache.extract.backbones.base import state_digest
from featcache.extract.backbones.timm_vit import _load_state, _require_plain_vit
from featcache.extract.models import ALIASES, resolve_model
from featcache.extract.selftest import self_test
from featcache.extract.taps import Taps
from featcache.store.errors import BackboneError, RequestError, UnknownNameError

from .oracle import gelu, open_clip_forward, quick_gelu, timm_forward

TIMM_TINY = "timm:test_vit.r160_in1k"
OPEN_CLIP_TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}


# Names.


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_its_explicit_name(alias):
    model = resolve_model(alias)
    assert model.given == alias
    assert model.explicit == ALIASES[alias]
    again = resolve_model(model.explicit)
    assert (again.explicit, again.preprocessing) == (model.explicit, model.preprocessing)
    assert resolve_model(alias.upper()).explicit == model.explicit


@pytest.mark.parametrize("alias", ALIASES)
def test_the_libraries_know_every_alias(alias):
    model = resolve_model(alias)
    if model.family == "timm":
        assert model.name in timm.list_pretrained()
    else:
        architecture, _, tag = model.name.partition("/")
        assert tag in open_clip.list_pretrained_tags_by_model(architecture)


def test_clip_aliases_run_quick_gelu_as_openai_trained_them():
    for alias in ("vit-l-14", "clip-vit-l-14"):
        assert resolve_model(alias).explicit == "open_clip:ViT-L-14-quickgelu/openai"
    for explicit in ALIASES.values():
        if explicit.startswith("open_clip:"):
            architecture = explicit.removeprefix("open_clip:").partition("/")[0]
            assert open_clip.get_model_config(architecture)["quick_gelu"] is True


def test_dinov2_and_mae_run_at_224_after_a_bilinear_resize_to_256():
    changed = {alias for alias in ALIASES if resolve_model(alias).preprocessing}
    assert changed == {alias for alias in ALIASES if alias.startswith(("dinov2", "mae"))}
    for alias in changed:
        preprocessing = resolve_model(alias).preprocessing
        assert preprocessing["input_size"] == (3, 224, 224)
        assert 224 / preprocessing["crop_pct"] == 256
        assert preprocessing["interpolation"] == "bilinear"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit-l-41", "unknown model 'vit-l-41'; did you mean vit-l-14, "),
        ("dinov2-vits-14", "did you mean dinov2-vit-s-14, "),
        ("qqq", "unknown model 'qqq'; valid: clip-vit-b-32, "),
        ("timm:", "(or an explicit timm:NAME or open_clip:ARCHITECTURE/TAG)"),
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


# Weights from a file.


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
    assert (loaded.num_prefix_tokens, loaded.num_patches) == (1, 100)
    assert re.fullmatch(r"file:weights\.safetensors sha256:[0-9a-f]{64}", loaded.weights_source)
    image = loaded.transform(Image.new("RGB", (200, 170), "red"))
    self_test(backbone, torch.device("cpu"))
    with torch.inference_mode(), Taps(backbone, ("cls",)) as taps:
        got = taps.forward(image[None])["final"][0, 0, 0]
    bare = {name: tensor for name, tensor in tiny_state.items() if not name.startswith("head.")}
    torch.testing.assert_close(got, timm_forward(bare, image[None], 2).output[0], rtol=1e-4, atol=1e-5)


def test_layer_scale_of_deit3_is_found_under_its_published_name():
    """Facebook's checkpoints call it ``blocks.i.gamma_1``, timm ``blocks.i.ls1.gamma``."""
    torch.manual_seed(0)
    source, target = (timm.create_model("test_vit", num_classes=0, init_values=0.1) for _ in range(2))
    published = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): t for name, t in source.state_dict().items()}
    assert "blocks.0.gamma_1" in published
    _load_state(target, published)
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


def test_dinov2_is_resized_to_its_224_px_and_preprocessed_as_the_field_does(tmp_path):
    """Against the same steps written with Pillow and numpy: shorter side to 256, centre 224, ImageNet's statistics."""
    torch.manual_seed(0)
    published = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    assert published["pos_embed"].shape[1] == 1 + 37 * 37
    file = save(published, tmp_path / "dinov2.safetensors")
    backbone = load_backbone(resolve_model("dinov2-vit-s-14"), file)
    assert (backbone.spec.input_size, backbone.loaded.num_patches) == (224, 256)
    assert backbone.module.pos_embed.shape == (1, 257, 384)

    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    image = Image.fromarray(pixels)
    resized = image.resize((341, 256), Image.Resampling.BILINEAR).crop((58, 16, 58 + 224, 16 + 224))
    wanted = (np.asarray(resized) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(backbone.transform(image), wanted.transpose(2, 0, 1), atol=1e-5)


# Weights from the hub.


@pytest.mark.parametrize("name", [TIMM_TINY, "clip-vit-b-32"])
def test_without_weights_and_network_the_next_step_is_named(tmp_path, monkeypatch, name):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = resolve_model(name)
    with pytest.raises(BackboneError) as caught:
        load_backbone(model)
    assert str(caught.value).startswith(f"pretrained weights of {model.explicit} could not be loaded (")
    assert str(caught.value).endswith(
        "; check the connection to the Hugging Face Hub, or give local weights with --weights FILE"
    )
    assert "\n" not in str(caught.value)


# Models that are not supported.


@pytest.mark.parametrize(
    ("name", "reason"),
    [("test_resnet", "it is not a plain vision transformer"), ("test_vit2", "it has no class token")],
)
def test_other_models_of_timm_are_refused(tmp_path, name, reason):
    file = save(timm.create_model(name).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(BackboneError, match=f"^timm:{name} is not supported yet: {reason}$"):
        load_backbone(resolve_model(f"timm:{name}"), file)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("test_vit3", {"class_token": True}, "it pools by attention"),
        ("test_vit", {"global_pool": "avg"}, "its final norm comes after pooling"),
        ("test_vit", {"block_fn": ResPostBlock}, "its blocks are not pre-norm blocks"),
    ],
)
def test_variants_of_timms_vit_are_refused(name, options, reason):
    with pytest.raises(BackboneError, match=reason):
        _require_plain_vit(resolve_model(f"timm:{name}"), timm.create_model(name, **options))


# open_clip.


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
    assert (loaded.num_prefix_tokens, loaded.num_patches, loaded.module.training) == (1, 16, False)
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


@pytest.mark.parametrize(
    ("vision", "reason"),
    [
        (
            {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160},
            "its image tower is not open_clip's vision transformer",
        ),
        ({"attentional_pool": True, "attn_pooler_heads": 2}, "it pools by attention"),
        ({"final_ln_after_pool": True}, "its final norm comes after pooling"),
        ({"qk_norm": True}, "its blocks are not pre-norm blocks"),
    ],
)
def test_other_towers_of_open_clip_are_refused(tmp_path, monkeypatch, vision, reason):
    config = OPEN_CLIP_TINY | {"vision_cfg": OPEN_CLIP_TINY["vision_cfg"] | vision}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    file = save(open_clip.create_model("tiny").state_dict(), tmp_path / "weights.pt")
    with pytest.raises(BackboneError, match=f"^open_clip:tiny/any is not supported yet: {reason}$"):
        load_backbone(resolve_model("open_clip:tiny/any"), file)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 4, "no_embed_class": True}])
def test_the_position_embedding_is_resized_as_timm_does_it(options):
    # In float64 instead of float32, so that the bits, and with them the key, do not depend on the processor.
    from timm.layers import resample_abs_pos_embed
    from timm.models.vision_transformer import VisionTransformer

    from featcache.extract.backbones.timm_vit import _fit_position_embedding

    model = VisionTransformer(img_size=32, patch_size=4, embed_dim=8, depth=1, num_heads=2, **options)
    prefix = 0 if options else 1
    stored = torch.randn(1, 11 * 11 + prefix, 8)
    resized = _fit_position_embedding(model, stored)
    expected = resample_abs_pos_embed(stored, new_size=[8, 8], old_size=[11, 11], num_prefix_tokens=prefix)
    torch.testing.assert_close(resized, expected, rtol=0, atol=1e-6)
    assert resized.shape == model.pos_embed.shape
    assert _fit_position_embedding(model, resized) is resized
