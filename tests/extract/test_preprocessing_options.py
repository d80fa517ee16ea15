"""Preset and options of preprocessing: what they do to an image and to a backbone, and that a spec is enough to do it again."""

import re
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import zoom
from timm.models.beit import Beit
from torch.nn import functional

from featcache.extraction.backbones import load_backbone
from featcache.extraction.backbones.timm_weights import resize_model
from featcache.extraction.backbones.weights import fit_position_embedding
from featcache.extraction.decoding.batch import Rows
from featcache.extraction.decoding.images import image_batches
from featcache.extraction.decoding.preprocessing import versions_of, with_resize
from featcache.extraction.forward_pass.selftest import self_test
from featcache.extraction.models.names import ALIASES, resolve_model
from featcache.extraction.models.preprocessing import (
    ALIGNED,
    ANTIALIASED,
    OFFSET,
    PLAIN,
    Preprocessing,
    Settings,
    position_method,
    preset,
)
from featcache.extraction.requests.preprocessing import PreprocessingOptions
from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.sources import resolve_source
from featcache.store.errors import BackboneError, CacheError, RequestError, UnknownNameError
from featcache.store.preprocessing import preprocessing_label, preprocessing_text

TIMM_TINY = "timm:test_vit.r160_in1k"
OPEN_CLIP_TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}
OPTIONS = [
    {"input_size": 96},
    {"input_size": "96x192"},
    {"input_size": "192x96", "crop": "none"},
    {"crop": "none", "interpolation": "lanczos"},
    {"crop": "pad"},
    {"input_size": "64x160", "crop": "pad"},
    {"crop_pct": 0.7},
    {"resize_size": 251},
    {"input_size": 96, "resize_size": 131, "interpolation": "bilinear"},
    {"mean": "0.1,0.2,0.3", "std": "0.4,0.5,0.6"},
    {"crop": "pad", "mean": "0.1,0.2,0.3", "interpolation": "box"},
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of random weights by model name, and the tiny architecture of open_clip."""
    folder = tmp_path_factory.mktemp("weights")
    configs = open_clip.factory._MODEL_CONFIGS
    configs["tiny"] = OPEN_CLIP_TINY
    torch.manual_seed(0)
    states = {
        TIMM_TINY: timm.create_model("test_vit", num_classes=0).state_dict(),
        "open_clip:tiny/any": open_clip.create_model("tiny").state_dict(),
    }
    files = {name: folder / f"{number}.safetensors" for number, name in enumerate(states)}
    for name, state in states.items():
        save_file(state, files[name])
    yield files
    del configs["tiny"]


def photo(width=300, height=200):
    """A smooth image with some noise, so that filters differ, and not by much."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / 9), np.cos(columns / 7), np.sin((rows + columns) / 11)], -1)
    noise = np.random.default_rng(0).normal(0, 8, waves.shape)
    return Image.fromarray((127 + 90 * waves + noise).clip(0, 255).astype(np.uint8))


# What is done to an image, against the same steps written with Pillow and numpy.


def by_hand(image, settings: Settings):
    """The preprocessing of `settings`, written again."""
    height, width = settings.input_size
    filter_ = getattr(Image.Resampling, settings.interpolation.upper())
    resized = (int(height / settings.crop_pct), int(width / settings.crop_pct))
    if settings.crop == "none":
        image = image.resize((width, height), filter_)
    elif settings.crop == "pad":
        factor = min(height / image.height, width / image.width)
        image = image.resize((round(image.width * factor), round(image.height * factor)), filter_)
        border = Image.new("RGB", (width, height), tuple(round(255 * value) for value in settings.mean))
        border.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        image = border
    else:
        factor = max(resized[0] / image.height, resized[1] / image.width)
        image = image.resize((int(image.width * factor + 1e-6), int(image.height * factor + 1e-6)), filter_)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    values = np.asarray(image, np.float32) / 255
    return ((values - np.float32(settings.mean)) / np.float32(settings.std)).transpose(2, 0, 1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("model", [TIMM_TINY, "open_clip:tiny/any"])
def test_what_options_do_to_an_image_and_the_spec_alone_repeats_it(weights, model, options):
    name = resolve_model(model)
    asked = PreprocessingOptions(**options)
    backbone = load_backbone(name, weights[model], preprocessing=asked.preprocessing_of(name))
    size = backbone.spec.image_size
    assert backbone.loaded.layout.grid == tuple(side // (16 if "timm" in model else 8) for side in size)

    config = timm.data.resolve_model_data_config(timm.create_model("test_vit", num_classes=0))
    stated = backbone.spec.preprocessing
    settings = Settings(
        asked.input_size or size,
        asked.interpolation or stated["interpolation"],
        asked.crop or "center",
        asked.crop_pct
        or (min(size) / asked.resize_size if asked.resize_size else None)
        or (1.0 if asked.crop or "open" in model else config["crop_pct"]),
        asked.mean or tuple(stated["mean"]),
        asked.std or tuple(stated["std"]),
    )
    image = photo()
    got = backbone.transform(image).numpy()
    assert got.shape == (3, *size)
    # Sizes of resized images may be rounded in another way, which shifts a crop by a pixel at most.
    assert np.abs(got - by_hand(image, settings)).mean() < 0.06

    again = load_backbone(name, weights[model], preprocessing=Preprocessing.of_spec(backbone.spec, "cache"))
    assert again.spec == backbone.spec
    assert torch.equal(again.transform(image), backbone.transform(image))
    self_test(backbone, torch.device("cpu"))


@pytest.mark.parametrize("options", [{"input_size": "96x192", "crop": "none"}, {"crop_pct": 0.7}], ids=str)
def test_torchs_resize_of_8_bit_pixels_has_these_too(weights, options):
    name = resolve_model(TIMM_TINY)
    asked = PreprocessingOptions(**options).preprocessing_of(name)
    transform = load_backbone(name, weights[TIMM_TINY], preprocessing=asked).transform
    image = photo()
    pixels = [
        with_resize(transform, resize).prepare(image, np.array(image)).numpy().astype(int)
        for resize in ("pillow", "uint8-antialias")
    ]
    assert pixels[0].shape == pixels[1].shape
    assert np.abs(pixels[0] - pixels[1]).max() <= 2


@pytest.mark.parametrize(
    ("options", "versions"), [({"crop": "pad"}, 1), ({"input_size": "96x192"}, 1), ({}, 2)]
)
def test_other_resizes_are_pillows_alone(weights, options, versions):
    name = resolve_model(TIMM_TINY)
    asked = PreprocessingOptions(**options).preprocessing_of(name)
    transform = load_backbone(name, weights[TIMM_TINY], preprocessing=asked).transform
    assert len(versions_of(transform)) == versions


@pytest.mark.parametrize(
    "options", [{"input_size": "96x192"}, {"input_size": "96x192", "crop": "pad"}, {}], ids=str
)
def test_a_strip_that_a_resize_would_blow_up_is_refused_by_name(weights, tmp_path, options):
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(4):
            Image.new("RGB", (60_000, 1) if label == "a" else (20, 30)).save(
                tmp_path / label / f"{number}.png"
            )
    name = resolve_model(TIMM_TINY)
    asked = PreprocessingOptions(**options).preprocessing_of(name)
    backbone = load_backbone(name, weights[TIMM_TINY], preprocessing=asked)
    source = resolve_source(f"imagefolder:{tmp_path}")
    count = len(source.splits["train"])
    transform = with_resize(backbone.transform, "pillow")
    [batch] = image_batches(source, transform, [Rows("train", 0, count)], 0, backbone.spec.image_size)
    failed = {source.splits["train"][row].id[0] for row, _ in batch.failures}
    assert failed == {"a"}
    wanted = "cannot be preprocessed" if "crop" in options else "px long; crop it"
    assert all(wanted in message for _, message in batch.failures), batch.failures


def test_resized_sizes_are_exact():
    for side in (14, 160, 224, 336, 518):
        for resized in range(side, 3 * side, 7):
            asked = PreprocessingOptions(input_size=side, resize_size=resized)
            own = Settings((16, 16), "bicubic", "center", 0.9, (0.5,) * 3, (0.5,) * 3)
            changed = own.changed(asked.preprocessing_of(resolve_model(TIMM_TINY)), "x")
            assert changed.resized == (resized, resized)


def test_a_wide_input_gives_the_features_of_a_model_of_that_size(weights):
    """timm's own model of 96 x 192 px, with the position embedding that timm resizes in float32."""
    name = resolve_model(TIMM_TINY)
    backbone = load_backbone(name, weights[TIMM_TINY], preprocessing=Preprocessing(input_size=(96, 192)))
    wanted = timm.create_model("test_vit", num_classes=0).eval()
    wanted.load_state_dict(load_file(weights[TIMM_TINY]))
    wanted.set_input_size((96, 192))
    images = torch.randn(2, 3, 96, 192)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.module(images), wanted(images), rtol=1e-4, atol=1e-4)


# Position embeddings, as authors resize them.


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (6, 13)])
def test_position_embeddings_are_resized_as_authors_do_it(grid):
    stored = torch.randn(1, 1 + 11 * 11, 8)
    squares = stored[:, 1:].reshape(1, 11, 11, 8).permute(0, 3, 1, 2)

    def tokens(resized):
        assert resized.shape[-2:] == grid
        return torch.cat([stored[:, :1], resized.flatten(2).transpose(1, 2)], 1)

    factors = ((grid[0] + 0.1) / 11, (grid[1] + 0.1) / 11)
    big_vision = zoom(squares[0].permute(1, 2, 0).numpy(), (grid[0] / 11, grid[1] / 11, 1), order=1)
    authors = {
        PLAIN: functional.interpolate(squares, size=grid, mode="bicubic"),
        ANTIALIASED: functional.interpolate(squares, size=grid, mode="bicubic", antialias=True),
        OFFSET: functional.interpolate(squares, scale_factor=factors, mode="bicubic"),
        ALIGNED: torch.from_numpy(big_vision).permute(2, 0, 1)[None],
    }
    for method, wanted in authors.items():
        got = fit_position_embedding(stored, 1, grid, method)
        torch.testing.assert_close(got, tokens(wanted), rtol=0, atol=1e-5)
    assert not authors[OFFSET].allclose(authors[PLAIN], atol=1e-2)


