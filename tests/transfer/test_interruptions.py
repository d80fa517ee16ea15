"""Transfers that are killed at a random moment, through a proxy that drops, delays, truncates and corrupts."""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from featcache.store.address import parse_address
from featcache.store.catalogue.stale_files import find_stale_files
from featcache.store.checking.verify import verify
from featcache.store.errors import CacheNotFoundError, FeatcacheError
from featcache.store.partial_copy import PartialCopy
from featcache.store.transfer import pull as pull_module
from featcache.store.transfer.pull import pull
from featcache.store.transfer.push import push
from featcache.store.transfer.selection import CacheSelection
from support.caches import all_files, make_content, make_plan, write_cache
from support.faulty_proxy import Faults, FaultyProxy
from support.no_backoff import no_backoff
from support.servers import http_server

TRANSFERS = int(os.environ.get("FEATCACHE_TEST_TRANSFERS", "20"))
LONGEST_S = 0.4
PRELOADED = [
    "featcache.store.transfer.push",
    "featcache.store.transfer.pull",
    "obstore",
    "support.no_backoff",
    "zarr",
]


def transfer(direction: str, endpoint: str, address: str, place: Path, part: bool) -> None:
    """In a process of its own: one push or pull, whose failures do not matter."""
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    no_backoff(setattr)
    try:
        if direction == "push":
            push(place, parse_address(address))
        else:
            pull(parse_address(address), [place], CacheSelection(layers="last") if part else None)
    except FeatcacheError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


@pytest.fixture(scope="module")
def processes():
    """Processes that are forked from one that has imported everything, and no clients' threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@pytest.fixture
def proxy(s3_endpoint):
    faults = Faults(int(s3_endpoint.rpartition(":")[2]))
    with http_server(type("Handler", (FaultyProxy,), {"faults": faults})) as port:
        yield faults, f"http://127.0.0.1:{port}"


def killed_until_done(processes, rng: random.Random, *arguments) -> int:
    """Run a transfer, killed twice at a random moment and then left alone, until it succeeds; returns the kills."""
    kills = 0
    for attempt in range(30):
        process = processes.Process(target=transfer, args=arguments)
        process.start()
        process.join(rng.uniform(0, LONGEST_S) if attempt < 2 else 60)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
        elif process.exitcode == 0:
            return kills
    raise AssertionError("a transfer does not come to its end")


def test_killed_transfers_through_a_bad_network_end_well(
    processes, proxy, s3, s3_endpoint, tmp_path, monkeypatch
):
    faults, bad = proxy
    faults.rate, seed = 0.15, random.randrange(10**9)
    rng = faults.rng = random.Random(seed)
    print("seed", seed)
    plan = make_plan({"train": 300}, num_layers=2, width=64)
    content = make_content(plan)
    ours = tmp_path / "ours" / "made" / f"tiny-{plan.spec.key}"
    write_cache(ours, plan, content)
    kills = 0
    for number in range(TRANSFERS // 2):
        remote = f"{s3}-{number}"
        name = f"made/{ours.name}"
        kills += killed_until_done(processes, rng, "push", bad, remote, ours, False)
        kills += killed_until_done(
            processes, rng, "pull", bad, f"{remote}/{name}", tmp_path / f"{number}", rng.random() < 0.3
        )
        # What was pulled in part is completed over a good network, where nothing of it is fetched again.
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
        pull(parse_address(f"{remote}/{name}"), [tmp_path / f"{number}"])
        copy = tmp_path / f"{number}" / name
        found = verify(copy)
        assert found.intact, (seed, [str(damage) for damage in found.damages])
        theirs, mine = all_files(copy), all_files(ours)
        assert theirs.pop("origin.json")
        for path in ("README.md", "provenance.json"):
            theirs.pop(path), mine.pop(path)
        assert theirs == mine, seed
    assert kills, "no process was killed in time"
    assert set(faults.done) >= {"drop", "truncate", "corrupt"} or TRANSFERS < 10


@pytest.mark.parametrize("moment", [0.02, 0.1, 0.2, 0.3])
def test_a_half_pushed_cache_is_not_there(processes, s3, s3_endpoint, tmp_path, moment):
    plan = make_plan({"train": 2000, "test": 90}, width=64)
    ours = tmp_path / "ours" / "made" / f"tiny-{plan.spec.key}"
    write_cache(ours, plan, make_content(plan))
    process = processes.Process(target=transfer, args=("push", s3_endpoint, s3, ours, False))
    process.start()
    time.sleep(moment)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    address = parse_address(f"{s3}/made/{ours.name}")
    try:
        done = pull(address, [tmp_path / "other"])
        assert verify(done.path).intact  # it was faster
    except CacheNotFoundError:
        assert not (tmp_path / "other").exists()
    push(ours, parse_address(s3))
    assert verify(pull(address, [tmp_path / "other"]).path).intact


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A copy whose pull was interrupted (Ctrl-C) after its first file, before there was a manifest."""
    plan = make_plan({"train": 130, "test": 3})
    source = tmp_path / "source/made" / f"tiny-{plan.spec.key}"
    write_cache(source, plan, make_content(plan))
    (tmp_path / "remote").mkdir()
    address = parse_address(f"file://{tmp_path}/remote")
    push(source, address)
    whole, arrived = pull_module.receive_file, []

    def receive(*arguments):
        if arrived:
            raise KeyboardInterrupt
        arrived.append(whole(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(pull_module, "receive_file", receive)
        patch.setattr(pull_module, "CONCURRENT_FILES", 1)
        with pytest.raises(KeyboardInterrupt):
            pull(parse_address(f"{address}/made/{source.name}"), [tmp_path / "root"])
    return source, parse_address(f"{address}/made/{source.name}"), tmp_path / "root/made" / source.name


def test_gc_names_what_an_interrupted_pull_left(interrupted, tmp_path):
    _, _, copy = interrupted
    assert list(copy.rglob("c.*"))
    (item,) = find_stale_files(tmp_path / "root", 0.0, time.time() + 1)
    assert (item.kind, item.path) == ("incomplete", copy)
    item.remove()
    assert not copy.exists()


def test_an_interrupted_pull_is_resumed(interrupted, tmp_path):
    source, address, copy = interrupted
    pull(address, [tmp_path / "root"])
    assert verify(copy).intact
    assert all_files(copy / "features.zarr") == all_files(source / "features.zarr")


def test_an_extraction_where_a_pull_was_interrupted_is_no_copy(interrupted):
    source, _, copy = interrupted
    PartialCopy(make_plan({"train": 130}).inventory, "file:///nowhere").write(copy)
    plan = make_plan({"train": 130, "test": 3})
    write_cache(copy, plan, make_content(plan))
    assert not (copy / "origin.json").exists()
    assert not (copy / "held.json").exists()
    assert all_files(copy).keys() == all_files(source).keys()
