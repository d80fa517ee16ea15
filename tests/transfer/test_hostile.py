"""A remote is hostile until verified: each attack ends in one clear error, and what was here before stays as it was."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

from featcache.store.checking.verify import verify
from featcache.store.files import sealed_bytes
from featcache.store.manifest import Manifest
from support.caches import all_files, make_content, make_plan, write_cache
from support.hostile_server import HostileHandler, Site
from support.servers import http_server

CHUNK = "features.zarr/train/norm2/c.1.2.0.0"


@pytest.fixture
def old(pushed_once, tmp_path):
    """A root that has a part of the cache already, and a neighbour that nobody may touch."""
    root = tmp_path / "other"
    shutil.copytree(pushed_once.parent / "old", root)
    (root / "made" / "neighbour").write_text("untouched")
    return root


def forge(site: Site, made, change) -> None:
    """Replace the manifest by one that is sealed as it should be, and says something else."""
    document = json.loads(site.files[f"{made.name}/manifest.json"])
    document.pop("digest")
    change(document)
    site.files[f"{made.name}/manifest.json"] = sealed_bytes(document)


def rename_split(document, new):
    document["inventory"]["splits"] = {
        new if k == "test" else k: v for k, v in document["inventory"]["splits"].items()
    }
    for block in document["blocks"]:
        if block["split"] == "test":
            block["split"] = new
            block["files"] = {path.replace("test/", f"{new}/", 1): r for path, r in block["files"].items()}
    document["metadata"] = {
        path.replace("test/", f"{new}/", 1): r for path, r in document["metadata"].items()
    }


def rename_array(document, new):
    arrays = document["inventory"]["splits"]["test"]["arrays"]
    arrays[new] = arrays.pop("norm2")


FORGERIES = {
    "parent folder": (lambda d: rename_split(d, ".."), "not a valid name"),
    "path upwards": (lambda d: rename_split(d, "../../evil"), "not a valid name"),
    "absolute path": (lambda d: rename_split(d, "/tmp/evil"), "not a valid name"),
    "absolute array": (lambda d: rename_array(d, "/etc/evil"), "not a valid name"),
    "backslash": (lambda d: rename_split(d, "..\\evil"), "not a valid name"),
    "same but for case": (lambda d: rename_split(d, "TRAIN"), "differ only in case"),
    "strange file": (
        lambda d: d["metadata"].update({"../../evil": {"bytes": 1, "sha256": "0" * 64}}),
        "does not fit the inventory",
    ),
    "strange chunk": (
        lambda d: d["blocks"][0]["files"].update({"../evil": {"bytes": 1, "sha256": "0" * 64}}),
        "does not fit the inventory",
    ),
    "size of a chunk": (
        lambda d: next(iter(d["blocks"][0]["files"].values())).update(bytes=10**15),
        "must be",
    ),
    "size of metadata": (lambda d: d["metadata"]["zarr.json"].update(bytes=10**12), "which cannot be"),
    "endless rows": (lambda d: d["inventory"]["splits"]["train"].update(num_samples=2**60), "num_samples"),
    "another cache": (lambda d: (d["spec"]["backbone"].update(width=8), d.update(key="0" * 12)), "digest is"),
    "not a manifest": (lambda d: d.clear(), "'format' must be"),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_forged_manifests(cli, made, site, old, what, tmp_path):
    change, message = FORGERIES[what]
    forge(site, made, change)
    before, outside = all_files(old), set(tmp_path.iterdir())
    outcome = cli("pull", site.address, "--root", old)
    assert outcome.status == 1
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert all_files(old) == before
    assert set(tmp_path.iterdir()) == outside
    assert not any("norm2" in path for _, path, _ in site.asked)


def test_a_manifest_that_is_another_caches(cli, made, site, old):
    other = site.address.replace(made.plan.spec.key, "0123456789ab")
    site.files["made/tiny-0123456789ab/manifest.json"] = site.files[f"{made.name}/manifest.json"]
    outcome = cli("pull", other, "--root", old)
    assert outcome.status == 1
    assert f"it is of the cache {made.plan.spec.key}, not of 0123456789ab" in outcome.err
    assert not (old / "made" / "tiny-0123456789ab").exists()


def damaged(data: bytes) -> bytes:
    return data[:7] + bytes([data[7] ^ 1]) + data[8:]


def shorter(handler, data):
    start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
    handler.plain(data[start:-3] if start < len(data) - 3 else b"", 206 if start else 200)


def length_lie(handler, data):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data) + 10**9))
    handler.end_headers()
    handler.wfile.write(data[:100])
    handler.close_connection = True


CONTENTS = {
    "flipped bit": (lambda handler, data: handler.plain(damaged(data)), "does not match its SHA-256, twice"),
    "longer": (
        lambda handler, data: handler.plain(data + b"more"),
        "more bytes arrive than the manifest says, twice",
    ),
    "shorter": (shorter, "bytes arrived, must be"),
    "endless": (
        lambda handler, data: handler.endless(data),
        "more bytes arrive than the manifest says, twice",
    ),
    "length that lies": (length_lie, "made/tiny-"),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_wrong_contents_are_named_and_never_seen(cli, made, site, old, what):
    act, message = CONTENTS[what]
    site.acts[f"{made.name}/{CHUNK}"] = act
    before = all_files(old / made.name)
    outcome = cli("pull", site.address, "--root", old)
    assert outcome.status == 1
    assert message in outcome.err
    assert CHUNK in outcome.err
    assert not (old / made.name / CHUNK).exists()
    after = all_files(old / made.name)
    assert {path: after[path] for path in before} == before
    assert (old / "made" / "neighbour").read_text() == "untouched"
    if what == "flipped bit":
        assert site.times(f"{made.name}/{CHUNK}") == 2
    # An honest remote, and only what is missing moves.
    site.acts.clear()
    site.asked.clear()
    done = json.loads(cli("pull", site.address, "--root", old, "--json").out)
    assert done["files"] == 1
    assert verify(old / made.name).intact


def test_a_file_that_was_damaged_once_is_fetched_again(cli, made, site, old):
    path = f"{made.name}/{CHUNK}"

    def once(handler, data):
        site.acts.pop(path)
        handler.plain(damaged(data))

    site.acts[path] = once
    assert cli("pull", site.address, "--root", old).status == 0
    assert verify(old / made.name).intact


@pytest.mark.parametrize("name", ["manifest.json", "provenance.json", "README.md"])
def test_endless_documents(cli, made, site, tmp_path, name, monkeypatch):
    for module in ("manifests", "documents"):
        monkeypatch.setattr(f"featcache.store.transfer.{module}.MAX_DOCUMENT_BYTES", 2**20, raising=False)
    site.acts[f"{made.name}/{name}"] = lambda handler, data: handler.endless()
    tracemalloc.start()
    outcome = cli("pull", site.address, "--root", tmp_path / "other")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outcome.status == 1
    assert "not what a cache has there" in outcome.err
    assert name in outcome.err
    assert peak < 50 * 2**20
    assert not (tmp_path / "other" / made.name / "manifest.json").exists()


def test_a_manifest_that_changes_between_requests(cli, made, site, old):
    """Every file is held to the manifest that was read first, whatever the remote says by now."""
    path = f"{made.name}/manifest.json"
    other = json.loads(site.files[path])
    other.pop("digest")
    other["blocks"][0]["files"]["train/norm2/c.0.0.0.0"]["sha256"] = "0" * 64

    def honest_once(handler, data):
        handler.plain(data)
        if handler.command == "GET":
            site.acts[path] = lambda handler, data: handler.plain(sealed_bytes(other))

    site.acts[path] = honest_once
    assert cli("pull", site.address, "--layers", "0", "--root", old).status == 0
    before = all_files(old)
    outcome = cli("pull", site.address, "--root", old)
    assert outcome.status == 1
    assert "hold different values, first in train/norm2/c.0.0.0.0" in outcome.err
    assert all_files(old) == before


def test_redirects_do_not_take_a_login_along(cli, made, site, tmp_path):
    elsewhere = Site(dict(site.files))
    with http_server(type("Other", (HostileHandler,), {"site": elsewhere})) as port:
        target = f"http://localhost:{port}/{made.name}/manifest.json"
        site.acts[f"{made.name}/manifest.json"] = lambda handler, data: handler.plain(
            b"", 307, Location=target
        )
        address = site.address.replace("http://", "http://user:a-password@")
        outcome = cli("pull", address, "--root", tmp_path / "other")
    assert outcome.status == 1
    assert f"redirects to another host (localhost:{port})" in outcome.err
    assert "a-password" not in outcome.err
    assert elsewhere.asked == []
    assert site.asked[-1][2]["Authorization"].startswith("Basic ")
    assert not (tmp_path / "other").exists()


def test_a_redirect_on_the_same_host_is_followed(cli, made, site, tmp_path):
    for path in list(site.files):
        site.files[f"moved/{path}"] = site.files[path]
        site.acts[path] = lambda handler, data: handler.plain(b"", 302, Location=f"/moved{handler.path}")
    assert cli("pull", site.address, "--root", tmp_path / "other").status == 0
    assert verify(tmp_path / "other" / made.name).intact


def test_a_store_that_redirects_gets_no_signature(cli, made, s3, tmp_path, monkeypatch):
    """The client follows, without what it was signed with; what comes back is held to the digests like anything else."""
    elsewhere, here = Site(), Site()
    bucket = s3.removeprefix("s3://")
    path = f"{bucket}/{made.name}/manifest.json"
    with (
        http_server(type("Other", (HostileHandler,), {"site": elsewhere})) as other,
        http_server(type("Here", (HostileHandler,), {"site": here})) as port,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        target = f"http://localhost:{other}/{path}"
        here.acts[path] = lambda handler, data: handler.plain(b"", 307, Location=target)
        elsewhere.files[path] = b"{}"
        elsewhere.acts[path] = lambda handler, data: handler.plain(
            data, Last_Modified="Wed, 21 Oct 2015 07:28:00 GMT"
        )
        outcome = cli("pull", f"{s3}/{made.name}", "--root", tmp_path / "other")
    assert outcome.status == 1
    assert elsewhere.asked
    assert not any(
        "Authorization" in headers or "authorization" in headers for *_, headers in elsewhere.asked
    )
    assert "a-secret-that-is-never-shown" not in outcome.err
    assert not (tmp_path / "other").exists()


def test_links_on_a_shared_folder_are_not_followed(cli, made, folder, tmp_path):
    assert cli("push", made.directory, folder).status == 0
    share = Path(folder.removeprefix("file://")) / made.name
    secret = tmp_path / "secret"
    chunk = share / CHUNK
    secret.write_bytes(chunk.read_bytes())  # even the right bytes
    chunk.unlink()
    chunk.symlink_to(secret)
    outcome = cli("pull", f"{folder}/{made.name}", "--root", tmp_path / "other")
    assert outcome.status == 1
    assert "a link" in outcome.err
    chunk.unlink()
    array = chunk.parent
    array.rename(tmp_path / "elsewhere")
    array.symlink_to(tmp_path / "elsewhere")
    outcome = cli("pull", f"{folder}/{made.name}", "--root", tmp_path / "other")
    assert outcome.status == 1
    assert "a link" in outcome.err


def test_a_pipe_on_a_shared_folder_is_not_waited_for(cli, made, folder, tmp_path):
    assert cli("push", made.directory, folder).status == 0
    chunk = Path(folder.removeprefix("file://")) / made.name / CHUNK
    chunk.unlink()
    os.mkfifo(chunk)
    outcome = cli("pull", f"{folder}/{made.name}", "--root", tmp_path / "other")
    assert outcome.status == 1
    assert "not a regular file" in outcome.err


@pytest.mark.parametrize(
    "inside", ["features.zarr", "features.zarr/train", "features.zarr/train/norm2", "journal"]
)
def test_links_in_a_local_copy_lead_nowhere(cli, made, site, old, tmp_path, inside):
    """Somebody gave the local copy a folder that leads elsewhere: nothing is written there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = old / made.name / inside
    if folder.exists():
        os.rename(folder, tmp_path / "aside")
    folder.symlink_to(outside)
    outcome = cli("pull", site.address, "--root", old)
    assert outcome.status == 1
    assert "a link" in outcome.err
    assert list(outside.iterdir()) == []


