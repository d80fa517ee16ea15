"""Images of other than three channels, in arrays, for a checkpoint of timm whose patch embedding takes as many."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional

from featcache.extraction.requests.request import ExtractRequest
from featcache.extraction.run import extract
from featcache.extraction.sources import resolve_source
from featcache.extraction.sources.sequences import python_dataset
from featcache.recompute.run import RecomputeRequest, recompute
from featcache.store.errors import DatasetError, RequestError
from featcache.store.reading.reader import open_cache

from .test_freshness import MODEL, Told

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
SIDE, IMAGES = 160, 8
LABELS = np.arange(IMAGES) % 2
FEATURES = ["1", "final"]


def model_of(channels):
    torch.manual_seed(channels)
    return timm.create_model("test_vit", num_classes=0, in_chans=channels).eval()


def statistics(channels):
    return tuple((np.arange(channels) + 1) / (channels + 2)), tuple(
        (np.arange(channels) + 2) / (channels + 3)
    )


def pixels_of(channels):
    coarse = torch.from_numpy(np.random.default_rng(0).random((IMAGES, channels, 7, 9), np.float32))
    smooth = functional.interpolate(coarse, size=(170, 200), mode="bilinear")
    return (smooth * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def expected(channels, pixels):
    """Class token and mean of the patches of `norm2` of block 1 and of the final norm, by timm itself: ``[N, 2, 2, D]``."""
    model = model_of(channels)
    mean, std = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in statistics(channels))
    seen = []
    for module in (model.blocks[1].norm2, model.norm):
        module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    rows = []
    for image in torch.from_numpy(pixels).permute(0, 3, 1, 2):
        height, width = image.shape[1:]
        resized = round(SIDE / 0.95)  # the model's own crop
        short = {
            True: (resized, int(resized * width / height)),
            False: (int(resized * height / width), resized),
        }
        values = functional.interpolate(
            image[None], size=short[height <= width], mode="bicubic", antialias=True
        )[0]
        top, left = (round((side - SIDE) / 2) for side in values.shape[1:])
        values = values[:, top : top + SIDE, left : left + SIDE].float() / 255
        seen.clear()
        with torch.inference_mode():
            model(((values - mean) / std)[None])
        rows.append(np.stack([[tokens[0, 0], tokens[0, 1:].mean(0)] for tokens in seen]))
    return np.stack(rows)


@pytest.fixture
def weights(tmp_path):
    def save(channels):
        path = tmp_path / f"{channels}.safetensors"
        save_file(model_of(channels).state_dict(), path)
        return path

    return save


@pytest.fixture
def run(tmp_path, weights):
    def extract_arrays(dataset, count, source=None, **options):
        mean, std = statistics(count)
        settings = {
            "precision": "fp32",
            "dtype": "float32",
            "workers": 0,
            "device": "cpu",
            "channels": count,
        }
        settings |= {"mean": mean, "std": std, "weights": weights(count)}
        request = ExtractRequest(MODEL, dataset, **settings | options)
        told = Told()
        return extract(request, [tmp_path / "root"], source=source, reporter=told), told.lines

    return extract_arrays


def write(folder, pixels):
    np.savez(folder / "d.npz", images=pixels, labels=LABELS)
    return f"npz:{folder / 'd.npz'}"


def cached(result):
    cache = open_cache(result.path)
    rows = {}
    for split in cache:
        features = cache[split].load(FEATURES, ["cls", "ap"])
        rows |= dict(zip(map(int, cache[split].sample_ids()), features, strict=True))
    return np.stack([rows[row] for row in range(IMAGES)])


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_features_are_those_of_timm_for_any_number_of_channels(run, tmp_path, channels):
    pixels = pixels_of(channels)
    wanted = expected(channels, pixels)
    result, _ = run(write(tmp_path, pixels), channels)
    np.testing.assert_allclose(cached(result).reshape(wanted.shape), wanted, atol=2e-5)
    spec = open_cache(result.path).spec
    assert spec.backbone.channels == spec.dataset["channels"] == channels
    assert spec.backbone.preprocessing["input_size"] == [channels, SIDE, SIDE]
    assert spec.backbone.resize == "uint8-antialias"
    assert run(f"npz:{tmp_path / 'd.npz'}", channels)[0].cached
    # The same images with channels first, of 16 bits, in HDF5 or in a sequence.
    (tmp_path / "first").mkdir()
    deep = np.moveaxis(pixels.astype(np.uint16) * 257, -1, 1)
    assert np.array_equal(cached(run(write(tmp_path / "first", deep), channels)[0]), cached(result))
    source = python_dataset(
        list(zip(pixels, LABELS.tolist(), strict=True)),
        name="made",
        options=ExtractRequest(
            MODEL, "made", channels=channels, mean=statistics(channels)[0], std=statistics(channels)[1]
        ),
    )
    assert np.array_equal(cached(run("made", channels, source)[0]), cached(result))


def test_additions_views_workers_and_recomputation(run, tmp_path, weights):
    dataset, channels = write(tmp_path, pixels_of(5)), 5
    first, _ = run(dataset, channels, workers=2)
    added, _ = run(dataset, channels, taps=("attn",), views="flip")
    assert (added.cached, added.key) == (False, first.key)
    request = RecomputeRequest(samples=IMAGES, dataset=dataset, weights=weights(channels), device="cpu")
    done = recompute(open_cache(first.path), request)
    assert done.agrees
    assert not done.other_samples
    assert done.largest_relative < 1e-5


def test_what_does_not_fit_is_one_line_and_nothing_is_written(run, tmp_path, weights):
    dataset = write(tmp_path, pixels_of(5))
    for message, options in (
        (
            "take images of 5 channels; give --channels 5 and --mean and --std of 5 values",
            {"channels": 3, "mean": None, "std": None},
        ),
        (
            "--mean must be 5 numbers separated by commas, one for each channel, got '0.5,0.5,0.5'",
            {"mean": (0.5,) * 3},
        ),
        ("--std of 5 values each", {"std": None}),
        ("--channels must be from 1 to 1024, got 0", {"channels": 0}),
        ("has no form of pillow", {"resize": "pillow"}),
        ("resized by bicubic or bilinear interpolation with --crop center or none", {"crop": "pad"}),
    ):
        if options.get("channels") == 3:
            write(tmp_path, pixels_of(3))
        with pytest.raises(RequestError) as caught:
            run(dataset, 5, **options)
        assert message in str(caught.value)
        write(tmp_path, pixels_of(5))
    with pytest.raises(
        RequestError, match=r"the weights of .* take images of 3 channels; give --mean and --std of 3 values"
    ):
        run(dataset, 5, weights=weights(3))
    for images, message in (
        (pixels_of(4), r"--channels 5 needs images \[N, H, W, 5\] or \[N, 5, H, W\]"),
        (pixels_of(5)[..., 0], "--channels 5 needs images"),
        (pixels_of(5).astype(np.float32), "does not say what is black and what is white"),
    ):
        with pytest.raises(DatasetError, match=message):
            run(write(tmp_path, images), 5)
    with pytest.raises(
        DatasetError, match="or give --channels C with weights that were trained on C channels"
    ):
        resolve_source(write(tmp_path, pixels_of(5)))
    assert not (tmp_path / "root").exists()


def test_files_and_digits_have_no_further_channels(run, tmp_path):
    from PIL import Image

    for index in range(4):
        path = tmp_path / "d" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(RequestError, match="--channels is for images in arrays of pixels"):
        run(f"imagefolder:{tmp_path / 'd'}", 4)
    with pytest.raises(RequestError, match="leave --channels out"):
        run("digits", 4)
