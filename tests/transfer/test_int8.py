"""int8 caches on their way between machines: the scales travel with every part."""

import numpy as np
import pytest

from featcache.store.address import parse_address
from featcache.store.checking.verify import verify
from featcache.store.errors import CacheError
from featcache.store.reading.reader import open_cache
from featcache.store.transfer.pull import pull
from featcache.store.transfer.push import push
from featcache.store.transfer.selection import CacheSelection
from support.caches import all_files, cache_folder, flip, make_plan
from support.int8 import write_int8

SCALE = "features.zarr/scale_norm2/c.0.0.0"


@pytest.fixture
def shared(tmp_path):
    """A pushed int8 cache and the address of it."""
    plan = make_plan(dtype="int8")
    folder = cache_folder(tmp_path / "mine", plan)
    cache, _, _ = write_int8(folder)
    (tmp_path / "team").mkdir()
    push(folder, parse_address(str(tmp_path / "team")))
    return cache, parse_address(f"{tmp_path}/team/made/tiny-{cache.key}")


def test_a_part_has_its_scales_and_grows_to_the_whole(shared, tmp_path):
    cache, address = shared
    part = pull(address, [tmp_path / "there"], CacheSelection(layers="1,final", splits=("test",)))
    copy = open_cache(part.path)
    assert copy.partial
    np.testing.assert_array_equal(
        copy["test"].load(["1", "final"], "cls"), cache["test"].load(["1", "final"], "cls")
    )
    whole = pull(address, [tmp_path / "there"], CacheSelection())
    assert verify(whole.path).intact
    mine, theirs = (
        {n: d for n, d in all_files(f).items() if n.startswith("features.zarr")}
        for f in (cache.directory, whole.path)
    )
    assert mine == theirs


def test_damaged_scales_are_fetched_again(shared, tmp_path, cli):
    cache, address = shared
    copy = pull(address, [tmp_path / "there"], CacheSelection()).path
    flip(copy / SCALE)
    done = cli("verify", copy, "--repair")
    assert done.status == 0, done.out + done.err
    assert (copy / SCALE).read_bytes() == (cache.directory / SCALE).read_bytes()


def test_a_remote_whose_scales_are_damaged_is_refused(shared, tmp_path):
    cache, address = shared
    flip(tmp_path / "team" / "made" / f"tiny-{cache.key}" / SCALE)
    with pytest.raises(CacheError, match="scale_norm2"):
        pull(address, [tmp_path / "there"], CacheSelection())
    assert not list((tmp_path / "there").rglob("manifest.json"))
