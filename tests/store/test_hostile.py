"""A cache from elsewhere is data: whatever its documents say, reading ends in values or in a CacheError, soon."""

import copy
import json
import os
import random
import resource
import shutil

import pytest

from featcache.store.checking.verify import verify
from featcache.store.errors import FeatcacheError
from featcache.store.files import read_sealed, write_sealed
from featcache.store.reading.reader import open_cache
from support.caches import make_content, make_plan, write_cache

CASES = int(os.environ.get("FEATCACHE_TEST_FUZZ", "2000"))
# What a forged field may hold: wrong types, negative, overflowing, paths, deep and long values.
VALUES = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        7,
        128,
        2**31,
        2**47,
        2**63,
        2**200,
        1.5,
        "",
        "x",
        "..",
        "../../etc/passwd",
    ),
    *("/etc/passwd", "train/../..", "a" * 5000, "\0", "é", [], [[]], [0], [-1], [2**40] * 4, {}, {"a": {}}),
    *(["cls", "cls"], ["0"] * 9, "float32", "object", "bfloat16", "norm2", "final"),
)
MAX_EXTRA_BYTES = 500 * 2**20


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    plan = make_plan({"train": 130, "test": 3}, num_layers=2, width=2)
    directory = tmp_path_factory.mktemp("hostile") / "cache"
    write_cache(directory, plan, make_content(plan))
    return directory


def mutate(document, rng):
    """Change, remove, double or swap one to three values anywhere in a document."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        spot = document
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            if not keys:
                break
            key = rng.choice(keys)
            inner = spot[key]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
                spot = inner
                continue
            action = rng.randrange(4)
            if action == 0 and isinstance(spot, dict):
                del spot[key]
            elif action == 1 and isinstance(spot, dict):
                spot[rng.choice(("..", "a/b", "", "train", "norm2", "extra"))] = copy.deepcopy(inner)
            elif action == 2:
                other = rng.choice(keys)
                spot[key], spot[other] = spot[other], spot[key]
            else:
                spot[key] = copy.deepcopy(rng.choice(VALUES))
            break


def read_everything(directory):
    cache = open_cache(directory, allow_partial=True)
    assert cache.provenance is not None
    for name in cache.inventory.splits:
        split = cache[name]
        split.labels(), split.valid(), split.sample_ids()
        split.load(split.layers, split.tokens)
        split.gather([0, split.num_samples - 1], split.layers, split.tokens)


@pytest.mark.parametrize(
    "target", ["manifest.json", "features.zarr/train/norm2/zarr.json", "provenance.json"]
)
def test_forged_documents(original, tmp_path, target):
    rng = random.Random(target)
    directory = tmp_path / "cache"
    shutil.copytree(original, directory)
    path = directory / target
    sealed = target in ("manifest.json", "provenance.json")
    document = read_sealed(path) if sealed else json.loads(path.read_text())
    before = set(tmp_path.rglob("*"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(CASES // 3):
        forged = copy.deepcopy(document)
        mutate(forged, rng)
        if sealed:
            write_sealed(path, forged)
        else:
            path.write_text(json.dumps(forged))
        for use in (read_everything, verify):
            try:
                use(directory)
            except FeatcacheError:
                refused += 1
    assert refused or target == "provenance.json"
    assert set(tmp_path.rglob("*")) == before, "reading a cache writes nothing"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    assert grown < MAX_EXTRA_BYTES
