"""What the command line is tested on: a tiny backbone with fixed random weights, and small folders of images."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.caches import cache_folder, make_content, make_plan, write_cache
from support.running import Outcome, command_line, one_torch_thread

MODEL = "timm:test_vit.r160_in1k"


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """Random weights of timm's smallest vision transformer (6 blocks of width 64, 160 px)."""
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("test_vit", num_classes=0)
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    save_file(model.state_dict(), path)
    return path


def make_images(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Noise around a colour of each class, so that a probe has something to learn."""
    rng = np.random.default_rng(seed)
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.normal(40 + 60 * label, 40, (24, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A folder of three classes of 40 images."""
    return make_images(tmp_path_factory.mktemp("images") / "colours", {"blue": 40, "green": 40, "red": 40})


@pytest.fixture
def made(tmp_path) -> Path:
    """A cache of 300 and 90 samples in three classes around three centres, 4 layers of width 16."""
    plan = make_plan(width=16)
    content = make_content(plan)
    for columns in content.values():
        centres = np.random.default_rng(1).standard_normal((3, 1, 2, 16))
        for name in ("norm2", "final"):
            columns[name] = (columns[name] * 2 + centres[columns["label"]]).astype(columns[name].dtype)
    folder = cache_folder(tmp_path / "root", plan)
    write_cache(folder, plan, content)
    return folder


@pytest.fixture
def cli(monkeypatch, capsys) -> Callable[..., Outcome]:
    """Runs the real entry point in this process, where torch is imported once."""
    return command_line(monkeypatch, capsys)


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    with one_torch_thread():
        yield


@pytest.fixture(autouse=True)
def roots_of_its_own(monkeypatch, tmp_path):
    """No test sees the user's caches or leaves results in the working directory."""
    monkeypatch.setenv("FEATCACHE_ROOT", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def featcache(*arguments: object, **options) -> subprocess.Popen:
    """Start the installed command as a process."""
    command = [str(Path(sys.executable).parent / "featcache"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
