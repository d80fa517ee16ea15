"""featcache verify through the command line, on caches of a tiny backbone."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from featcache.store.files import read_sealed, sha256_file, write_sealed
from support.caches import all_files, flip
from support.timing import least_seconds

from .conftest import MODEL, make_images


def extract(cli, weights, images, root, *more):
    done = cli(
        *("extract", "--model", MODEL, "--weights", weights, "--dataset", f"imagefolder:{images}"),
        *("--precision", "fp32", "--root", root, "--json", *more),
    )
    assert done.status == 0, done.err
    return json.loads(done.out)


@pytest.fixture(scope="module")
def many_images(tmp_path_factory) -> Path:
    """Enough for two blocks of the train split."""
    return make_images(tmp_path_factory.mktemp("many") / "noise", {"a": 100, "b": 100})


@pytest.fixture
def cache(cli, weights, many_images, tmp_path) -> Path:
    return Path(extract(cli, weights, many_images, tmp_path / "root")["path"])


def of_the_data(cache: Path) -> dict[str, bytes]:
    """All files but the one that says when they were made."""
    return {name: data for name, data in all_files(cache).items() if name != "provenance.json"}


def test_progress_of_a_small_cache_in_a_log(cli, made):
    line = cli("verify", made).err.splitlines()[-1]
    assert re.fullmatch(r"verifying: ([1-9]\d*)/\1 kB(, [\d.]+/s)?", line), line


def test_damage_repair_extract_and_intact_again(cli, weights, many_images, cache, tmp_path):
    whole, provenance = of_the_data(cache), read_sealed(cache / "provenance.json")
    done = cli("verify")
    assert done.status == 0
    assert done.out.startswith(f"{cache}: intact; {len(whole) + 1} files, ")
    assert done.out.endswith("B/s)\n")

    chunk = "features.zarr/train/norm2/c.1.3.0.0"
    flip(cache / chunk)
    flip(cache / "README.md")
    flip(cache / "features.zarr/test/label/zarr.json")
    done = cli("verify", cache.name[-12:-4])
    assert done.status == 1
    assert done.out.splitlines()[:-2] == [
        "README.md: content does not match its SHA-256",
        "features.zarr/test/label/zarr.json: content does not match its SHA-256",
        f"{chunk} (train rows 128-150, layer 3): content does not match its SHA-256",
    ]
    assert done.out.splitlines()[-2].startswith(f"{cache}: 3 files damaged, missing or out of place; ")
    advice = done.out.splitlines()[-1]
    assert advice.startswith(f"run `featcache verify --repair {cache}` to drop what is damaged, ")
    assert "or `featcache pull REMOTE/CACHE --check" in advice

    document = json.loads(cli("verify", cache, "--json").out)
    assert document["state"] == "damaged"
    assert {"file": chunk, "split": "train", "rows": [128, 150], "layer": "3"}.items() <= document["damages"][
        [damage["file"] for damage in document["damages"]].index(chunk)
    ].items()

    done = cli("verify", "--repair")
    assert done.status == 1, "not whole before it is extracted again"
    assert done.out.splitlines()[-1] == (
        "dropped; run the same `featcache extract` again: 22 samples in 1 block are to be extracted"
    )
    done = cli("verify", cache)
    assert done.status == 1
    assert f"{cache}: incomplete, 1 of 3 blocks are missing, what is committed is intact; " in done.out

    result = extract(cli, weights, many_images, tmp_path / "root")
    assert (result["cached"], result["samples"]) == (False, 22)
    assert of_the_data(cache) == whole
    assert read_sealed(cache / "provenance.json")["card_sha256"] == provenance["card_sha256"]
    assert cli("verify", "--all").status == 0

    # Nothing to extract, only the documents to write again.
    flip(cache / "provenance.json")
    done = cli("verify", "--repair")
    assert "0 samples in 0 blocks are to be extracted" in done.out
    assert extract(cli, weights, many_images, tmp_path / "root")["samples"] == 0
    assert cli("verify").status == 0
    assert of_the_data(cache) == whole


def test_a_damaged_manifest_and_wrong_requests(cli, cache, tmp_path):
    renamed = cache.rename(tmp_path / "copy")
    flip(renamed / "manifest.json")
    done = cli("verify", renamed)
    assert done.status == 1
    assert done.out.startswith("manifest.json: ")
    assert "remove the folder and extract again, or fetch the file from whoever has a copy" in done.out
    done = cli("verify", renamed, "--repair")
    assert done.status == 1
    assert done.err.splitlines()[-1].startswith(f"featcache: {renamed} cannot be repaired: manifest.json: ")
    for arguments, message in {
        (): "there is no cache under",
        ("--all",): "there is no cache under",
        (renamed, "--all"): "--all goes with neither CACHE nor --recompute; name one cache for these",
        (
            "--recompute",
            3,
        ): "--dtype-loss and --recompute need the images; give --dataset, for example imagefolder:DIR",
        ("--model", MODEL): "--model is for --recompute; give --recompute K as well",
        ("--seed", 0): "--seed is for --recompute; give --recompute K as well",
        ("--all", "--device", "cpu"): "--device is for --recompute; give --recompute K as well",
    }.items():
        done = cli("verify", *arguments)
        assert done.status == 2
        assert message in done.err
    assert cli("verify", "--threads", 0).status == 2
    # With --all, one that cannot be repaired does not keep the others from it.
    first = cli("verify", "--all", "--repair", "--json", "--root", _root_of_two(renamed, tmp_path))
    assert first.status == 1
    assert [(found["state"], bool(found["repair"])) for found in json.loads(first.out)] == [
        ("damaged", False),
        ("damaged", True),
    ]


def _root_of_two(cache: Path, tmp_path: Path) -> Path:
    """A root with a cache whose manifest is damaged, and one that can be repaired."""
    first = Path(shutil.copytree(cache, tmp_path / "two/a/m-000000000000"))
    second = Path(shutil.copytree(cache, tmp_path / "two/b/m-000000000000"))
    flip(second / "manifest.json")  # the same bit again
    assert first.exists()
    flip(second / "README.md")
    return tmp_path / "two"


def test_recompute_agrees_on_a_good_cache_and_refuses_other_inputs(
    cli, weights, many_images, cache, other_weights, tmp_path
):
    arguments = ("verify", "--recompute", 12, "--dataset", f"imagefolder:{many_images}")
    done = cli(*arguments, "--weights", weights, "--seed", 1)
    assert done.status == 0, done.err
    assert "12 samples recomputed: largest relative difference " in done.out
    assert done.out.splitlines()[-2].endswith("tolerance 0.006: agrees")
    document = json.loads(cli(*arguments, "--weights", weights, "--json").out)["recompute"]
    assert document["agrees"]
    assert [layer["layer"] for layer in document["layers"] if layer["split"] == "train"] == [
        "final",
        *"012345",
    ]
    assert 0 <= max(layer["largest_relative"] for layer in document["layers"]) < 2e-3

    done = cli(*arguments, "--weights", other_weights)
    assert done.status == 2
    assert "the backbone is not what the cache was made with: weights_digest is '" in done.err
    other = make_images(tmp_path / "other", {"a": 9, "b": 9})
    done = cli("verify", "--recompute", 3, "--dataset", f"imagefolder:{other}")
    assert done.status == 2
    assert "is not what the cache was made with: digest is '" in done.err

    flip(cache / "features.zarr/train/norm2/c.0.0.0.0")
    done = cli(*arguments, "--weights", weights)
    assert done.status == 1
    assert "not recomputed: the files are damaged" in done.err


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory) -> Path:
    """The same backbone with one matrix of the first block a little different."""
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=0)
        with torch.no_grad():
            model.blocks[0].mlp.fc1.weight.mul_(1.5)
    path = tmp_path_factory.mktemp("other") / "test_vit.safetensors"
    save_file(model.state_dict(), path)
    return path


def forge(cache: Path, source: Path) -> None:
    """Put the chunks of another cache under this one's manifest, and make the manifest vouch for them."""
    document = read_sealed(cache / "manifest.json")
    for block in document["blocks"]:
        for path, record in block["files"].items():
            data = (source / "features.zarr" / path).read_bytes()
            (cache / "features.zarr" / path).write_bytes(data)
            record["sha256"] = sha256_file(cache / "features.zarr" / path)
    write_sealed(cache / "manifest.json", document)


