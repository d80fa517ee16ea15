"""Datasets from the Hub, against a server of the test's own on the loopback: fetched once, whole, and named when they are not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.dataset_hub import COMMIT, Repositories, hub_server
from support.datasets import make_parquet, make_shards, shard_members, write_tar
from support.servers import closed_port

FLOWERS = "clip-benchmark/wds_vtab-flowers"


@pytest.fixture
def hub(tmp_path) -> Repositories:
    hub = Repositories()
    hub.add(FLOWERS, make_shards(tmp_path / "source" / "flowers"))
    hub.add("someone/insects", make_parquet(tmp_path / "source" / "insects"))
    return hub


@pytest.fixture
def address(hub):
    with hub_server(hub) as address:
        yield address


def show(endpoint: str, tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Run ``featcache datasets show`` with caches of the test's own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "FEATCACHE_DATA": str(tmp_path / "data"),
        "NO_PROXY": "127.0.0.1",
    }
    command = [str(Path(sys.executable).parent / "featcache"), "datasets", "show", *map(str, arguments)]
    return subprocess.run(command, env=own, capture_output=True, text=True, check=False, timeout=120)


def test_an_alias_is_fetched_once_and_then_needs_no_network(hub, address, tmp_path):
    first = show(address, tmp_path, "flowers", "--no-sheet")
    assert first.returncode == 0, first.stderr
    assert "fetching flowers from the Hugging Face Hub (clip-benchmark/wds_vtab-flowers)" in first.stderr
    assert "downloading: 0/1 MB" in first.stderr
    sent = sorted(hub.downloads())
    assert sent == sorted(hub.files[FLOWERS])
    gone = show(closed_port(), tmp_path, "flowers", "--no-sheet", "--json")
    assert gone.returncode == 0, gone.stderr
    document = json.loads(gone.stdout)
    assert document["identity"]["repository"] == FLOWERS
    assert document["identity"]["revision"] == COMMIT
    assert document["samples"] == {"train": 10, "test": 5}
    assert document["notes"][0] == "flowers has 10 train images, the table of the paper's datasets 1020"
    assert "Nilsback" in document["cite"]

    # A local copy that says what it is of has the same identity; so has the client's own folder.
    copy = make_shards(tmp_path / "copies" / "flowers")
    stated = show(
        closed_port(), tmp_path, "flowers", "--no-sheet", "--json", "--data", copy, "--revision", COMMIT
    )
    assert json.loads(stated.stdout)["identity"] == document["identity"]
    snapshot = next((tmp_path / "hf" / "hub").glob("datasets--*/snapshots/*"))
    found = show(closed_port(), tmp_path, "flowers", "--no-sheet", "--json", "--data", snapshot)
    assert json.loads(found.stdout)["identity"] == document["identity"]
    unknown = show(closed_port(), tmp_path, "flowers", "--no-sheet", "--json", "--data", copy.parent)
    assert json.loads(unknown.stdout)["identity"] == {**document["identity"], "revision": None}


def test_a_download_that_broke_off_goes_on(hub, address, tmp_path):
    shard, chunk = "train/1.tar", 10 * 2**20  # what the client writes at once
    texts = [("readme.txt", bytes(chunk + 2**20))]
    padded = write_tar(tmp_path / "padded.tar", [*shard_members("train", range(3, 5)), *texts])
    hub.files[FLOWERS][shard] = padded.read_bytes()
    hub.broken_off[shard] = chunk + 1000
    done = show(address, tmp_path, "flowers", "--no-sheet")
    if done.returncode:  # older versions of the client do not try again by themselves
        assert "could not be fetched" in done.stderr.splitlines()[-1]
        done = show(address, tmp_path, "flowers", "--no-sheet")
    assert done.returncode == 0, done.stderr
    assert ("GET", f"/datasets/{FLOWERS}/resolve/{COMMIT}/{shard}", f"bytes={chunk}-") in hub.asked


def test_a_file_with_another_digest_is_not_kept(hub, address, tmp_path):
    other = bytearray(hub.files[FLOWERS]["test/1.tar"])
    other[600] ^= 1
    hub.swapped["test/1.tar"] = bytes(other)
    wrong = show(address, tmp_path, "flowers", "--no-sheet")
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1] == (
        f"featcache: {FLOWERS}: test/1.tar is not what the Hub says it is (digest); run the same command again"
    )
    hub.swapped.clear()
    again = show(address, tmp_path, "flowers", "--no-sheet")
    assert again.returncode == 0, again.stderr
    # What was whole is not sent twice.
    assert hub.downloads().count("classnames.txt") == 1
    assert hub.downloads().count("test/1.tar") == 2


def test_a_parquet_repository(hub, address, tmp_path):
    done = show(address, tmp_path, "hf:someone/insects", "--no-sheet", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["targets"]["names"] == ["ant", "bee", "cat"]
    assert document["licence"] == "cc-by-4.0"
    assert (document["identity"]["revision"], document["identity"]["kind"]) == (COMMIT, "hf")
    offline = show(closed_port(), tmp_path, "hf:someone/insects", "--no-sheet", "--json")
    assert json.loads(offline.stdout) == document


def test_what_is_not_there(hub, address, tmp_path):
    misspelt = show(address, tmp_path, "hf:someone/insect")
    assert misspelt.returncode == 2
    assert misspelt.stderr.splitlines()[-1] == (
        "featcache: unknown dataset repository 'someone/insect'; did you mean someone/insects?"
    )
    alias = show(address, tmp_path, "flower")
    assert "unknown dataset 'flower'; did you mean flowers" in alias.stderr
    revision = show(address, tmp_path, "flowers", "--revision", "v2")
    assert revision.stderr.splitlines()[-1] == (
        f"featcache: {FLOWERS} has no revision 'v2'; leave --revision out for the newest"
    )
    empty = show(address, tmp_path, "flowers", "--data", tmp_path)
    assert empty.stderr.splitlines()[-1] == (
        f"featcache: no copy of flowers in {tmp_path}: there must be train/0.tar, ... and test/0.tar, ... in it, or in "
        f"{tmp_path}/flowers or {tmp_path}/wds_vtab-flowers"
    )


def test_without_a_network_the_places_of_a_copy_are_named(tmp_path):
    gone = closed_port()
    done = show(gone, tmp_path, "flowers")
    assert done.returncode == 1
    data = tmp_path / "data"
    assert done.stderr.splitlines()[-1] == (
        f"featcache: dataset {FLOWERS} could not be fetched (no connection to {gone}, and datasets/{FLOWERS} is not in the "
        "local cache); check the connection to the Hugging Face Hub (HF_HUB_OFFLINE, HF_ENDPOINT, proxy); or put a copy, "
        f"laid out as there (train/0.tar, ..., classnames.txt), into {data}/flowers or {data}/wds_vtab-flowers, or name its "
        "folder with --data DIR"
    )
