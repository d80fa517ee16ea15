"""A copy that was pulled is mended from where it came from, stays usable all the while, and is then as it was."""

import json
import shutil

import pytest

from featcache.store.checking.repair import repair
from featcache.store.checking.verify import verify
from support.caches import all_files

CHUNK = "features.zarr/train/final/c.0.0.0.0"
FILES = (CHUNK, "README.md", "provenance.json", "features.zarr/zarr.json", "features.zarr/train/zarr.json")


@pytest.fixture
def copies(cli, pushed_once, made_once, tmp_path):
    """A function that pulls a whole copy, or the last layer alone, from a shared folder of the test's own."""
    share = tmp_path / "share"
    shutil.copytree(pushed_once, share)

    def pulled(whole: bool):
        part = () if whole else ("--layers", "last", "--split", "train")
        root = tmp_path / "other"
        assert cli("pull", f"{share}/{made_once.name}", *part, "--root", root).status == 0
        return root / made_once.name

    pulled.share = share
    return pulled


def damage(path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes([data[40] ^ 1]) + data[41:])


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", [*FILES, "manifest.json", "request.json", "missing chunk"])
@pytest.mark.parametrize("how", ["pull", "repair", "advice"])
def test_every_file_is_mended(cli, copies, whole, name, how):
    copy = copies(whole)
    before = all_files(copy)
    if name == "missing chunk":
        (copy / CHUNK).unlink()
    elif not (copy / name).exists():
        pytest.skip("this copy has no such file")
    else:
        damage(copy / name)
    found = cli("verify", copy)
    assert found.status == 1
    if how == "repair" and name != "manifest.json":
        outcome = cli("verify", copy, "--repair")
    elif how == "advice":
        command = found.out.split("`")[1].split()
        outcome = cli(*command[1:])
    else:
        part = () if whole else ("--layers", "last", "--split", "train")
        address = json.loads((copy / "origin.json").read_text())["origin"]
        outcome = cli("pull", address, *part, "--check", "--root", copy.parent.parent)
    assert outcome.status == 0, outcome.out + outcome.err
    assert verify(copy).intact
    assert all_files(copy) == before


def test_a_copy_that_cannot_be_mended_now_stays_as_it_is(cli, copies):
    copy = copies(True)
    damage(copy / CHUNK)
    damage(copy / "README.md")
    before = all_files(copy)
    shutil.rmtree(copies.share)
    outcome = cli("verify", copy, "--repair")
    assert outcome.status == 1
    assert (
        f"{copy} is as it was: what is damaged could not be fetched again (there is no folder " in outcome.err
    )
    assert "--check --root" in outcome.err
    assert all_files(copy) == before


def test_what_a_killed_pull_left_goes_also_from_a_part(cli, copies):
    copy = copies(False)
    left = copy / f"{CHUNK}.pull.partial"
    left.write_bytes(b"left")
    shutil.rmtree(copies.share)
    found = verify(copy)
    assert [str(one) for one in found.damages] == [f"{CHUNK}.pull.partial: left by a process that was killed"]
    assert repair(found).whole
    assert verify(copy).intact


def test_zarr_metadata_are_made_again_without_any_remote(made):
    """Of a cache that nobody knows the origin of, such as one that was copied by hand."""
    before = all_files(made.directory)
    for name in FILES[3:]:
        damage(made.directory / name)
    done = repair(verify(made.directory))
    assert done.complete
    assert all_files(made.directory) == before


@pytest.fixture
def old_copy(copies):
    """A whole copy as version 0.1.0 pulled it: nothing but its card says that it is one."""
    copy = copies(True)
    (copy / "origin.json").unlink()
    return copy


@pytest.mark.parametrize("name", [CHUNK, "provenance.json", "manifest.json"])
def test_a_copy_of_before_is_mended_by_the_advice_alone(cli, pushed_once, old_copy, name):
    damage(old_copy / name)
    before = all_files(old_copy)
    command = f"featcache pull {pushed_once}/made/{old_copy.name} --check --root {old_copy.parent.parent}"
    assert f"run `{command}` to fetch" in cli("verify", old_copy).out
    repaired = cli("verify", old_copy, "--repair")
    assert repaired.status == 1
    assert f"run `{command}` to fetch" in repaired.err
    assert all_files(old_copy) == before  # and so it is as usable as it was
    assert cli(*command.split()[1:]).status == 0
    assert verify(old_copy).intact
    assert (old_copy / "origin.json").is_file()


def test_what_needs_no_remote_is_mended_in_a_copy_of_before(old_copy):
    damage(old_copy / "features.zarr/zarr.json")
    assert repair(verify(old_copy)).complete
    assert verify(old_copy).intact


def test_where_nothing_tells_a_copy_the_advice_names_both_ways(cli, copies, old_copy):
    (old_copy / "README.md").unlink()
    address = f"{copies.share}/made/{old_copy.name}"
    assert "`featcache pull REMOTE/CACHE --check" in cli("verify", old_copy).out
    assert cli("verify", old_copy, "--repair").status == 1
    refused = cli("pull", address, "--root", old_copy.parent.parent)
    assert f"or remove it with `featcache rm {old_copy}`" in refused.err
    assert cli("rm", old_copy, "--yes").status == 0
    assert cli("pull", address, "--root", old_copy.parent.parent).status == 0
    assert verify(old_copy).intact
