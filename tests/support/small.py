"""Caches of three rows a split, for tests of what happens to whole caches."""

import os
from pathlib import Path
from typing import Any

import pytest

from support.caches import cache_folder, make_content, make_plan, write_cache

SMALL = {"train": 3, "test": 3}


@pytest.fixture
def no_waiting_for_the_disk(monkeypatch):
    """Power losses are not what is tested, and syncing is most of the time of writing a small cache."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def make(root: Path, dataset: str = "made", **changes: Any) -> Path:
    """Write a complete cache under a root; returns its folder."""
    plan = make_plan(SMALL, **changes)
    folder = cache_folder(root, plan, dataset)
    write_cache(folder, plan, make_content(plan))
    return folder