def test_as_many_patches_in_another_shape_are_resized_too():
    stored = torch.randn(1, 16, 4)
    assert fit_position_embedding(stored, 0, (4, 4)) is stored
    assert not torch.equal(fit_position_embedding(stored, 0, (2, 8)), stored)
    wide = torch.randn(1, 8, 4)
    assert fit_position_embedding(wide, 0, (2, 4)) is wide


def test_the_method_of_every_family():
    methods = {alias: position_method(resolve_model(alias)) for alias in ALIASES}
    families = {
        method: {re.split(r"-vit|-reg", alias)[0] for alias, own in methods.items() if own == method}
        for method in (OFFSET, ANTIALIASED, PLAIN, ALIGNED)
    }
    assert families == {
        OFFSET: {"dino", "dinov2"},
        ANTIALIASED: {"dinov2"},
        PLAIN: {"mae", "deit", "deit-distilled", "deit3"},
        ALIGNED: {"augreg", "augreg-in21k", "siglip", "siglip2"},
    }
    assert methods["dinov2-reg-vit-b-14"] == ANTIALIASED
    assert not any(position_method(resolve_model(explicit)) for explicit in ALIASES.values())


# Requests.


def literal(model, **options):
    return next(ExtractRequest(model, "digits", **options).literals(resolve_model(model), {}))


