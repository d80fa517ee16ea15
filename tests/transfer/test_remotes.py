"""What holds for every kind of remote: a cache goes there and comes back, in parts or as a whole, and nothing moves twice."""

import json
import shutil
from contextlib import closing

import numpy as np
import pytest

from featcache.store.checking.verify import verify
from featcache.store.reading.reader import open_cache
from featcache.store.transfer.remotes import objects
from support.caches import all_files


def pulled(cli, *arguments):
    outcome = cli("pull", *arguments, "--json")
    assert outcome.status == 0, outcome.err
    return json.loads(outcome.out)


@pytest.fixture
def there(cli, made, remote):
    """The address of the cache, pushed."""
    outcome = cli("push", made.directory, remote)
    assert outcome.status == 0, outcome.err
    return f"{remote}/{made.name}"


def check_looking(cli, made, remote, there):
    """What a remote shows without moving data, and what it says of what is not there."""
    row = json.loads(cli("ls", remote, "--json").out)[0]
    inventory = made.plan.inventory
    assert (row["dataset"], row["model"], row["key"]) == ("made", "tiny", made.plan.spec.key)
    assert row["samples"] == {"train": 300, "test": 90}
    assert row["layers"] == 4
    assert row["bytes"] == inventory.num_bytes
    assert json.loads(cli("ls", remote, "--model", "other", "--json").out) == []
    assert len(json.loads(cli("ls", remote, "--model", "TIN", "--dataset", "mad", "--json").out)) == 1
    assert "no caches that match vit-l-14 at " in cli("ls", remote, "--model", "vit-l-14").out
    shown = cli("ls", remote)
    assert shown.status == 0
    assert made.plan.spec.key in shown.out

    document = json.loads(cli("info", there, "--json").out)
    assert document["inventory"] == made.plan.inventory.to_dict()
    assert document["provenance"]["model_names"] == ["tiny"]
    assert document.keys() >= json.loads(cli("info", made.directory, "--json").out).keys()
    shown = cli("info", there)
    assert shown.status == 0, shown.err
    assert f"key       {made.plan.spec.key}" in shown.out
    assert f"classes   {len(made.plan.inventory.targets.names)}: " in shown.out
    by_key = json.loads(cli("info", f"{remote}/{made.plan.spec.key[:6]}", "--json").out)
    assert by_key["key"] == made.plan.spec.key

    wrong = cli("pull", f"{remote}/made/tiny-000000000000")
    assert wrong.status == 2
    assert "there is no cache" in wrong.err
    assert made.name in wrong.err
    bare = cli("pull", remote)
    assert bare.status == 2
    assert "names no cache" in bare.err
    assert made.name in bare.err
    key = cli("pull", f"{remote}/abcdef")
    assert key.status == 2
    assert "begins with abcdef" in key.err


@pytest.mark.parametrize("right", [True, False])
def test_a_pull_that_was_killed_between_a_files_last_byte_and_its_name(cli, made, there, tmp_path, right):
    """Servers refuse a range that begins at the end of a file."""
    copy = tmp_path / "other" / made.name
    source = made.directory / "features.zarr/train/norm2/c.0.0.0.0"
    partial = copy / "features.zarr/train/norm2/c.0.0.0.0.pull.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(source.read_bytes() if right else bytes(source.stat().st_size))
    done = pulled(cli, there, "--root", tmp_path / "other")
    assert done["path"] == str(copy)
    assert verify(copy).intact
    assert not partial.exists()


def test_a_cache_comes_back_as_it_was(cli, made, there, remote, tmp_path):
    done = pulled(cli, there, "--root", tmp_path / "other")
    copy = tmp_path / "other" / made.name
    assert done["path"] == str(copy)
    assert done["whole"]
    assert verify(copy).intact
    ours, theirs = all_files(made.directory), all_files(copy)
    # The card is that of the push, and provenance vouches for it.
    assert {path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)} == {
        "README.md",
        "provenance.json",
        "origin.json",
    }
    assert there.removeprefix("file://") in theirs["README.md"].decode().replace("datasets/", "")
    again = pulled(cli, there, "--root", tmp_path / "other")
    assert again["bytes"] == 0
    assert again["files"] == 0
    again = json.loads(cli("push", made.directory, remote, "--json").out)
    assert again["already_there"]
    assert again["bytes"] == 0
    check_looking(cli, made, remote, there)


