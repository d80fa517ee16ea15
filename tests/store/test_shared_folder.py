"""One cache under two mount points, as two machines see a shared folder: they divide the work, and it is one cache."""

import pytest

from support.caches import PROVENANCE, all_files, make_content, make_plan, write_cache
from support.mounts import mounted
from support.processes import start_writer

SAMPLES = {"train": 1500, "test": 300}


@pytest.fixture
def places(tmp_path):
    """Two mount points of one folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    with (
        mounted(tmp_path / "here", "--bind", folder) as here,
        mounted(tmp_path / "there", "--bind", folder) as there,
    ):
        yield here, there


def committed(process) -> list[str]:
    out, err = process.communicate(timeout=60)
    assert err == ""
    return [line for line in out.splitlines() if " " in line]


@pytest.mark.parametrize("killed", [False, True], ids=["both live", "one is killed"])
def test_two_mount_points_share_the_blocks(tmp_path, places, killed):
    plan = make_plan(SAMPLES)
    write_cache(tmp_path / "whole", plan, make_content(plan), PROVENANCE)
    here, there = (start_writer(place / "cache", 0.02, SAMPLES) for place in places)
    if killed:
        for _ in ("ready", "one block"):
            here.stdout.readline()
        here.kill()
    mine, yours = committed(here), committed(there)
    assert there.returncode == 0
    assert mine or killed
    assert yours
    # What was computed twice would have been committed twice.
    assert len(mine + yours) == len({*mine, *yours}) >= len(plan.inventory.blocks()) - (2 if killed else 0)
    assert all_files(tmp_path / "folder" / "cache") == all_files(tmp_path / "whole")
