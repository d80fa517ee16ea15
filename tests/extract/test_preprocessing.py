"""The two parts of a model's preprocessing against the library's own steps, bit for bit or within the bound that is stated."""

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision import transforms

from featcache.extraction.decoding.preprocessing import in_two_parts, versions_of, with_resize
from featcache.store.spec import PILLOW, UINT8_ANTIALIAS

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [(500, 375), (375, 500), (64, 48), (20, 20), (224, 224), (1000, 130), (225, 224), (33, 700)]


def timm_steps(**options):
    settings = {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": MEAN,
        "std": STD,
    }
    return timm.data.create_transform(**settings | options)


def open_clip_steps(**options):
    settings = {
        "is_train": False,
        "mean": MEAN,
        "std": STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    return image_transform((224, 224), **settings | options)


BOTH = {
    "timm": timm_steps(),
    "timm, bilinear": timm_steps(interpolation="bilinear"),
    "timm, squash": timm_steps(crop_mode="squash"),
    "timm, whole": timm_steps(crop_pct=1.0),
    "open_clip": open_clip_steps(),
    "open_clip, squash": open_clip_steps(resize_mode="squash"),
    "open_clip, bilinear": open_clip_steps(interpolation="bilinear"),
}
"""Preprocessing that has both versions of resizing."""
PILLOW_ALONE = {
    "timm, border": timm_steps(crop_mode="border"),
    "timm, nearest": timm_steps(interpolation="nearest"),
    "timm, lanczos": timm_steps(interpolation="lanczos"),
    "open_clip, longest": open_clip_steps(resize_mode="longest", fill_color=7),
}


def photo(size, seed=0):
    """Smooth areas with noise, as photographs have them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    return Image.fromarray(
        (np.asarray(coarse) + rng.normal(0, 12, (size[1], size[0], 3))).clip(0, 255).astype(np.uint8)
    )


def prepared(transform, image):
    return transform.prepare(image, np.array(image))


@pytest.mark.parametrize("name", [*BOTH, *PILLOW_ALONE])
def test_pillows_pixels_normalized_are_the_librarys_values_bit_for_bit(name):
    own = (BOTH | PILLOW_ALONE)[name]
    transform = with_resize(own, PILLOW)
    for size in SIZES:
        image = photo(size)
        pixels = prepared(transform, image)
        assert pixels.dtype == torch.uint8
        assert torch.equal(transform.normalize(pixels[None])[0], own(image))


def in_two_passes(step):
    """A resize by Pillow, rows first; Pillow 13 begins with the columns where that is less work, which a squash may be."""

    kind = Image.Resampling[step.interpolation.name]

    def resize(image):
        width, height = step(image).size
        return image.resize((width, image.height), kind).resize((width, height), kind)

    return resize


@pytest.mark.parametrize("name", BOTH)
def test_8_bit_pixels_differ_from_pillows_by_two_at_most(name):
    transform = with_resize(BOTH[name], UINT8_ANTIALIAS)
    resize, *others = with_resize(BOTH[name], PILLOW).steps
    other = replace(transform, steps=(in_two_passes(resize), *others), resize=PILLOW)
    for seed, size in enumerate(SIZES):
        image = photo(size, seed)
        ours, theirs = (prepared(one, image).to(torch.int16) for one in (transform, other))
        assert ours.shape == theirs.shape == (3, 224, 224)
        difference = (ours - theirs).abs()
        assert difference.max() <= 2
        assert difference.float().mean() < 0.02


def test_every_8_bit_value_is_normalized_as_torchvision_does():
    transform = in_two_parts(timm_steps())
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    image = Image.fromarray(ramp[0].permute(1, 2, 0).contiguous().numpy())
    wanted = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])(image)
    normalized = transform.normalize(ramp, failed=[1])
    assert torch.equal(normalized[0], wanted)
    assert not normalized[1].any()
    assert normalized.is_contiguous()


def test_versions_that_a_models_preprocessing_has():
    assert {versions_of(own) for own in BOTH.values()} == {(PILLOW, UINT8_ANTIALIAS)}
    assert {versions_of(own) for own in PILLOW_ALONE.values()} == {(PILLOW,)}
    with pytest.raises(ValueError, match="resize must be one of pillow, got 'uint8-antialias'"):
        with_resize(PILLOW_ALONE["timm, border"], UINT8_ANTIALIAS)


@pytest.mark.parametrize(
    "own",
    [
        np.asarray,
        transforms.ToTensor(),
        transforms.Compose([transforms.ToTensor()]),
        transforms.Compose([transforms.Resize(8), transforms.ToTensor()]),
    ],
)
def test_preprocessing_of_another_form_stays_as_it_is(own):
    assert versions_of(own) == (PILLOW,)
    assert with_resize(own, PILLOW) is own


def test_both_versions_can_be_sent_to_another_process():
    for resize in (PILLOW, UINT8_ANTIALIAS):
        transform = with_resize(BOTH["open_clip"], resize)
        image = photo((90, 60))
        assert torch.equal(prepared(pickle.loads(pickle.dumps(transform)), image), prepared(transform, image))


PROGRAM = """
import hashlib, numpy as np, torch
from torch.nn.functional import interpolate
rng, digest = np.random.default_rng(0), hashlib.sha256()
for mode in ("bicubic", "bilinear"):
    for _ in range(40):
        (h, w), size = rng.integers(2, 300, 2), [int(side) for side in rng.integers(2, 300, 2)]
        pixels = torch.from_numpy(rng.integers(0, 256, (h, w, 3), np.uint8)).permute(2, 0, 1)
        resized = interpolate(pixels[None], size=size, mode=mode, antialias=True, align_corners=False)
        digest.update(resized.contiguous().numpy())
print(torch.backends.cpu.get_cpu_capability(), digest.hexdigest())
"""


@pytest.mark.parametrize("threads", ["1", "2"])
def test_8_bit_pixels_are_the_same_with_and_without_vector_instructions(threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    digests = {}
    for capability in ("default", "avx2", "avx512"):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
        run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
        used, digest = run.stdout.split()
        digests[used] = digest
    assert "DEFAULT" in digests
    assert len(set(digests.values())) == 1
