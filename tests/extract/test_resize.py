"""Two versions of resizing: which one a cache gets, which caches answer, and that one that was begun keeps its own."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from featcache.extraction.planning.candidates import candidate_specs
from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.run import extract
from featcache.probing.results.saved_head import features_digest
from featcache.recompute.run import RecomputeRequest, recompute
from featcache.store.errors import RequestError, UnknownNameError
from featcache.store.reading.reader import open_cache
from featcache.store.spec import PILLOW, UINT8_ANTIALIAS, BackboneSpec

from .test_freshness import MODEL, Told

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, pixels = tmp_path_factory.mktemp("d"), np.random.default_rng(0)
    for name in "ab":
        (root / name).mkdir()
        for index in range(4):
            image = Image.fromarray(pixels.integers(0, 256, (70, 90, 3), np.uint8))
            image.save(root / name / f"{index}.jpg", quality=95)
    return root


@pytest.fixture
def run(tmp_path, weights, folder):
    """Extract the folder; the result and what was said."""

    def extract_folder(**options):
        told = Told()
        settings = {
            "weights": weights,
            "precision": "fp32",
            "dtype": "float32",
            "workers": 0,
            "device": "cpu",
        }
        request = ExtractRequest(MODEL, f"imagefolder:{folder}", **settings | options)
        return extract(request, [tmp_path / "root"], reporter=told), told.lines

    return extract_folder


def features(result) -> np.ndarray:
    return open_cache(result.path)["train"].load(["0", "final"], ["cls", "ap"])


def test_a_cache_of_either_version_answers_a_request_that_leaves_it_open(run):
    fast, _ = run(resize=UINT8_ANTIALIAS)
    again, lines = run()
    assert (again.cached, again.key) == (True, fast.key)
    assert f"{fast.path} was begun with --resize uint8-antialias, which it keeps" in lines
    # The second time it is found without loading the backbone.
    again, lines = run()
    assert (again.cached, again.key) == (True, fast.key)
    assert not any("loading" in line for line in lines)
    own, _ = run(resize=PILLOW)
    assert not own.cached
    assert own.key != fast.key
    assert "resize_version" not in open_cache(own.path).spec.backbone.preprocessing
    assert run(resize=UINT8_ANTIALIAS)[0].key == fast.key
    assert run(resize=PILLOW)[0].key == own.key


def test_features_of_both_versions_agree_within_the_pixels_bound(run):
    ours, theirs = (features(run(resize=resize)[0]).astype(float) for resize in (UINT8_ANTIALIAS, PILLOW))
    assert not np.array_equal(ours, theirs)
    cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert cosine.min() > 0.99999


def test_what_is_added_to_a_cache_is_resized_as_the_cache_was(run, folder, weights):
    fast, _ = run(resize=UINT8_ANTIALIAS)
    added, _ = run(taps=("attn",))
    assert (added.cached, added.key) == (False, fast.key)
    request = RecomputeRequest(samples=6, dataset=f"imagefolder:{folder}", weights=weights, device="cpu")
    done = recompute(open_cache(fast.path), request)
    assert not done.other_samples
    assert max(difference.largest_relative for difference in done.differences) < 1e-5


def test_workers_give_the_same_bytes(run, tmp_path):
    for resize in (PILLOW, UINT8_ANTIALIAS):
        wanted = features(run(resize=resize)[0])
        (tmp_path / "root").rename(tmp_path / resize)
        assert np.array_equal(features(run(resize=resize, workers=2)[0]), wanted)


SPEC = BackboneSpec("timm:x", "0" * 64, 2, 8, 16, {"library": "timm"})


def candidates(resize, device, transform):
    request = SimpleNamespace(
        resize=resize, precision="auto", dtype="float16", orientations=lambda may_be_turned: (False,)
    )
    backbone = SimpleNamespace(spec=SPEC, transform=transform)
    return [
        (spec.precision, spec.backbone.resize)
        for spec in candidate_specs(request, backbone, torch.device(device), {"kind": "made"})
    ]


def test_a_gpu_prefers_the_fast_version_and_a_cpu_pillows_and_both_take_what_there_is(monkeypatch):
    monkeypatch.setattr("featcache.devices.precision.bfloat16_units", lambda: None)
    both = timm.data.create_transform(16, interpolation="bicubic")
    fp32, mixed = (
        [(precision, resize) for resize in (PILLOW, UINT8_ANTIALIAS)] for precision in ("fp32", "mixed")
    )
    assert candidates("auto", "cpu", both) == [*fp32, *mixed]
    assert candidates("auto", "cuda", both) == [*mixed[::-1], *fp32[::-1]]
    assert candidates(PILLOW, "cuda", both) == [mixed[0], fp32[0]]


def test_preprocessing_without_the_fast_version():
    border = timm.data.create_transform(16, interpolation="bicubic", crop_mode="border")
    assert candidates("auto", "cuda", border) == [("mixed", PILLOW), ("fp32", PILLOW)]
    with pytest.raises(
        RequestError, match="--resize must be one of auto, pillow for timm:x, whose preprocessing has no form"
    ):
        candidates(UINT8_ANTIALIAS, "cpu", border)
    with pytest.raises(UnknownNameError, match="'fast'"):
        ExtractRequest(MODEL, "imagefolder:d", resize="fast")


def test_the_version_is_in_the_spec_and_not_in_the_meaning_of_tokens():
    fast = SPEC.resized_by(UINT8_ANTIALIAS)
    assert (SPEC.resize, fast.resize) == (PILLOW, UINT8_ANTIALIAS)
    assert fast.preprocessing == {"library": "timm", "resize_version": UINT8_ANTIALIAS}
    assert fast.resized_by(PILLOW) == SPEC
    assert features_digest(fast) == features_digest(SPEC)
    assert features_digest(replace(SPEC, input_size=32)) != features_digest(SPEC)
    assert asdict(SPEC.resized_by(PILLOW)) == asdict(SPEC)
