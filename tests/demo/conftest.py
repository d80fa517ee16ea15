"""The demo's real inputs, prepared once by the project's own step and kept in the repo's `.demo/`."""

from __future__ import annotations

from pathlib import Path

import pytest

from fetch import FetchError
from prepare import prepare

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """`.demo/` as `make demo` uses it; only a failed download skips, every other error is a failure."""
    folder = REPO / ".demo"
    try:
        prepare(folder)
    except FetchError as error:
        pytest.skip(str(error))
    return folder
