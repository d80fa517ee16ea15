"""Straight from the remote: what is needed is fetched once, kept within a limit, and asked about from then on."""

import errno
import fcntl
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

import featcache
from featcache.store.address import parse_address, split_roots
from featcache.store.catalogue.entries import remote_roots, roots
from featcache.store.errors import RequestError
from featcache.store.partial_copy import PartialCopy
from featcache.store.transfer.borrow import IDLE_S, borrowed_copies, make_room, unlock_copy
from featcache.store.transfer.push import push
from support.caches import cache_folder, make_content, make_plan, write_cache
from support.faulty_proxy import Faults, FaultyProxy
from support.servers import http_server

PROBE = ("probe", "--head", "linear", "--protocol", "quick", "--device", "cpu")


@pytest.fixture
def counted(s3_endpoint, monkeypatch):
    """A proxy that counts what is asked of the store."""
    faults = Faults(int(s3_endpoint.rpartition(":")[2]))
    with http_server(type("Handler", (FaultyProxy,), {"faults": faults})) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        yield faults


@pytest.fixture
def far(made, s3, tmp_path, monkeypatch):
    """The cache on a store alone; the local root is empty."""
    push(made.directory, parse_address(s3))
    monkeypatch.setenv("FEATCACHE_ROOT", str(tmp_path / "empty"))
    return f"{s3}/{made.name}"


def test_a_probe_fetches_its_layer_and_then_only_asks(cli, made, far, counted, tmp_path):
    first = cli(*PROBE, "--cache", far, "--out", tmp_path / "results")
    assert first.status == 0, first.err
    assert "borrowed from" in first.err
    here = tmp_path / "empty" / made.name
    row = json.loads(cli("ls", "--json").out)[0]
    assert row["state"] == "partial (1 of 4 layers)"
    assert not (here / "features.zarr/train/norm2/c.0.0.0.0").exists()
    counted.requests.clear()
    second = cli(*PROBE, "--cache", far, "--out", tmp_path / "results")
    assert second.status == 0, second.err
    assert [request.split()[0] for request in counted.requests] == ["HEAD"]
    more = cli(*PROBE, "--cache", far, "--layers", "all", "--tokens", "cls", "--out", tmp_path / "results")
    assert more.status == 0, more.err
    assert (here / "features.zarr/train/norm2/c.0.1.0.0").exists()
    assert "borrowed: 3 of 4 layers" in cli("info").out


def test_a_local_part_refuses_what_it_lacks_and_says_how_to_get_it(cli, made, far, tmp_path):
    assert cli("pull", far, "--layers", "last").status == 0
    refused = cli(*PROBE, "--layers", "all", "--tokens", "cls", "--out", tmp_path / "results")
    assert refused.status == 1
    assert f"featcache pull {far} --split train,test --layers 1,2" in refused.err
    command = refused.err.partition("featcache pull ")[2].split()
    assert cli("pull", *command).status == 0
    assert cli(*PROBE, "--layers", "all", "--tokens", "cls", "--out", tmp_path / "results").status == 0
    assert cli("pull", far, "--layers", "last", "--split", "test", "--root", tmp_path / "test").status == 0
    there = ("--root", tmp_path / "test", "--out", tmp_path / "results", "--force")
    refused = cli(*PROBE, *there)
    assert refused.status == 1
    assert f"featcache pull {far} --split train" in refused.err
    # As it stands there: into the root that lacks it, which is not the default one.
    assert cli("pull", *refused.err.partition("featcache pull ")[2].split()).status == 0
    assert cli(*PROBE, *there).status == 0


def test_without_a_network_the_copy_is_used(cli, far, tmp_path, monkeypatch):
    assert cli(*PROBE, "--cache", far, "--out", tmp_path / "results").status == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    again = cli(*PROBE, "--cache", far, "--out", tmp_path / "results")
    assert again.status == 0, again.err
    assert "could not ask whether" in again.err


def test_a_remote_that_changed_is_fetched_anew(made, far, s3, tmp_path):
    before = featcache.open(far, layers="last")
    other = tmp_path / "elsewhere" / made.name
    content = make_content(made.plan, seed=1)
    write_cache(other, made.plan, content)
    push(other, parse_address(s3), force=True)
    after = featcache.open(far, layers="last")
    assert before.directory == after.directory
    np.testing.assert_array_equal(after["test"].load(["final"], ["cls", "ap"]), content["test"]["final"])


