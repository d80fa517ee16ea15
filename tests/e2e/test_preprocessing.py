"""Options of preprocessing through the command line: caches of their own, found again, recomputed from their spec, and refusals."""

import json
from pathlib import Path

import pytest

from .conftest import MODEL, make_images

OPTIONS = [
    (),
    ("--input-size", "64x96", "--crop", "pad"),
    ("--crop", "none", "--interpolation", "nearest", "--mean", "0.1,0.2,0.3", "--std", "0.2,0.2,0.2"),
    ("--input-size", 96, "--resize-size", 128),
]


@pytest.fixture(scope="module")
def few_images(tmp_path_factory) -> Path:
    return make_images(tmp_path_factory.mktemp("few") / "noise", {"a": 6, "b": 6})


def extract(cli, weights, images, *more):
    return cli(
        *("extract", "--model", MODEL, "--weights", weights, "--dataset", f"imagefolder:{images}"),
        *("--precision", "fp32", "--workers", 0, *more),
    )


def test_every_preprocessing_is_a_cache_of_its_own_and_its_spec_repeats_it(cli, weights, few_images):
    keys = set()
    for options in OPTIONS:
        done = extract(cli, weights, few_images, *options, "--json")
        assert done.status == 0, done.err
        cache = json.loads(done.out)
        assert not cache["cached"]
        keys.add(cache["key"])
        again = extract(cli, weights, few_images, *options, "--json")
        assert json.loads(again.out)["key"] == cache["key"]
        assert json.loads(again.out)["cached"]
        checked = cli(
            *("verify", cache["path"], "--recompute", 4, "--dataset", f"imagefolder:{few_images}"),
            *("--weights", weights),
        )
        assert checked.status == 0, checked.out + checked.err
    assert len(keys) == len(OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--input-size", 100), "--input-size 100 is no multiple of the patch of timm:test_vit.r160_in1k, 16 px"),
        (("--resize-size", 100), "--resize-size 100 is smaller than the 160 px that are cropped from it"),
        (("--interpolation", "cubic"), "unknown interpolation 'cubic'; did you mean bicubic?"),
        (("--preprocess", "papers"), "unknown preset of preprocessing 'papers'; did you mean paper?"),
        (("--crop", "none", "--crop-pct", 0.9), "--crop-pct is for --crop center; --crop none keeps the whole image"),
    ],
)  # fmt: skip
def test_refusals_write_nothing(cli, weights, few_images, tmp_path, options, message):
    done = extract(cli, weights, few_images, *options)
    assert done.status == 2
    assert done.out == ""
    assert done.err.splitlines()[-1].startswith(f"featcache: {message}")
    assert not list((tmp_path / "root").rglob("*"))
