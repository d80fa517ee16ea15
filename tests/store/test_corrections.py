"""Caches that were made before a correction that concerns them."""

import pytest

from featcache.store import corrections
from featcache.store.corrections import FIELD, Correction, known_corrections, warnings_of
from featcache.store.spec import BackboneSpec, CacheSpec


def spec_of(kind: str) -> CacheSpec:
    return CacheSpec(BackboneSpec("timm:x", "0", 1, 1, 1, {}), {"kind": kind}, "float16", "fp32")


@pytest.fixture
def one_correction(monkeypatch):
    correction = Correction(
        "offsets",
        "offsets of linked files were put right",
        lambda spec, _: spec.dataset.get("kind") == "hdf5",
    )
    monkeypatch.setattr(corrections, "CORRECTIONS", (correction,))


@pytest.mark.usefixtures("one_correction")
def test_a_cache_of_before_is_told_apart():
    wanted = ["made before offsets of linked files were put right; extract it again"]
    assert warnings_of(spec_of("hdf5"), {}) == wanted
    assert (
        warnings_of(spec_of("hdf5"), {FIELD: "offsets"}) == wanted
    )  # of another form than ours: from anywhere
    assert warnings_of(spec_of("hdf5"), {FIELD: known_corrections()}) == []
    assert warnings_of(spec_of("csv"), {}) == []


def test_the_names_of_corrections_are_unique():
    assert len({*known_corrections()}) == len(known_corrections())