def test_a_request_of_before_is_one_for_the_papers_preprocessing():
    before = {
        "model": ALIASES["mae-vit-b-16"],
        "weights": None,
        "dataset": {},
        "dtype": "float16",
        "precision": "auto",
    }
    assert literal("mae-vit-b-16", preprocess="paper") == before
    assert literal(ALIASES["mae-vit-b-16"], preprocess="paper") == before
    assert literal("mae-vit-b-16") == {
        **before,
        "preprocessing": {"interpolation": "bicubic", "crop_pct": 0.875},
    }
    assert literal(ALIASES["mae-vit-b-16"])["preprocessing"] == {}
    # Where the paper's preprocessing is the library's, a bare request is the one of before.
    assert "preprocessing" not in literal("clip-vit-b-16")


def test_every_option_is_in_the_request():
    literals = [str(literal("vit-l-14", **options)) for options in [{}, *OPTIONS]]
    assert len({*literals}) == len(literals)


def test_an_option_replaces_one_setting_of_the_preset():
    name = resolve_model("dinov2-vit-s-14")
    own = preset(name, "own")
    assert PreprocessingOptions(input_size=224).preprocessing_of(name) == own
    assert PreprocessingOptions(input_size=448).preprocessing_of(name) == replace(own, input_size=(448, 448))
    assert PreprocessingOptions(crop="none").preprocessing_of(name) == replace(
        own, crop="none", crop_pct=None
    )
    paper = PreprocessingOptions(preprocess="paper", input_size=448).preprocessing_of(name)
    assert paper == replace(preset(name, "paper"), input_size=(448, 448))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": "big"}, "--input-size must be a number of pixels, or HEIGHTxWIDTH such as 224x336, got 'big'"),
        ({"input_size": "1x2x3"}, "--input-size must be a number of pixels"),
        ({"input_size": 0}, "--input-size must be from 1 to 4096 pixels, got 0"),
        ({"crop_pct": "1.2"}, "--crop-pct must be from 0.1 to 1, where 1 crops nothing from the shorter side, got '1.2'"),
        ({"crop_pct": "x"}, "--crop-pct must be from 0.1 to 1"),
        ({"crop_pct": 0.9, "resize_size": 256}, "--crop-pct and --resize-size both say how much is cropped"),
        ({"crop": "pad", "resize_size": 256}, "--resize-size is for --crop center; --crop pad keeps the whole image"),
        ({"mean": "0.5"}, "--mean must be three numbers separated by commas, for red, green and blue, got '0.5'"),
        ({"mean": (123.7, 116.3, 103.5)}, "--mean must be of values from 0 to 1, got 123.7,116.3,103.5; divide"),
        ({"std": "0,1,1"}, "--std must be above 0 and at most 1, got 0,1,1"),
        ({"resize": "bicubic"}, "unknown version of resizing 'bicubic'; valid: auto, pillow, uint8-antialias (--resize-size 256 is the size, --interp"),
        ({"resize_size": 0}, "--resize-size must be from 1 to 8192 pixels, got 0"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(options, message):
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        ExtractRequest(TIMM_TINY, "digits", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["preprocess", "crop", "interpolation"])
def test_unknown_names(name):
    with pytest.raises(UnknownNameError, match=r"unknown .* 'qqq'; valid: "):
        ExtractRequest(TIMM_TINY, "digits", **{name: "qqq"})


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (TIMM_TINY, {"input_size": (100, 160)},
         "--input-size 100x160 is no multiple of the patch of timm:test_vit.r160_in1k, 16 px; the nearest ones are 96x160 and 112x176"),
        ("open_clip:tiny/any", {"input_size": (31, 31)},
         "--input-size 31 is no multiple of the patch of open_clip:tiny/any, 8 px; the nearest ones are 24 and 32"),
        (TIMM_TINY, {"resize_size": 128}, "--resize-size 128 is smaller than the 160 px that are cropped from it"),
    ],
)  # fmt: skip
def test_preprocessing_that_does_not_fit_a_model(weights, model, changes, message):
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        load_backbone(resolve_model(model), weights[model], preprocessing=Preprocessing(**changes))
    assert "\n" not in str(caught.value)


