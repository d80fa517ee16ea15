"""Caches that were made before a correction that concerns them."""

import pytest

from featcache.store import corrections
from featcache.store.corrections import FIELD, Correction, known_corrections, warnings_of
from featcache.store.spec import BackboneSpec, CacheSpec
from featcache.store.targets import SINGLE_LABEL, Targets

BEFORE = {"host": "h"}


def said(kind: str, names: tuple[str, ...], provenance: dict[str, object]) -> list[str]:
    spec = CacheSpec(BackboneSpec("timm:x", "0", 1, 1, 1, {}), {"kind": kind}, "float16", "fp32")
    return warnings_of(spec, Targets(SINGLE_LABEL, names), provenance)


@pytest.mark.parametrize(
    ("kind", "names", "what"),
    [
        (
            "imagefolder",
            ("Test", "Train"),
            "folders such as Train and Test were read as splits: they are its classes",
        ),
        ("imagefolder", ("TRAIN", "VALIDATION"), "folders such as Train and Test were read as splits"),
        ("imagefolder", ("@eaDir", "cat", "dog"), "folders of file servers and archivers were left out"),
        ("csv", ("0", "1", "1.0"), "1 and 1.0 were read as one class"),
        ("csv", ("DE", "NA"), "labels such as NA and nan were taken for missing"),
    ],
)
def test_a_cache_of_before_is_told_apart(kind, names, what):
    (line,) = said(kind, names, BEFORE)
    assert line.startswith(f"made before {what}")
    assert line.endswith("; extract it again")
    assert said(kind, names, {**BEFORE, FIELD: "system folders"}) == [line]  # no list: it comes from anywhere
    assert said(kind, names, {**BEFORE, FIELD: known_corrections()}) == []
    assert said(kind, names, {}) == []  # not complete: nobody knows yet
    assert said("hdf5", names, BEFORE) == []


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("imagefolder", ("bus", "train")),
        ("imagefolder", ("test", "val")),
        ("imagefolder", ("train",)),
        ("csv", ("1", "2.0", "3")),
        ("csv", ("Na", "train", "test")),
    ],
)
def test_a_cache_that_is_not_concerned_is_as_it_was(kind, names):
    assert said(kind, names, BEFORE) == []


def test_the_names_of_corrections_are_unique():
    assert len({*known_corrections()}) == len(known_corrections())


def test_a_cache_whose_key_tells_is_an_answer_to_who_asks_for_its_values(monkeypatch):
    spec = CacheSpec(BackboneSpec("timm:x", "0", 1, 1, 1, {}), {"kind": "csv"}, "float16", "fp32")
    targets = Targets(SINGLE_LABEL, ("DE", "NA"))
    assert warnings_of(spec, targets, BEFORE)
    assert warnings_of(spec, targets, BEFORE, as_answer=True) == []
    wrong = Correction("x", "x was put right", lambda spec, targets: True, same_key=True)
    monkeypatch.setattr(corrections, "CORRECTIONS", (wrong,))
    assert warnings_of(spec, targets, BEFORE, as_answer=True) == [
        "made before x was put right; extract it again"
    ]
