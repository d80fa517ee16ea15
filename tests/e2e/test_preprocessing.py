"""Options of preprocessing through the command line: caches of their own, found again, recomputed from their spec, and refusals."""

import json
from pathlib import Path

import pytest

import featcache
from featcache.store.errors import RequestError

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


def others(done) -> list[str]:
    """The notes on caches in another preprocessing, without the folder of the cache."""
    notes = [line for line in done.err.splitlines() if "in another preprocessing" in line]
    return [note.partition(" has the same model and dataset in another preprocessing: ")[2] for note in notes]


def test_a_run_says_which_caches_differ_in_preprocessing_alone(cli, weights, few_images, tmp_path):
    paper = extract(cli, weights, few_images, "--crop", "pad")
    assert others(paper) == []
    bare = extract(cli, weights, few_images)
    assert others(bare) == ["--crop pad takes it; this run makes another cache"]
    lines = bare.err.splitlines()
    loading = next(number for number, line in enumerate(lines) if line.startswith("loading "))
    assert loading > lines.index(next(line for line in lines if "another preprocessing" in line))
    wide = extract(cli, weights, few_images, "--input-size", "64x96", "--dry-run")
    assert others(wide) == [
        "leave the options of preprocessing out to take it; this run makes another cache",
        "--crop pad takes it; this run makes another cache",
    ]
    # Neither an answer nor an addition makes another cache, and another dataset or type is another matter.
    assert others(extract(cli, weights, few_images)) == []
    assert others(extract(cli, weights, few_images, "--tokens", "cls,ap,grid2")) == []
    assert others(extract(cli, weights, few_images, "--limit", 4)) == []
    assert (
        others(extract(cli, weights, few_images, "--input-size", "64x96", "--dtype", "float32", "--dry-run"))
        == []
    )


def test_a_remote_is_looked_at_too(cli, weights, few_images, tmp_path, monkeypatch):
    made = json.loads(extract(cli, weights, few_images, "--crop", "none", "--json").out)
    remote = tmp_path / "remote"
    remote.mkdir()
    assert cli("push", made["key"], f"file://{remote}").status == 0
    monkeypatch.setenv("FEATCACHE_ROOT", f"{tmp_path / 'elsewhere'}:file://{remote}")
    done = extract(cli, weights, few_images)
    assert others(done) == ["--crop none takes it; this run makes another cache"], done.err


def test_info_probe_and_results_name_the_preprocessing_of_caches_that_differ_in_it(
    cli, weights, few_images, tmp_path
):
    keys = []
    for options in ((), ("--crop", "pad", "--interpolation", "bilinear")):
        keys.append(json.loads(extract(cli, weights, few_images, *options, "--json").out)["key"])
        info = cli("info", keys[-1]).out
        assert "images    resized to " in info
    assert "(bilinear) and padded to 160 x 160, with mean 0.5 and deviation 0.5" in info

    ambiguous = cli("probe", "--dataset", few_images.name, "--head", "ncm")
    assert ambiguous.status == 2
    assert f"{keys[0]}  (bicubic, center crop, of 168 px)" in ambiguous.err
    assert f"{keys[1]}  (bilinear, padded, of 160 px)" in ambiguous.err
    for key in keys:
        done = cli("probe", "--cache", key, "--head", "ncm", "--out", "results", "--protocol", "quick")
        assert done.status == 0, done.err
        words = "bicubic, center crop, of 168 px" if key == keys[0] else "bilinear, padded, of 160 px"
        assert next(line for line in done.err.splitlines() if line.startswith("cache: ")).endswith(
            f"({words})"
        )
    table = cli("results", "results").out
    assert "(bicubic, center crop, of 168 px)" in table
    assert "(bilinear, padded, of 160 px)" in table
    assert "padded" not in cli("results", "results", "--view", "pivot").out.splitlines()[0]
    assert f"{keys[1]} (bilinear, padded, of 160 px)" in cli("results", "results", "--view", "pivot").out


def test_a_backbone_of_your_own_takes_no_options_of_preprocessing(few_images):
    with pytest.raises(RequestError, match="a backbone of your own brings its own preprocessing"):
        featcache.extract("mine", f"imagefolder:{few_images}", backbone=object(), input_size=64)
