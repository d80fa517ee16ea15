"""What of a backbone is cached: more than the default in one go, or step by step; images that fail or that are shared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import featcache as package
from support.caches import all_files

from .conftest import make_images
from .test_chain import extract_arguments

RICH = ("--tap", "norm2,mlp", "--layers", "1,4", "--tokens", "grid2", "--patches", "4,final")


def only_data(folder):
    return {path: content for path, content in all_files(Path(folder)).items() if "/c." in path}


def test_a_cache_grows_and_what_it_holds_is_found_at_once(cli, weights, images, tmp_path):
    dataset = f"imagefolder:{images}"
    steps = (("--split", "test"), ("--layers", "1,4"), RICH)
    for step in steps:
        done = cli(*extract_arguments(weights, dataset, *step, "--json"))
        assert done.status == 0, done.err
        result = json.loads(done.out)
        assert not result["cached"]
        assert cli("verify").status == 0
    at_once = cli(*extract_arguments(weights, dataset, "--root", tmp_path / "other", *RICH))
    assert at_once.status == 0, at_once.err
    (other,) = (tmp_path / "other").glob("*/*")
    # The first step cached all blocks of the test split; everything else is as in the run that asked for all.
    grown, whole = only_data(result["path"]), only_data(other)
    assert {path: grown[path] for path in whole} == whole
    assert all("/test/norm2/" in path for path in grown.keys() - whole.keys())
    for step in (*steps, ("--layers", "4", "--tokens", "cls+ap"), ("--patches", "final", "--layers", "1")):
        assert "already cached" in cli(*extract_arguments(weights, dataset, *step)).out
    info = cli("info")
    assert "norm2_patches: float16 [90, 6, 100, 64], layers 4, tokens patch0 to patch99" in info.out
    assert "mlp_grid2: float16 [90, 6, 4, 192], layers 1, 4, tokens grid2_0 to grid2_3" in info.out
    assert info.out.count("\naddition\n") == 2
    recomputed = cli("verify", "--recompute", 10, "--dataset", dataset, "--weights", weights, "--json")
    document = json.loads(recomputed.out)["recompute"]
    assert document["agrees"]
    assert {layer["array"] for layer in document["layers"]} >= {"mlp_patches", "final_grid2", "norm2"}


def test_statistics_of_the_patches_are_added_to_a_cache_that_keeps_its_key(cli, weights, images, tmp_path):
    dataset = f"imagefolder:{images}"
    arguments = (*extract_arguments(weights, dataset), "--json")
    plain = json.loads(cli(*arguments).out)
    before = json.loads((Path(plain["path"]) / "manifest.json").read_text())
    assert before["spec"]["format_version"] == 2
    added = cli(*arguments, "--tokens", "sd+max+min,gem", "--patches", "4")
    assert added.status == 0, added.err
    result = json.loads(added.out)
    assert (result["key"], result["cached"]) == (plain["key"], False)
    manifest = json.loads((Path(plain["path"]) / "manifest.json").read_text())
    assert manifest["spec"] == before["spec"] | {"format_version": 3}
    assert cli("verify").status == 0
    cache = package.open(result["path"])
    assert cache.spec.key == plain["key"]
    train = cache["train"]
    patches = train.view(group="patches")
    stored = patches.load(["4"], patches.tokens).astype(np.float32)[:, 0]
    for name, expected in (("sd", stored.std(1)), ("max", stored.max(1)), ("min", stored.min(1))):
        values = train.view(group=name).load(["4"], [name])
        assert values.shape == (90, 1, 1, 64)
        np.testing.assert_allclose(values[:, 0, 0], expected, rtol=2e-3, atol=2e-3)
    assert json.loads(cli(*arguments).out)["cached"], "a bare extract is answered by the cache"
    assert json.loads(cli(*arguments, "--tokens", "max").out)["cached"]
    recomputed = cli("verify", "--recompute", 10, "--dataset", dataset, "--weights", weights, "--json")
    document = json.loads(recomputed.out)["recompute"]
    assert document["agrees"]
    assert {layer["array"] for layer in document["layers"]} >= {"norm2_sd", "final_gem"}


def test_an_image_that_does_not_decode(cli, weights, images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "photos")
    for name in ("green/007.png", "red/011.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:60])
    arguments = extract_arguments(weights, f"imagefolder:{folder}")
    stopped = cli(*arguments)
    assert stopped.status == 1
    assert "does not decode" in stopped.err
    assert "--on-error skip" in stopped.err
    skipped = cli(*arguments, "--on-error", "skip")
    assert skipped.status == 0, skipped.err
    assert skipped.err.count("skipped: image") == 2
    assert "note: 2 samples have no features" in skipped.out
    result = json.loads(cli(*arguments, "--json").out)
    assert (result["cached"], result["skipped"]) == (True, 2)
    cache = package.open(result["path"])
    gone = {
        name
        for split in cache.inventory.splits
        for name, valid in zip(cache[split].sample_ids(), cache[split].valid(), strict=True)
        if not valid
    }
    assert gone == {"green/007.png", "red/011.png"}
    assert {name for ids in cache.provenance["skipped"].values() for name in ids} == gone
    assert "skipped   2 samples without features" in cli("info").out
    assert cli("verify").status == 0
    row = json.loads(cli("probe", "--head", "linear", "--protocol", "quick", "--json").out)[0]
    assert row["train_samples"] + row["test_samples"] == 118


def test_images_that_train_and_test_share_are_reported(cli, weights, tmp_path):
    counts = {"blue": 12, "green": 12}
    train = make_images(tmp_path / "photos" / "train", counts)
    make_images(tmp_path / "photos" / "test", counts, seed=1)
    # The same pixels under another name and in another class, in a file of other bytes.
    from PIL import Image

    with Image.open(train / "blue" / "003.png") as image:
        image.save(tmp_path / "photos" / "test" / "green" / "twin.bmp")
    shutil.copy(train / "green" / "005.png", tmp_path / "photos" / "test" / "green" / "copy.png")
    done = cli(*extract_arguments(weights, f"imagefolder:{tmp_path / 'photos'}"))
    assert done.status == 0, done.err
    line = "note: 2 images of test are in train too, pixel for pixel (green/copy.png, green/twin.bmp)"
    assert line in done.out.replace("test/green", "green")
    assert "leakage   2 images of test are in train too" in cli("info").out
    (shared,) = json.loads(cli("info", "--json").out)["shared_images"]
    assert (shared["splits"], shared["count"]) == (["train", "test"], 2)
    digests = package.open(json.loads(cli("info", "--json").out)["path"]).provenance["content_sha256"]
    assert len(set(digests.values())) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tap", "norm3"), "unknown tap 'norm3'; did you mean norm1, norm2?"),
        (("--tokens", "patchs"), "unknown token kind 'patchs'; did you mean patches?"),
        (("--split", "val"), "unknown split 'val'; valid: train, test"),
        (("--patches", "6"), "unknown layer '6'"),
        (("--tokens", "registers"), "has no registers; leave them out of --tokens"),
        (("--on-error", "ignore"), "unknown way to treat errors 'ignore'; valid: stop, skip"),
    ],
)
def test_what_there_is_not(cli, weights, images, tmp_path, arguments, message):
    done = cli(*extract_arguments(weights, f"imagefolder:{images}", *arguments))
    assert done.status == 2
    assert message in done.err.splitlines()[-1].replace("norm2, norm1", "norm1, norm2")
    assert not list((tmp_path / "root").glob("*/*/features.zarr"))


def test_layers_of_other_taps_are_read_in_python(cli, weights, images):
    done = cli(*extract_arguments(weights, f"imagefolder:{images}", *RICH, "--json"))
    train = package.open(json.loads(done.out)["path"])["train"]
    hidden = train.view("mlp")
    assert (hidden.layers, hidden.width, hidden.tokens) == (("1", "4"), 192, ("cls", "ap"))
    patches = train.view(group="patches").load(["4", "final"], ["patch0", "patch99"])
    assert patches.shape == (90, 2, 2, 64)
    everything = train.view(group="patches")
    average = everything.load(["4"], everything.tokens).astype(np.float32).mean(2)
    np.testing.assert_allclose(average[:, 0], train.load(["4"], ["ap"])[:, 0, 0], atol=5e-3)


def test_a_module_of_ones_own(cli, images, tmp_path):
    import timm
    import torch
    from torchvision import transforms

    from featcache.extraction.backbones.base import TokenLayout
    from featcache.extraction.backbones.custom import Parts, custom_backbone
    from featcache.extraction.requests.request import ExtractRequest
    from featcache.extraction.run import extract

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = timm.create_model("test_vit", num_classes=0).eval()
    transform = transforms.Compose([transforms.Resize((160, 160)), transforms.ToTensor()])
    parts, layout = Parts("blocks", "norm", {"norm2": "norm2"}), TokenLayout(True, 0, (10, 10))
    options = {"name": "mine", "input_size": 160, "transform": transform, "preprocessing": {"size": 160}}
    backbone = custom_backbone(module, parts, layout, **options)
    request = ExtractRequest("mine", f"imagefolder:{images}", precision="fp32")
    result = extract(request, [tmp_path / "root"], backbone=backbone)
    assert not result.cached
    assert extract(request, [tmp_path / "root"], backbone=backbone).cached
    assert cli("verify").status == 0
    assert "mine" in cli("ls").out
    assert (
        json.loads(cli("probe", "--head", "linear", "--protocol", "quick", "--json").out)[0]["test_samples"]
        == 30
    )
    with torch.no_grad():
        module.blocks[0].norm1.weight += 1
    changed = extract(
        request, [tmp_path / "root"], backbone=custom_backbone(module, parts, layout, **options)
    )
    assert changed.key != result.key