def test_a_link_in_the_place_of_a_partial_file(cli, made, site, old, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    chunk = old / made.name / CHUNK
    chunk.parent.mkdir(parents=True, exist_ok=True)
    chunk.with_name(f"{chunk.name}.pull.partial").symlink_to(victim)
    assert cli("pull", site.address, "--root", old).status == 0
    assert victim.read_text() == "untouched"
    assert verify(old / made.name).intact


def test_index_pages_do_not_lead_out(cli, made, site, folder):
    """Links of an index page are names in that folder, or nothing."""
    entry = next(path for path in site.files if path.startswith("_catalogue/")).removeprefix("_catalogue/")
    stranger = entry.replace("made@", "..@")
    page = "".join(
        f'<a href="{link}">x</a>'
        for link in ("../", "/etc/passwd", "http://localhost/evil@x", stranger, "a@b@c", entry, "x" * 500)
    )
    site.files["_catalogue/"] = page.encode()
    outcome = cli("ls", site.address.removesuffix(f"/{made.name}"), "--json")
    assert [row["key"] for row in json.loads(outcome.out)] == [made.plan.spec.key]
    site.acts["_catalogue/"] = lambda handler, data: handler.endless()
    outcome = cli("ls", site.address.removesuffix(f"/{made.name}"))
    assert outcome.status == 1
    assert "the index page is longer than" in outcome.err


def test_credentials_are_not_told(cli, made, s3, hub_address, hub, monkeypatch, tmp_path):
    secret = "a-secret-that-is-never-shown"
    assert cli("push", made.directory, s3).status == 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    outcomes = [
        cli("ls", s3),
        cli("ls", f"https://user:{secret}@127.0.0.1:9/x"),
        cli("push", made.directory, f"ssh://me:{secret}@127.0.0.1:9/x"),
    ]
    monkeypatch.setenv("HF_TOKEN", f"hf_{secret}")
    outcomes.append(cli("ls", hub_address))
    for outcome in outcomes:
        assert outcome.status != 0
        assert secret not in outcome.err + outcome.out
        assert len(outcome.err.splitlines()) == 1, outcome.err
    for data in [*all_files(tmp_path / "root").values(), *(d for _, f in hub.commits.items() for d in f)]:
        assert secret.encode() not in (data if isinstance(data, bytes) else b"")


def test_a_whole_manifest_is_what_a_partial_copy_has(made, site, old):
    assert Manifest.read(old / made.name) == Manifest.read(made.directory)


def test_disks_that_are_too_small(cli, made, site, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    outcome = cli("pull", site.address, "--root", tmp_path / "other")
    assert outcome.status == 1
    assert "not enough disk space" in outcome.err


def test_other_values_under_the_same_key_are_kept_apart(cli, made, site, tmp_path):
    root = tmp_path / "other"
    plan = make_plan()
    write_cache(root / made.name, plan, make_content(plan, seed=1))
    before = all_files(root)
    outcome = cli("pull", site.address, "--root", root)
    assert outcome.status == 1
    assert "hold different values" in outcome.err
    assert all_files(root) == before