def test_opening_an_address(made, far):
    cache = featcache.open(far, splits=["test"], layers="0")
    np.testing.assert_array_equal(
        cache["test"].load(["0"], ["cls"]), made.content["test"]["norm2"][:, :1, :1]
    )
    assert cache.partial
    whole = featcache.open(far)
    assert not whole.partial
    assert len(borrowed_copies(roots()[0])) == 1


def test_those_not_used_for_long_go_first(s3, tmp_path, monkeypatch):
    root = tmp_path / "empty"
    monkeypatch.setenv("FEATCACHE_ROOT", str(root))
    addresses = []
    for number in range(4):
        plan = make_plan({"train": 200, "test": 90}, number=number)
        folder = cache_folder(tmp_path / "made", plan)
        write_cache(folder, plan, make_content(plan))
        push(folder, parse_address(s3))
        addresses.append((f"{s3}/made/{folder.name}", root / "made" / folder.name))
    size = plan.inventory.num_bytes
    monkeypatch.setenv("FEATCACHE_BORROWED", f"{2.5 * size / 1000:.1f} kB")
    for age, (address, here) in enumerate(addresses[:2]):
        featcache.open(address)
        unlock_copy(here)
        os.utime(here / "held.json", (time.time() - 1000 + age,) * 2)
    os.utime(addresses[0][1] / "held.json")  # used again
    featcache.open(addresses[2][0])
    assert [here.exists() for _, here in addresses[:3]] == [True, False, True]
    # In use, and pulled to stay: neither goes, so the limit is passed rather than work spoilt.
    featcache.open(addresses[0][0])
    featcache.open(addresses[3][0])
    assert [here.exists() for _, here in addresses] == [True, False, True, True]
    for _, here in addresses:
        unlock_copy(here)
    monkeypatch.setenv("FEATCACHE_BORROWED", "1 kB")
    with pytest.raises(RequestError, match="more than borrowed caches may take"):
        featcache.open(addresses[1][0])
    monkeypatch.setenv("FEATCACHE_BORROWED", "lots")
    with pytest.raises(RequestError, match="which is no size"):
        featcache.open(addresses[1][0])


def test_what_is_pulled_after_it_was_borrowed_stays(cli, far, made):
    featcache.open(far, layers="last")
    assert len(borrowed_copies(roots()[0])) == 1
    assert cli("pull", far, "--layers", "last").status == 0
    assert borrowed_copies(roots()[0]) == []


def test_roots_may_name_remotes(monkeypatch, tmp_path):
    text = f"{tmp_path}/a:/b:s3://bucket/team:ssh://me@host:22/x:http://host:8080/y:hf://org/name:/c"
    assert split_roots(text) == [
        f"{tmp_path}/a",
        "/b",
        "s3://bucket/team",
        "ssh://me@host:22/x",
        "http://host:8080/y",
        "hf://org/name",
        "/c",
    ]
    monkeypatch.setenv("FEATCACHE_ROOT", text)
    assert roots() == [tmp_path / "a", Path("/b"), Path("/c")]
    assert [str(a) for a in remote_roots()][:2] == ["s3://bucket/team", "ssh://me@host:22/x"]
    monkeypatch.setenv("FEATCACHE_ROOT", "s3://user:pass@bucket")
    with pytest.raises(RequestError, match="must begin with a folder") as caught:
        roots()
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EBADF, errno.ENOLCK])
def test_without_locks_a_copy_goes_when_it_was_not_asked_for_in_a_day(tmp_path, monkeypatch, number):
    def no_locks(*arguments):
        raise OSError(number, os.strerror(number))

    plan = make_plan({"train": 200, "test": 90})
    folder = cache_folder(tmp_path, plan)
    write_cache(folder, plan, make_content(plan))
    PartialCopy(plan.inventory, "s3://bucket/made", borrowed=True).write(folder)
    monkeypatch.setenv("FEATCACHE_BORROWED", f"{1.5 * plan.inventory.num_bytes / 1000:.1f} kB")
    monkeypatch.setattr(fcntl, "flock", no_locks)
    make_room(tmp_path, plan.inventory, tmp_path / "another")
    assert folder.exists(), "it may be in use"
    os.utime(folder / "held.json", (time.time() - IDLE_S - 1,) * 2)
    make_room(tmp_path, plan.inventory, tmp_path / "another")
    assert not folder.exists()
