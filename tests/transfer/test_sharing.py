"""Several people at one remote: nothing is lost, nothing is mixed."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featcache.store.address import CacheName, parse_address
from featcache.store.checking.verify import verify
from featcache.store.errors import CacheBusyError, CacheError
from featcache.store.inventory import Inventory
from featcache.store.journal import Plan
from featcache.store.manifest import Manifest, manifest_digest
from featcache.store.planning import TokenArray, plan_arrays
from featcache.store.transfer.catalogue import CatalogueEntry, push_marker
from featcache.store.transfer.pull import pull
from featcache.store.transfer.push import push
from featcache.store.transfer.remotes import objects, open_remote
from featcache.store.transfer.selection import CacheSelection
from featcache.store.writing.writer import CacheWriter
from support.caches import all_files, cache_folder, make_content, make_plan, make_spec, write_cache
from support.faulty_proxy import Faults, FaultyProxy
from support.servers import http_server


def with_tap(made, root: Path, tap: str, seed: int = 5) -> Path:
    """A copy of the cache that has one more tap in its test split."""
    directory = root / made.name
    if not directory.exists():
        write_cache(directory, made.plan, made.content)
    wanted = [TokenArray(tap, "pooled", ("0", "1", "2"), 3, ("cls", "ap"), 4)]
    split = plan_arrays("test", 90, wanted, 4, "float16", 12)
    arrays = {tap: split.arrays[tap]}
    plan = Plan(
        made.plan.spec,
        Inventory({"test": type(split)("test", 90, 128, arrays)}, made.plan.inventory.class_names),
        32,
    )
    content = make_content(plan, seed=seed)
    with CacheWriter(directory, plan) as writer:
        while (block := writer.claim()) is not None:
            block.append({tap: content["test"][tap]})
            writer.commit(block)
        writer.finish({"completed_at": 2.0}, "")
    return directory


def test_different_caches_pushed_at_once_are_all_listed(cli, s3, tmp_path):
    folders = []
    for number in range(6):
        plan = make_plan({"train": 10, "test": 5}, number=number)
        folder = cache_folder(tmp_path / "root", plan)
        write_cache(folder, plan, make_content(plan))
        folders.append(folder)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda folder: push(folder, parse_address(s3)), folders))
    rows = json.loads(cli("ls", s3, "--json").out)
    assert {row["key"] for row in rows} == {folder.name[-12:] for folder in folders}
    for folder in folders:
        assert verify(pull(parse_address(f"{s3}/made/{folder.name}"), [tmp_path / "other"]).path).intact


def test_the_same_cache_pushed_at_once(made, s3, tmp_path, cli):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: push(made.directory, parse_address(s3)), range(4)))
    assert len(json.loads(cli("ls", s3, "--json").out)) == 1
    with open_remote(parse_address(s3)) as remote:
        assert len(remote.files("_catalogue")) == 1  # no marker stays
    assert verify(pull(parse_address(f"{s3}/{made.name}"), [tmp_path / "other"]).path).intact


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_other_values_are_not_mixed(made, request, kind, tmp_path, cli):
    """Two runs whose rounding differs: the second push is refused, or replaces all of it."""
    remote = request.getfixturevalue(kind)
    other = tmp_path / "elsewhere" / made.name
    write_cache(other, made.plan, make_content(made.plan, seed=1))
    assert cli("push", made.directory, remote).status == 0
    refused = cli("push", other, remote)
    assert refused.status == 1
    assert "--force" in refused.err
    kept = pull(parse_address(f"{remote}/{made.name}"), [tmp_path / "first"]).path
    assert Manifest.read(kept) == Manifest.read(made.directory)
    assert cli("push", other, remote, "--force").status == 0
    replaced = pull(parse_address(f"{remote}/{made.name}"), [tmp_path / "second"]).path
    assert verify(replaced).intact
    assert Manifest.read(replaced) == Manifest.read(other)
    assert len(json.loads(cli("ls", remote, "--json").out)) == 1


def test_a_push_of_other_values_that_is_under_way_is_respected(made, s3, tmp_path, cli):
    name = CacheName.parse(*made.name.split("/"))
    with open_remote(parse_address(s3)) as remote:
        remote.put_bytes(push_marker(name, "0" * 16), b"")
        remote.put_bytes(f"{name}/features.zarr/train/norm2/c.0.0.0.0", b"x" * 2048)  # of the right size
    with pytest.raises(CacheBusyError, match="somebody is pushing"):
        push(made.directory, parse_address(s3))
    assert json.loads(cli("ls", s3, "--json").out)[0]["state"] == "being pushed"
    push(made.directory, parse_address(s3), force=True)
    assert verify(pull(parse_address(f"{s3}/{made.name}"), [tmp_path / "other"]).path).intact


def test_an_addition_pushes_what_is_new_alone(made, folder, tmp_path):
    first = push(made.directory, parse_address(folder))
    grown = with_tap(made, tmp_path / "grown", "mlp")
    second = push(grown, parse_address(folder))
    assert (first.files, second.files) == (28, 3)
    address = parse_address(f"{folder}/{made.name}")
    done = pull(address, [tmp_path / "root"])  # to the copy that was pushed first
    assert done.files == 3
    assert Manifest.read(made.directory) == Manifest.read(grown)
    assert verify(made.directory).intact
    assert push(made.directory, parse_address(folder)).there


def test_additions_of_two_people_come_together(made, folder, tmp_path, cli):
    mine = with_tap(made, tmp_path / "mine", "mlp")
    theirs = with_tap(made, tmp_path / "theirs", "attn", seed=6)
    address = parse_address(f"{folder}/{made.name}")
    push(mine, parse_address(folder))
    refused = cli("push", theirs, folder)
    assert refused.status == 1
    command = refused.err.partition("run `featcache pull ")[2].partition("`")[0].split()
    assert cli("pull", *command).status == 0
    assert verify(theirs).intact
    push(theirs, parse_address(folder))
    pull(address, [tmp_path / "mine"])
    assert Manifest.read(mine) == Manifest.read(theirs)
    assert verify(mine).intact
    assert len(json.loads(cli("ls", folder, "--json").out)) == 1


def test_only_whole_and_intact_caches_are_pushed(made, folder, tmp_path, cli):
    push(made.directory, parse_address(folder))
    part = pull(
        parse_address(f"{folder}/{made.name}"), [tmp_path / "part"], CacheSelection(layers="last")
    ).path
    (tmp_path / "second").mkdir()
    refused = cli("push", part, tmp_path / "second")
    assert refused.status == 1
    assert f"complete it first: featcache pull {tmp_path}/share/{made.name}" in refused.err
    chunk = made.directory / "features.zarr/test/norm2/c.0.1.0.0"
    chunk.write_bytes(b"x" * chunk.stat().st_size)
    damaged = cli("push", made.directory, tmp_path / "second")
    assert damaged.status == 1
    assert "content does not match its SHA-256, so it is not pushed" in damaged.err
    assert json.loads(cli("ls", tmp_path / "second", "--json").out)[0]["state"] == "being pushed"
    assert cli("pull", tmp_path / "second" / made.name, "--root", tmp_path / "x").status == 2
    unfinished = cli("push", tmp_path / "nothing", folder)
    assert unfinished.status == 2


def test_large_files_go_in_parts(made, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "SINGLE_PUT_BYTES", 500)
    push(made.directory, parse_address(s3))
    assert verify(pull(parse_address(f"{s3}/{made.name}"), [tmp_path / "other"]).path).intact
    chunk = "features.zarr/test/norm2/c.0.1.0.0"
    (made.directory / chunk).write_bytes(b"x" * (made.directory / chunk).stat().st_size)
    with pytest.raises(CacheError, match="so it is not pushed"):
        push(made.directory, parse_address(f"{s3}-2"))
    with open_remote(parse_address(f"{s3}-2")) as remote:
        there = remote.files(made.name)
    assert "features.zarr/train/norm2/c.0.1.0.0" in there
    assert chunk not in there


def test_profiles_of_aws(made, s3, s3_endpoint, tmp_path, monkeypatch, cli):
    """Keys and endpoint come from the profile's files; nothing of them is told when they do not fit."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "home" / ".aws").mkdir(parents=True)
    config = f"[profile team]\nregion = us-east-1\nendpoint_url = {s3_endpoint}\n"
    (tmp_path / "home" / ".aws" / "config").write_text(config)
    secret = "a-secret-of-the-profile"
    keys = f"[team]\naws_access_key_id = AKIATEAM\naws_secret_access_key = {secret}\n"
    (tmp_path / "home" / ".aws" / "credentials").write_text(keys)
    monkeypatch.setenv("AWS_PROFILE", "team")
    assert cli("push", made.directory, s3).status == 0
    assert len(json.loads(cli("ls", s3, "--json").out)) == 1
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    outcome = cli("ls", s3)
    assert outcome.status == 2
    assert "the profile of AWS cannot be used: The config profile (nobody) could not be found" in outcome.err
    assert secret not in outcome.err