def test_biases_by_relative_position_hold_for_one_size():
    model = Beit(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, use_rel_pos_bias=True)
    message = (
        "^timm:beit_base_patch16_224.in22k_ft_in22k takes images of 32 px only: it has biases by relative "
    )
    with pytest.raises(BackboneError, match=message):
        resize_model(resolve_model("beit-vit-b-16"), model, (64, 64))
    resize_model(resolve_model("beit-vit-b-16"), model, (32, 32))


def test_a_model_that_cannot_be_resized_is_told_in_one_line():
    model = timm.create_model("test_vit", num_classes=0)
    model.set_input_size = None
    with pytest.raises(BackboneError, match=r"takes images of 160 px only \(.*\); leave --input-size out"):
        resize_model(resolve_model(TIMM_TINY), model, (64, 64))


def test_a_crop_of_a_model_that_squashes_needs_the_crop_named():
    own = Settings((160, 160), "bicubic", "none", 1.0, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(
        RequestError, match="--crop-pct is for --crop center, but x is run with --crop none by its"
    ):
        own.changed(Preprocessing(crop_pct=0.8), "x")
    assert own.changed(Preprocessing(crop="center", crop_pct=0.8), "x").resized == (200, 200)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_pct": 0},
        {"crop_pct": "0.9"},
        {"interpolation": "magic"},
        {"crop_mode": "cut"},
        {"mean": [0.5]},
        {"std": [1, 1, 0]},
        {"std": [1, float("nan"), 1]},
    ],
)
def test_a_forged_spec_is_refused(weights, changes):
    spec = load_backbone(resolve_model(TIMM_TINY), weights[TIMM_TINY]).spec
    forged = replace(spec, preprocessing={**spec.preprocessing, **changes})
    with pytest.raises(CacheError, match="makes no sense, so it cannot be repeated"):
        Preprocessing.of_spec(forged, "cache")
    other = replace(spec, preprocessing={"of": "another form"})
    assert Preprocessing.of_spec(other, "cache") is None


# Words.


@pytest.mark.parametrize(
    ("options", "text", "label"),
    [
        ({}, "resized to 168 px on the shorter side (bicubic) and cropped to 160 x 160, with mean 0.5 and deviation 0.5",
         "160 px of 168 px bicubic"),
        ({"input_size": "96x192"}, "resized to cover 101 x 202 (bicubic) and cropped to 96 x 192, with mean 0.5 and deviation 0.5; "
         "position embedding resized (bicubic, antialiased)", "96x192 px of 101x202 px bicubic"),
        ({"crop": "pad", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
         "resized to fit into 160 x 160 (bicubic) and padded to 160 x 160, with ImageNet's mean and deviation", "160 px bicubic padded"),
        ({"crop": "none"}, "resized to 160 x 160 (bicubic, whatever their shape), with mean 0.5", "160 px bicubic squashed"),
    ],
)  # fmt: skip
def test_preprocessing_in_words(weights, options, text, label):
    name = resolve_model(TIMM_TINY)
    asked = PreprocessingOptions(**options).preprocessing_of(name)
    spec = load_backbone(name, weights[TIMM_TINY], preprocessing=asked).spec
    assert preprocessing_text(spec.preprocessing, spec.image_size).startswith(f"images are {text}")
    assert preprocessing_label(spec) == label
