"""Vision transformers of Hugging Face transformers, small and with random weights: all taps against hooks written plainly, features
against timm and open_clip, preprocessing against the library's own processors, and repositories that are refused."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from featcache.extraction.backbones import load_backbone, loading_notes
from featcache.extraction.backbones.base import TokenLayout
from featcache.extraction.backbones.checkpoint_names import to_timm_names
from featcache.extraction.backbones.timm_vit import TimmViT, layout_of
from featcache.extraction.decoding.preprocessing import versions_of, with_resize
from featcache.extraction.forward_pass.replicas import replicate
from featcache.extraction.forward_pass.selftest import self_test
from featcache.extraction.models.names import resolve_model
from featcache.extraction.models.preprocessing import NONE, PAD, Preprocessing
from featcache.store.errors import BackboneError, RequestError
from featcache.store.inventory import TAPS
from featcache.store.spec import PILLOW, UINT8_ANTIALIAS

from .tiny import clip_vit, loaded, noise, randomise, record

transformers = pytest.importorskip("transformers", reason="the extra `transformers` is not installed")

CPU = torch.device("cpu")
SIZE, WIDTH, HIDDEN, LAYERS = 32, 32, 64, 2
TINY = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": HIDDEN,
    "image_size": SIZE,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SQUARE = {"size": {"height": SIZE, "width": SIZE}}
CROPPED = {"size": {"shortest_edge": 36}, "crop_size": SIZE}


@dataclass
class Case:
    """A model, its processor, and what is to be found."""

    config: str
    values: dict[str, Any] = field(default_factory=lambda: TINY)
    processor: str = "ViTImageProcessor"
    settings: dict[str, Any] = field(default_factory=lambda: SQUARE)
    prefix: tuple[bool, int] = (True, 0)
    """Class token or not, registers."""
    pooled: str = ""
    """Field of the library's output that is the model's own; empty for the tokens of the last layer."""
    embedding: bool = False
    """Whether pooling is more than picking or averaging tokens."""
    projection: bool = False
    tower: str = ""
    """Class of the image tower that the library loads from the same files; the one of the configuration if empty."""


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in TINY.items() if name not in names}


PAIR = {"vision_config": TINY, "text_config": TEXT}
CASES = {
    "ViT": Case("ViTConfig", pooled="pooler_output", embedding=True),
    "DeiT": Case("DeiTConfig", prefix=(True, 1), pooled="pooler_output", embedding=True),
    "DINOv2": Case(
        "Dinov2Config", {**TINY, "mlp_ratio": 2}, "BitImageProcessor", CROPPED, pooled="pooler_output"
    ),
    "DINOv2, published for 56 px": Case(
        "Dinov2Config", {**TINY, "mlp_ratio": 2, "image_size": 56}, pooled="pooler_output"
    ),
    "DINOv2, SwiGLU": Case(
        "Dinov2Config", {**TINY, "mlp_ratio": 3, "use_swiglu_ffn": True}, pooled="pooler_output"
    ),
    "DINOv2 with registers": Case(
        "Dinov2WithRegistersConfig",
        {**TINY, "mlp_ratio": 2, "num_register_tokens": 3},
        prefix=(True, 3),
        pooled="pooler_output",
    ),
    "DINOv3": Case(
        "DINOv3ViTConfig",
        {**TINY, "num_register_tokens": 4},
        "DINOv3ViTImageProcessor",
        prefix=(True, 4),
        pooled="pooler_output",
    ),
    "SigLIP": Case(
        "SiglipConfig",
        PAIR,
        "SiglipImageProcessor",
        SQUARE,
        (False, 0),
        "pooler_output",
        True,
        tower="SiglipVisionModel",
    ),
    "CLIP": Case(
        "CLIPConfig",
        {**PAIR, "projection_dim": 24},
        "CLIPImageProcessor",
        {"size": {"shortest_edge": SIZE}, "crop_size": SIZE},
        pooled="image_embeds",
        projection=True,
        tower="CLIPVisionModelWithProjection",
    ),
    "BEiT, averaged": Case(
        "BeitConfig", {**TINY, "use_relative_position_bias": True}, pooled="pooler_output", embedding=True
    ),
    "BEiT, class token": Case(
        "BeitConfig",
        {
            **TINY,
            "use_mean_pooling": False,
            "layer_scale_init_value": 0.0,
            "use_shared_relative_position_bias": True,
        },
        pooled="pooler_output",
    ),
    "MAE": Case("ViTMAEConfig"),
    "AIMv2": Case("Aimv2VisionConfig", prefix=(False, 0), pooled="pooler_output", embedding=True),
    "AIMv2 with text": Case(
        "Aimv2Config",
        {**PAIR, "projection_dim": 24},
        prefix=(False, 0),
        pooled="pooler_output",
        embedding=True,
    ),
    "InternVL": Case("InternVLVisionConfig", {**TINY, "image_size": [SIZE, SIZE], "patch_size": [8, 8]}),
    "Data2Vec": Case("Data2VecVisionConfig"),
    "I-JEPA": Case("IJepaConfig", prefix=(False, 0)),
}


def save(folder: Path, case: Case) -> Any:
    """Write a repository with random weights, and return the whole model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomise(
            transformers.AutoModel.from_config(getattr(transformers, case.config)(**case.values))
        )
    model.save_pretrained(folder)
    if case.processor:
        getattr(transformers, case.processor)(**case.settings).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Callable[[str], Path]:
    """Folders with a repository of each case, made when they are asked for."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("repository")
            save(made[name], CASES[name])
        return made[name]

    return folder


@pytest.fixture(autouse=True)
def quiet(caplog):
    """The library draws bars and logs what it thinks of unused tensors; none of that is tested here."""
    caplog.set_level("CRITICAL")
    transformers.utils.logging.disable_progress_bar()


def load(folder: Path, **options: Any) -> Any:
    return load_backbone(resolve_model(f"transformers:{folder}"), **options)


def hooked(
    case: Case, folder: Path, images: torch.Tensor
) -> tuple[dict[str, list[torch.Tensor]], torch.Tensor, torch.Tensor]:
    """What the library's own model computes: its parts by the order in which they run, and by their kind."""
    # The width of CLIP's projection stands in the configuration of the pair, which its tower alone does not read.
    width = {"projection_dim": case.values["projection_dim"]} if case.projection else {}
    model = getattr(transformers, case.tower or "AutoModel").from_pretrained(folder, **width).eval()
    model = getattr(model, "vision_model", model) if case.config == "Aimv2Config" else model
    blocks = next(
        list(part)
        for part in model.modules()
        if isinstance(part, nn.ModuleList)
        and len(part) == LAYERS
        and any("Attention" in type(m).__name__ for m in part.modules())
    )
    seen: dict[str, list[torch.Tensor]] = {tap: [torch.empty(0)] * LAYERS for tap in TAPS}

    def note(tap: str, index: int, side: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            value = (args or tuple(kwargs.values()))[0] if side == "input" else output
            seen[tap][index] = value[0] if isinstance(value, tuple) else value

        return hook

    for index, block in enumerate(blocks):
        children = dict(block.named_children())
        norms = sorted(name for name, child in children.items() if "Norm" in type(child).__name__)
        # "before" comes after "after" in no dictionary: their names tell the order in this library, 1 and 2 or before and after.
        first, second = norms if norms[0].endswith("1") else norms[::-1]
        (attention,) = (name for name, child in children.items() if "Attention" in type(child).__name__)
        shrinking = [
            m
            for m in block.modules()
            if isinstance(m, nn.Linear) and (m.in_features, m.out_features) == (HIDDEN, WIDTH)
        ]
        for tap, module, side in (
            ("norm1", children[first], "output"),
            ("norm2", children[second], "output"),
            ("attn", children[attention], "output"),
            ("mlp", shrinking[-1], "input"),
            ("block", block, "output"),
        ):
            module.register_forward_hook(note(tap, index, side), with_kwargs=True)
    options = {}
    if case.config == "ViTMAEConfig":
        model.config.mask_ratio = 0.0
        options["noise"] = torch.arange(16.0).expand(len(images), -1)
    with torch.inference_mode():
        output = model(pixel_values=images, output_hidden_states=True, **options)
        tokens = output.last_hidden_state
        # Every block gives the next hidden state.
        for index, state in enumerate(output.hidden_states[1:-1]):
            torch.testing.assert_close(seen["block"][index], state)
        if case.projection:  # the norm of the class token alone, on all tokens
            tokens = model.vision_model.post_layernorm(tokens)
    return seen, tokens, output[case.pooled] if case.pooled else tokens


@pytest.mark.parametrize("name", CASES)
def test_taps_are_what_plain_hooks_see(name, repository):
    case, folder = CASES[name], repository(name)
    backbone = load(folder)
    self_test(backbone, CPU)
    assert backbone.taps == TAPS
    assert backbone.layout == TokenLayout(*case.prefix, (4, 4))
    assert (backbone.spec.num_layers, backbone.spec.width, backbone.spec.input_size) == (LAYERS, WIDTH, SIZE)
    images = noise(2)
    got, embedding = record(backbone, images)
    taps, final, output = hooked(case, folder, images)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for tap in TAPS:
        for index in range(LAYERS):
            torch.testing.assert_close(got.taps[tap][index], taps[tap][index], **close)
    torch.testing.assert_close(got.final, final, **close)
    torch.testing.assert_close(got.output, output, **close)
    assert (embedding is not None) == case.embedding
    assert (backbone.projection is not None) == case.projection
    if embedding is not None:
        torch.testing.assert_close(embedding, output, **close)
    if backbone.projection is not None:
        torch.testing.assert_close(got.final[:, 0] @ backbone.projection, output, **close)


def test_the_digest_is_of_the_weights_and_the_architecture_of_the_function(repository, tmp_path):
    folder = repository("ViT")
    spec = load(folder).spec
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert load(copy).spec == spec
    config = json.loads((copy / "config.json").read_text())

    def changed(**values: Any) -> Any:
        (copy / "config.json").write_text(json.dumps(config | values))
        return load(copy).spec

    # What changes no feature changes no key.
    assert changed(id2label={"0": "cat"}, transformers_version="5.0.0", dtype="float16") == spec
    other = changed(layer_norm_eps=0.1)
    assert other.architecture != spec.architecture
    assert other.weights_digest == spec.weights_digest
    assert changed(hidden_act="relu").architecture not in (other.architecture, spec.architecture)
    assert str(tmp_path) not in json.dumps([spec.architecture, load(folder).loaded.weights_source])


def test_weights_are_float32_whatever_they_were_saved_in(repository, tmp_path):
    folder = Path(shutil.copytree(repository("DINOv2"), tmp_path / "half"))
    state = load_file(folder / "model.safetensors")
    save_file(
        {key: value.half() for key, value in state.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    backbone = load(folder)
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}


def test_replicas_share_weights_and_see_the_same(repository):
    backbone = load(repository("CLIP"))
    replicas = replicate(backbone, 2)
    assert replicas is not None
    images = noise(2)
    for replica in replicas:
        torch.testing.assert_close(record(replica, images)[0].final, record(backbone, images)[0].final)


# Other libraries.


def test_features_of_dinov2_are_timms(repository):
    from timm.models.vision_transformer import VisionTransformer

    backbone = load(repository("DINOv2"))
    model = VisionTransformer(
        img_size=SIZE,
        patch_size=8,
        embed_dim=WIDTH,
        depth=LAYERS,
        num_heads=2,
        mlp_ratio=2,
        num_classes=0,
        init_values=1.0,
    )
    other = TimmViT(loaded("timm:tiny", model, layout_of(model), num_layers=LAYERS, width=WIDTH))
    state = to_timm_names(load_file(repository("DINOv2") / "model.safetensors")).state
    missing, _ = model.load_state_dict(state, strict=False)
    assert not missing
    assert_same_features(backbone, other)


def test_features_of_clip_are_open_clips(repository):
    case = Case(
        "CLIPConfig",
        {
            "vision_config": TINY | {"hidden_size": 16, "num_hidden_layers": 3},
            "text_config": TEXT,
            "projection_dim": 12,
        },
        "CLIPImageProcessor",
        {"size": {"shortest_edge": SIZE}, "crop_size": SIZE},
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model = save(Path(folder), case)
        backbone = load(Path(folder))
    from open_clip.transformer import QuickGELU

    other = clip_vit(act_layer=QuickGELU)
    other.module.load_state_dict(open_clip_names(model.state_dict()))
    assert_same_features(backbone, other)
    torch.testing.assert_close(backbone.projection, other.projection)


def open_clip_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    own = {key.removeprefix("vision_model."): value for key, value in state.items() if "text" not in key}
    named = {
        "class_embedding": own["embeddings.class_embedding"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "conv1.weight": own["embeddings.patch_embedding.weight"],
        "proj": own["visual_projection.weight"].T,
    }
    parts = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for kind in ("weight", "bias"):
        named |= {
            f"ln_pre.{kind}": own[f"pre_layrnorm.{kind}"],
            f"ln_post.{kind}": own[f"post_layernorm.{kind}"],
        }
        for index in range(3):
            block, layer = f"transformer.resblocks.{index}", f"encoder.layers.{index}"
            named |= {
                f"{block}.{theirs}.{kind}": own[f"{layer}.{ours}.{kind}"] for ours, theirs in parts.items()
            }
            named[f"{block}.attn.in_proj_{kind}"] = torch.cat(
                [own[f"{layer}.self_attn.{one}_proj.{kind}"] for one in "qkv"]
            )
    return named


def assert_same_features(backbone: Any, other: Any) -> None:
    images = noise(2)
    (got, _), (wanted, _) = record(backbone, images), record(other, images)
    for tap in TAPS:
        for ours, theirs in zip(got.taps[tap], wanted.taps[tap], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got.final, wanted.final, rtol=1e-3, atol=1e-4)


# Preprocessing.

PROCESSORS = {
    "ViTImageProcessor": SQUARE,
    "BitImageProcessor": {"size": {"shortest_edge": 45}, "crop_size": SIZE},
    "CLIPImageProcessor": {"size": {"shortest_edge": SIZE}, "crop_size": SIZE},
    "SiglipImageProcessor": SQUARE | {"resample": 3},
    "BeitImageProcessor": {"size": {"height": 41, "width": 41}, "do_center_crop": True, "crop_size": SIZE},
    "DeiTImageProcessor": {"size": {"height": 37, "width": 37}, "crop_size": SIZE, "do_normalize": False},
}


def pictures() -> list[Image.Image]:
    """Images of all orientations, so that crops leave odd differences."""
    rng = np.random.default_rng(3)
    shapes = ((50, 83), (91, 47), (33, 33), (20, 64), (127, 128))
    return [
        Image.fromarray(
            (rng.integers(0, 2, (8, 8, 3)).repeat(16, 0).repeat(16, 1)[:h, :w] * 255).astype(np.uint8)
        )
        for h, w in shapes
    ]


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_processors(name, tmp_path):
    from featcache.extraction.backbones.transformers_processor import load_preprocessing, transform_of

    getattr(transformers, name)(**PROCESSORS[name]).save_pretrained(tmp_path)
    found = load_preprocessing(tmp_path, False, Preprocessing(), "it")
    assert (found.size, found.note) == ((SIZE, SIZE), "")
    assert set(versions_of(found.transform)) == {PILLOW, UINT8_ANTIALIAS}
    rebuilt = transform_of(json.loads(json.dumps(found.values)))
    both = {
        backend: transformers.AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        for backend in ("pil", "torchvision")
    }
    for image in pictures():
        slow, fast = (
            torch.as_tensor(both[backend](images=image, return_tensors="pt")["pixel_values"][0])
            for backend in ("pil", "torchvision")
        )
        torch.testing.assert_close(rebuilt(image), slow, rtol=0, atol=1e-5)
        for version, wanted in ((PILLOW, slow), (UINT8_ANTIALIAS, fast)):
            parts = with_resize(rebuilt, version)
            pixels = parts.prepare(image, np.array(image))
            torch.testing.assert_close(parts.normalize(pixels[None])[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("DINOv3ViTImageProcessor", SQUARE), ("ConvNextImageProcessor", {"size": {"shortest_edge": SIZE}})],
)
def test_a_processor_of_another_form_is_used_itself(name, settings, tmp_path):
    from featcache.extraction.backbones.transformers_processor import load_preprocessing

    getattr(transformers, name)(**settings).save_pretrained(tmp_path)
    found = load_preprocessing(tmp_path, False, Preprocessing(), "it")
    assert f"the repository's own {name}" in found.note
    assert found.values["processor"]["size"]
    json.dumps(found.values)
    again = pickle.loads(pickle.dumps(found.transform))  # decoding processes get it so
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for image in pictures():
        wanted = torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"])[0].float()
        assert wanted.shape == (3, SIZE, SIZE)
        torch.testing.assert_close(again(image), wanted, rtol=0, atol=0)


def test_preprocessing_can_be_changed(repository):
    """The size too, where the model resizes its position embedding, and back again from the spec alone."""
    folder = repository("CLIP")
    own = load(folder)
    assert own.spec.preprocessing["position_embedding"] == "as stored"
    name = resolve_model(f"transformers:{folder}")
    for changes, grid in (
        (Preprocessing(input_size=(48, 32), interpolation="bilinear"), (6, 4)),
        (Preprocessing(resize_size=40, mean=(0.1, 0.2, 0.3)), (4, 4)),
        (Preprocessing(crop=NONE), (4, 4)),
        (Preprocessing(crop=PAD, input_size=(32, 40)), (4, 5)),
    ):
        backbone = load_backbone(name, preprocessing=changes)
        self_test(backbone, CPU)
        assert (backbone.layout.grid, backbone.spec.weights_digest) == (grid, own.spec.weights_digest)
        assert backbone.transform(pictures()[0]).shape == (3, *backbone.spec.image_size)
        again = load_backbone(name, preprocessing=Preprocessing.of_spec(backbone.spec, "here"))
        assert again.spec == backbone.spec != own.spec
        torch.testing.assert_close(again.transform(pictures()[1]), backbone.transform(pictures()[1]))
    resized = load_backbone(name, preprocessing=Preprocessing(input_size=(48, 48)))
    assert resized.spec.preprocessing["position_embedding"] == "by the model, in every pass"
    with pytest.raises(
        RequestError, match=r"--input-size 50 is no multiple of the patch of transformers:\./.*, 8 px"
    ):
        load_backbone(name, preprocessing=Preprocessing(input_size=(50, 50)))


def test_of_a_processor_that_is_used_itself_the_size_alone_can_be_changed(repository):
    folder = repository("DINOv3")
    name = resolve_model(f"transformers:{folder}")
    larger = load_backbone(name, preprocessing=Preprocessing(input_size=(40, 48)))
    self_test(larger, CPU)
    assert (larger.layout.grid, larger.spec.image_size) == ((5, 6), (40, 48))
    assert larger.transform(pictures()[0]).shape == (3, 40, 48)
    again = load_backbone(name, preprocessing=Preprocessing.of_spec(larger.spec, "here"))
    assert again.spec == larger.spec != load(folder).spec
    with pytest.raises(
        RequestError,
        match=r"that is used as it is, so --input-size, --interpolation and the like cannot change it",
    ):
        load_backbone(name, preprocessing=Preprocessing(interpolation="nearest"))


# What is refused.

SMALL = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
REFUSED = {
    "text": (Case("BertConfig", {**SMALL, "vocab_size": 30}, ""), "takes input_ids, not images"),
    "windows": (
        Case(
            "SwinConfig",
            {
                "image_size": SIZE,
                "patch_size": 4,
                "embed_dim": 8,
                "depths": [1, 2],
                "num_heads": [1, 1],
                "window_size": 4,
            },
        ),
        "is no plain vision transformer: encoder.layers.1.blocks sees 16 tokens of 8 x 8 patches",
    ),
    "stages": (
        Case("ConvNextConfig", {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2}),
        "is no plain vision transformer with the same tokens in all layers (encoder.stages sees [1, 4, 56, 56] and [1, 8, 28, 28])",
    ),
    "tokens behind the patches": (
        Case("YolosConfig", {**TINY, "image_size": [SIZE, SIZE], "num_detection_tokens": 5}),
        "has its tokens in another order than class token, registers, patches row by row",
    ),
    "any shape": (
        Case("Siglip2VisionConfig", {**without("image_size"), "num_patches": 16}),
        "takes images of any shape (NaFlex), and a cache holds one number of patches",
    ),
    "another size": (
        Case("ViTConfig", settings={"size": {"height": 48, "width": 48}}),
        "does not run on images of 48 x 48 pixels, which its preprocessing gives (Input image size",
    ),
    "no crop": (
        Case(
            "Dinov2Config",
            processor="BitImageProcessor",
            settings={"size": {"shortest_edge": 32}, "do_center_crop": False},
        ),
        "has an image processor that gives images of different sizes to images of different shapes",
    ),
    "no processor": (
        Case("ViTConfig", processor=""),
        "has no image processor (preprocessor_config.json or processor_config.json)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_no_backbones(name, tmp_path):
    case, message = REFUSED[name]
    save(tmp_path, case)
    with pytest.raises(BackboneError) as caught:
        load(tmp_path)
    assert f"transformers:./{tmp_path.name} is not supported: it {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_weights_are_never_left_in_place(repository, tmp_path):
    folder = Path(shutil.copytree(repository("ViT"), tmp_path / "vit"))
    state = load_file(folder / "model.safetensors")

    def saved(**changes: torch.Tensor | None) -> None:
        named = {key.replace("__", "."): value for key, value in changes.items()}
        merged = {key: value for key, value in (state | named).items() if value is not None}
        save_file(merged, folder / "model.safetensors", {"format": "pt"})

    # A classifier has no pooler; it is left out, and said.
    saved(**{name.replace(".", "__"): None for name in state if name.startswith("pooler.")})
    backbone = load(folder)
    assert backbone.embedding_point is None
    notes = [*loading_notes(resolve_model(f"transformers:{folder}"), backbone)]
    assert notes == ["its weights have no pooler, which is left out; no feature passes through it"]
    assert load(folder).spec == backbone.spec

    position = next(name for name in state if name.endswith("position_embeddings"))
    saved(**{position.replace(".", "__"): None})
    with pytest.raises(
        BackboneError, match=r"it lacks embeddings\.position_embeddings; it has no other tensor"
    ):
        load(folder)
    saved(**{position.replace(".", "__"): state[position][:, 1:].contiguous()})
    with pytest.raises(
        BackboneError,
        match=r"its embeddings\.position_embeddings has shape \[1, 16, 32\], expected \[1, 17, 32\]",
    ):
        load(folder)
    saved()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(BackboneError, match="which the model that its configuration describes has not"):
        load(folder)


def test_a_block_of_unknown_form_has_one_tap(repository, monkeypatch):
    """A norm that is not where its name says: the equations of the block fail, and only its output is taken."""
    layer = transformers.models.vit.modeling_vit.ViTLayer
    plain = layer.forward

    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return plain(self, hidden_states * 1.5, *args, **kwargs)

    monkeypatch.setattr(layer, "forward", forward)
    backbone = load(repository("ViT"))
    assert backbone.taps == ("block",)
    assert any("the form of its blocks (ViTLayer) is not known" in note for note in backbone.loaded.notes)
    self_test(backbone, CPU)
    with pytest.raises(
        BackboneError, match=r"have no tap 'norm2' \(ViTLayer is of no form that is known\); they have block$"
    ):
        backbone.tap_point("norm2", 0)


# Files.


def test_a_folder_as_weights_and_a_file_of_weights(repository, tmp_path):
    folder = repository("CLIP")
    spec = load(folder).spec
    named = resolve_model("transformers:owner/name@main")
    assert (named.repository, named.revision) == ("owner/name", "main")
    assert load_backbone(named, folder).spec == spec
    # A state dict as training scripts save it, of the whole pair.
    state = {f"module.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    torch.save(
        {"state_dict": {name.removeprefix("module."): value for name, value in state.items()}},
        tmp_path / "w.pt",
    )
    backbone = load(folder, weights=tmp_path / "w.pt")
    assert backbone.spec == spec
    assert backbone.loaded.weights_source["file"] == "w.pt"
    with pytest.raises(RequestError, match=r"there is no folder .*nowhere; give the folder of a model"):
        load(tmp_path / "nowhere")
    with pytest.raises(BackboneError, match=r"has no config\.json"):
        load(tmp_path)


def test_a_missing_library_is_told_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"is not installed: pip install 'featcache\[transformers\]'$"):
        load_backbone(resolve_model("transformers:owner/name"))


def test_precisions(repository):
    """Autocast and bfloat16 weights give the features of float32, but for rounding."""
    from featcache.devices.precision import BF16, MIXED, forward_context
    from featcache.extraction.forward_pass.bfloat16_weights import in_precision

    images = noise(2)
    for name in ("ViT", "MAE", "CLIP", "DINOv3", "SigLIP", "BEiT, averaged"):
        backbone = load(repository(name))
        plain = record(backbone, images)[0].final
        with forward_context(CPU, MIXED):
            mixed = record(backbone, images)[0].final.float()
        rounded = record(in_precision(backbone, BF16), images)[0].final.float()
        for other in (mixed, rounded):
            assert 0 < (other - plain).norm() / plain.norm() < 0.05, name


@pytest.mark.parametrize("place", ["", "a/b/c", "owner/na me", "owner/name@", "-x?y"])
def test_names_of_no_repository(place):
    with pytest.raises(RequestError):
        resolve_model(f"transformers:{place}")


CODE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .parts import Block


class OddConfig(PretrainedConfig):
    model_type = "odd_vit"

    def __init__(self, hidden_size=32, image_size=32, patch_size=8, num_hidden_layers=2, **rest):
        super().__init__(**rest)
        self.hidden_size, self.image_size, self.patch_size = hidden_size, image_size, patch_size
        self.num_hidden_layers = num_hidden_layers


class OddModel(PreTrainedModel):
    main_input_name = "pixel_values"
    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.class_embedding = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        # Written for version 4 of transformers: it reads values while it is made, prints, and has no post_init().
        rates = [rate.item() for rate in torch.linspace(0, 0.1, config.num_hidden_layers)]
        print("FlashAttention is not installed.")
        self.blocks = nn.ModuleList([Block(config.hidden_size) for _ in rates])

    def forward(self, pixel_values=None, output_hidden_states=None, return_dict=None):
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(patches), -1, -1), patches], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens[:, 0, :])
"""
PARTS = """
from torch import nn


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj((q @ k.transpose(1, 2) / 8).softmax(-1) @ v)


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn, self.mlp = Attention(width), Mlp(width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ls1 = nn.Parameter(0.5 + 0 * self.norm1.weight.detach())
        self.ls2 = nn.Parameter(0.25 + 0 * self.norm1.weight.detach())

    def forward(self, x):
        x = x + self.attn(self.norm1(x)) * self.ls1
        return x + self.mlp(self.norm2(x)) * self.ls2
"""


def odd_repository(folder: Path) -> Path:
    """A repository that needs its own code, after the manner of InternViT."""
    (folder / "modeling_odd.py").write_text(CODE)
    (folder / "parts.py").write_text(PARTS)
    config = {
        "model_type": "odd_vit",
        "architectures": ["OddModel"],
        "auto_map": {"AutoConfig": "modeling_odd.OddConfig", "AutoModel": "modeling_odd.OddModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    transformers.ViTImageProcessor(**SQUARE).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (1, 1, 32),
        "patch_embedding.weight": (32, 3, 8, 8),
        "patch_embedding.bias": (32,),
    }
    for index in range(2):
        for part, shape in {
            "attn.qkv": (96, 32),
            "attn.proj": (32, 32),
            "mlp.fc1": (64, 32),
            "mlp.fc2": (32, 64),
        }.items():
            shapes |= {f"blocks.{index}.{part}.weight": shape, f"blocks.{index}.{part}.bias": shape[:1]}
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1", "ls2"):
            shapes[f"blocks.{index}.{part}"] = (32,)
    state = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state = {name: value.bfloat16() for name, value in state.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_code_of_a_repository_runs_only_when_it_is_trusted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = odd_repository(tmp_path / "odd" if not (tmp_path / "odd").mkdir() else tmp_path)
    with pytest.raises(RequestError) as caught:
        load(folder)
    assert str(caught.value) == (
        "transformers:./odd needs code of its own repository, which runs on this machine with your rights: read it, then give "
        "--trust-remote-code"
    )
    assert not (tmp_path / "modules").exists()
    backbone = load(folder, trust_remote_code=True)
    self_test(backbone, CPU)
    assert backbone.taps == TAPS
    assert backbone.loaded.weights_source["remote_code"] is True
    assert backbone.loaded.notes == ("OddModel is code of the repository, which runs with your rights",)
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}
    assert capsys.readouterr().out == ""
    state = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in state.items() if name != "blocks.1.ls2"},
        tmp_path / "less.safetensors",
    )
    with pytest.raises(BackboneError, match=r"it lacks blocks\.1\.ls2; it has no other tensor"):
        load(folder, weights=tmp_path / "less.safetensors", trust_remote_code=True)
    # Other code is another function.
    (folder / "parts.py").write_text(PARTS.replace("relu()", "tanh()"))
    assert load(folder, trust_remote_code=True).spec.architecture != backbone.spec.architecture