def test_a_store_that_lacks_its_settings(cli):
    outcome = cli("ls", "az://container/team")
    assert outcome.status == 2
    assert "cannot be opened" in outcome.err
    assert "AZURE_STORAGE_ACCOUNT_NAME" in outcome.err


def test_check_mends_a_copy(made, folder, tmp_path, cli):
    push(made.directory, parse_address(folder))
    chunk = made.directory / "features.zarr/test/norm2/c.0.1.0.0"
    chunk.write_bytes(b"x" * chunk.stat().st_size)
    address = f"{folder}/{made.name}"
    assert json.loads(cli("pull", address, "--json").out)["files"] == 0  # sizes are right
    assert json.loads(cli("pull", address, "--check", "--json").out)["files"] == 1
    assert verify(made.directory).intact


def test_the_real_client_reads_what_was_pushed(made, s3, tmp_path):
    """Amazon's own command line: the files are plain, under their plain names."""
    push(made.directory, parse_address(s3))
    aws = [str(Path(sys.executable).with_name("aws"))]
    target = tmp_path / "synced"
    subprocess.run([*aws, "s3", "sync", "--quiet", f"{s3}/{made.name}", target], check=True)
    assert verify(target).intact
    ours, theirs = all_files(made.directory), all_files(target)
    assert ours.keys() == theirs.keys()
    assert {path for path in ours if ours[path] != theirs[path]} == {"README.md", "provenance.json"}


