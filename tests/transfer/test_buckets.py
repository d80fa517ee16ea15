"""Buckets of the Hub: their client needs Xet, which no local server speaks, so a stand-in for it is called instead."""

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import EntryNotFoundError

from featcache.store.address import parse_address
from featcache.store.checking.verify import verify
from featcache.store.transfer.pull import pull
from featcache.store.transfer.push import push
from featcache.store.transfer.selection import CacheSelection


class StandIn:
    """The methods of `HfApi` that a bucket takes, with their signatures, over a dictionary."""

    token = None

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.stored: list[str] = []

    def create_bucket(self, bucket_id, *, private=None, exist_ok=False):
        assert bucket_id == "team/features"

    def _info(self, path):
        data = self.files[path]
        return SimpleNamespace(
            path=path, size=len(data), xet_hash=str(hash(data)), mtime=None, uploaded_at=datetime.now(UTC)
        )

    def list_bucket_tree(self, bucket_id, prefix=None, *, recursive=None):
        return [self._info(path) for path in self.files if path.startswith(prefix)]

    def get_bucket_paths_info(self, bucket_id, paths):
        return [self._info(path) for path in paths if path in self.files]

    def batch_bucket_files(self, bucket_id, *, add=(), copy=(), delete=()):
        for source, path in add:
            self.files[path] = source if isinstance(source, bytes) else Path(source).read_bytes()
            self.stored.append(path)
        for path in delete:
            del self.files[path]

    def download_bucket_files(self, bucket_id, files, *, raise_on_missing_files=False):
        for path, target in files:
            if path not in self.files:
                raise EntryNotFoundError(path)
            Path(target).write_bytes(self.files[path])


@pytest.fixture
def bucket(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: stand_in)
    return stand_in


def test_the_stand_in_is_called_as_the_client_is():
    from inspect import signature

    from huggingface_hub import HfApi

    for name in (
        "create_bucket",
        "list_bucket_tree",
        "get_bucket_paths_info",
        "batch_bucket_files",
        "download_bucket_files",
    ):
        ours, theirs = (signature(getattr(kind, name)).parameters for kind in (StandIn, HfApi))
        assert ours.keys() <= theirs.keys()


def test_a_cache_goes_to_a_bucket_and_back(cli, made, bucket, tmp_path):
    address = "hf://buckets/team/features/caches"
    push(made.directory, parse_address(address))
    manifest = bucket.stored.index(f"caches/{made.name}/manifest.json")
    assert all("/_catalogue/" in f"/{path}" for path in bucket.stored[manifest + 1 :])
    assert made.plan.spec.key in cli("ls", address).out
    pull(parse_address(f"{address}/{made.name}"), [tmp_path / "other"], CacheSelection(layers="last"))
    copy = pull(parse_address(f"{address}/{made.name}"), [tmp_path / "other"]).path
    assert verify(copy).intact
    assert cli("rm", f"{address}/{made.name}", "--yes").status == 0
    assert bucket.files == {}