def test_parts_are_honest_and_can_be_completed(cli, made, there, tmp_path):
    root = ("--root", tmp_path / "other")
    copy = tmp_path / "other" / made.name
    first = pulled(cli, there, "--layers", "last", "--split", "test", *root)
    test = made.plan.inventory.splits["test"]
    assert first["files"] == len(test.arrays) - 1
    assert not first["whole"]
    cache = open_cache(copy)
    assert list(cache.inventory.splits) == ["test"]
    assert cache["test"].layers == ("final",)
    np.testing.assert_array_equal(cache["test"].load(["final"], ["cls", "ap"]), made.content["test"]["final"])
    assert verify(copy).intact
    row = json.loads(cli("ls", *root, "--json").out)[0]
    assert row["state"] == "partial (test, 1 of 4 layers)"

    pulled(cli, there, "--layers", "0,2", *root)
    cache = open_cache(copy)
    assert cache["test"].layers == ("0", "2", "final")
    assert cache["train"].layers == ("0", "2")
    np.testing.assert_array_equal(
        cache["train"].load(["0", "2"], ["cls", "ap"]), made.content["train"]["norm2"][:, [0, 2]]
    )
    last = pulled(cli, there, *root)
    assert last["whole"]
    assert last["files"] == sum(s.num_blocks for s in made.plan.inventory.splits.values()) + 3
    assert json.loads(cli("ls", *root, "--json").out)[0]["state"] == "complete"
    assert verify(copy).intact


def test_removal_asks_and_leaves_nothing(cli, made, there, remote, tmp_path):
    refused = cli("rm", there)
    assert refused.status == 2
    assert "--yes" in refused.err
    assert cli("rm", there, "--yes").status == 0
    assert json.loads(cli("ls", remote, "--json").out) == []
    gone = cli("pull", there, "--root", tmp_path / "other")
    assert gone.status == 2
    assert "there is no cache" in gone.err
    assert not (tmp_path / "other").exists()
    assert cli("push", made.directory, remote).status == 0
    assert verify(tmp_path / "root" / made.name).intact


def test_a_host_that_is_not_known_is_not_trusted(cli, made, ssh, tmp_path, monkeypatch):
    known = tmp_path / "home" / ".ssh"
    other = tmp_path / "stranger" / ".ssh"
    other.mkdir(parents=True)
    shutil.copy(known / "id_ed25519", other)
    monkeypatch.setenv("HOME", str(other.parent))
    outcome = cli("push", made.directory, ssh)
    assert outcome.status == 1
    assert "the key of this host is not known or has changed" in outcome.err
    assert list((tmp_path / "far").iterdir()) == []
    shutil.copy(known / "known_hosts", other)
    (other / "id_ed25519").unlink()
    outcome = cli("push", made.directory, ssh)
    assert outcome.status == 1
    assert "refused; keys come from ~/.ssh and the agent" in outcome.err


def test_what_is_strange_in_a_folder_stays(cli, made, folder, tmp_path):
    assert cli("push", made.directory, folder).status == 0
    stranger = tmp_path / "share" / made.name / "notes.txt"
    stranger.write_text("mine")
    assert cli("rm", f"{folder}/{made.name}", "--yes").status == 0
    assert list((tmp_path / "share" / made.name).rglob("*")) == [stranger]


def test_a_folder_that_is_not_there_is_an_error(cli, made, tmp_path):
    """Nothing is put under the mount point of a share that is not mounted."""
    for arguments in (("ls", "shar"), ("push", made.directory, "shar"), ("pull", f"shar/{made.name}")):
        outcome = cli(*arguments)
        assert outcome.status == 1
        assert f"there is no folder {tmp_path}/shar" in outcome.err
    assert not (tmp_path / "shar").exists()


def test_keys_that_no_path_can_have_hide_nothing(cli, made, s3, tmp_path, monkeypatch):
    import boto3

    assert cli("push", made.directory, s3).status == 0
    bucket, team = s3.removeprefix("s3://").split("/")
    with closing(boto3.client("s3")) as client:
        for odd in ("_catalogue//x", "_catalogue/./x", "_catalogue/made@\x1b[31m", f"{made.name}/./x"):
            client.put_object(Bucket=bucket, Key=f"{team}/{odd}", Body=b"1")
    listed = json.loads(cli("ls", s3, "--json").out)
    assert [entry["key"] for entry in listed] == [made.plan.spec.key]
    assert cli("pull", f"{s3}/{made.plan.spec.key}", "--root", tmp_path / "other").status == 0
    assert all_files(tmp_path / "other" / made.name / "features.zarr") == all_files(
        made.directory / "features.zarr"
    )
    assert "already there" in cli("push", made.directory, s3).out
    with monkeypatch.context() as without:
        without.setattr(objects, "find_spec", lambda name: None)
        refused = cli("ls", s3)
        assert refused.status == 1
        assert "rename or remove it, or pip install 'featcache[aws]'" in refused.err
    assert cli("rm", f"{s3}/{made.name}", "--yes").status == 0
    assert json.loads(cli("ls", s3, "--json").out) == []


def test_a_root_that_is_listed_as_a_remote_says_how_to_list_it(cli, made, folder):
    root = made.directory.parent.parent
    told = cli("ls", root)
    assert told.status == 0
    assert f"`featcache ls --root {root}` lists those" in told.out
    assert "--root" not in cli("ls", folder).out