def test_only_the_layers_that_are_wanted_move(made, s3, s3_endpoint, tmp_path, monkeypatch):
    """Counted at the server: of the tokens only those of the layer, and at the second time nothing but the manifest."""
    push(made.directory, parse_address(s3))
    faults = Faults(int(s3_endpoint.rpartition(":")[2]))
    with http_server(type("Handler", (FaultyProxy,), {"faults": faults})) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        address = parse_address(f"{s3}/{made.name}")
        pull(address, [tmp_path / "other"], CacheSelection(layers="1"))
        chunks = [request.rpartition("/features.zarr/")[2] for request in faults.requests if "/c." in request]
        tokens = {f"train/norm2/c.{block}.1.0.0" for block in range(3)} | {"test/norm2/c.0.1.0.0"}
        assert {path for path in chunks if "norm2" in path or "final" in path} == tokens
        assert (
            len(chunks) == len(set(chunks)) == len(tokens) + 4 * 3
        )  # labels, ids and validity of four blocks
        faults.requests.clear()
        assert pull(address, [tmp_path / "other"], CacheSelection(layers="1")).num_bytes == 0
        assert len(faults.requests) == 2  # the manifest, and its version


def test_a_listing_of_a_thousand_caches_is_one_request(cli, s3, s3_endpoint, monkeypatch):
    import boto3

    bucket = s3.split("/")[2]
    client = boto3.client("s3")
    for number in range(100):
        name = CacheName("made", "tiny", f"{number:012x}")
        entry = CatalogueEntry(name, f"{number:016x}", 10**9, 25, 300, 90)
        client.put_object(Bucket=bucket, Key=f"team/{entry.path}", Body=b"")
    client.close()
    faults = Faults(int(s3_endpoint.rpartition(":")[2]))
    with http_server(type("Handler", (FaultyProxy,), {"faults": faults})) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        assert len(json.loads(cli("ls", s3, "--json").out)) == 100
    assert len(faults.requests) == 1


def test_the_entry_of_a_cache_reads_back(made):
    name = CacheName.parse(*made.name.split("/"))
    manifest = Manifest.read(made.directory)
    entry = CatalogueEntry.of(name, manifest)
    assert entry.digest == manifest_digest(manifest)
    assert len(entry.path.rpartition("/")[2]) < 255
    assert make_spec().key == made.plan.spec.key