@pytest.mark.parametrize("what", ["weights", "preprocessing", "order"])
def test_recompute_finds_a_forged_cache(
    cli, weights, other_weights, many_images, cache, tmp_path, what, monkeypatch
):
    if what == "weights":
        source = Path(extract(cli, other_weights, many_images, tmp_path / "other")["path"])
    elif what == "preprocessing":
        import timm

        resolve = timm.data.resolve_model_data_config
        with monkeypatch.context() as patch:
            patch.setattr(
                timm.data, "resolve_model_data_config", lambda model: {**resolve(model), "crop_pct": 0.8}
            )
            source = Path(extract(cli, weights, many_images, tmp_path / "other")["path"])
    else:
        source = cache
        chunks = [cache / f"features.zarr/train/{name}/c.0" for name in ("label", "sample_id")]
        chunks[1] = chunks[1].with_name("c.0.0")
        for chunk in chunks:
            chunk.write_bytes(np.fromfile(chunk, np.uint8).reshape(128, -1)[::-1].tobytes())
    forge(cache, source)
    assert cli("verify", cache).status == 0, "the digests alone do not show it"
    done = cli(
        *("verify", cache, "--recompute", 8),
        *("--dataset", f"imagefolder:{many_images}", "--weights", weights),
    )
    assert done.status == 1
    assert "DIFFERS: " in done.out
    # Features of the right rows under the ids of others are told apart from wrong features.
    assert ("of class" in done.out) == (what == "order")


def test_verify_needs_neither_torch_nor_zarr_and_starts_at_once(cache):
    code = (
        "import sys; sys.argv = sys.argv[1:]\n"
        "from featcache.cli import main\n"
        "main()\n"
        "heavy = {'torch', 'timm', 'open_clip', 'torchvision', 'sklearn', 'zarr'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert least_seconds([sys.executable, "-c", code, "featcache", "verify"])[0] < 0.5
