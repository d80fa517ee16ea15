"""Fixtures of all tests: credentials are forgotten after each, and GPUs are those of the machine, or pretended ones."""

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.pretended_cuda import Machine


@pytest.fixture(autouse=True)
def own_logins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test credentials of its own: those that another test made known would be hidden in its messages."""
    from featcache.store import redaction

    monkeypatch.setattr(redaction, "_logins", set())


@pytest.fixture(scope="session", autouse=True)
def own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what extractions record of files out of the user's own folder for data."""
    with pytest.MonkeyPatch.context() as patch:
        if "FEATCACHE_DATA" not in os.environ:
            patch.setenv("FEATCACHE_DATA", str(tmp_path_factory.mktemp("featcache-data")))
        yield


@dataclass(frozen=True)
class Gpus:
    """CUDA devices to test on."""

    names: tuple[str, ...]
    """``cuda:0``, ``cuda:1``, ..."""
    pretended: bool
    """Whether the CPU computes, so that values equal those of the CPU to the last bit."""


@pytest.fixture
def pretended() -> Iterator["Machine"]:
    """A machine with two pretended GPUs. Its problems fail the test, unless the test takes them off the list."""
    import torch

    from featcache.probing.heads.scratch import release
    from support.pretended_cuda import pretended_cuda

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, in whose place none can be pretended")
    release()
    with pretended_cuda() as machine:
        yield machine
        release()
        gc.collect()  # freeing memory is when some problems show
    assert machine.problems == []


@pytest.fixture
def gpus(request: pytest.FixtureRequest) -> Gpus:
    """The GPUs of this machine, or two pretended ones."""
    import torch

    if torch.cuda.is_available():
        return Gpus(tuple(f"cuda:{index}" for index in range(torch.cuda.device_count())), False)
    machine = request.getfixturevalue("pretended")
    return Gpus(tuple(f"cuda:{index}" for index in range(machine.num_devices)), True)
