"""Heads on disk are the heads that were saved, or are refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from featcache.probing.heads import get_head
from featcache.probing.heads.base import Head
from featcache.probing.heads.scratch import release
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import QUICK, Member
from featcache.probing.results.head_sources import HeadSource
from featcache.probing.results.saved_head import (
    CONFIG_FILE,
    PARAMETERS_FILE,
    HeadConfig,
    load_head,
    save_head,
)
from featcache.probing.training.prediction import predict
from featcache.probing.training.trainer import fit_members
from featcache.store.errors import CacheError
from featcache.store.files import read_sealed, write_sealed
from featcache.store.reading.reader import open_cache
from featcache.store.views import named_view
from support.caches import cache_folder, make_content, make_plan, write_cache

OPTIONS = {"linear": {}, "attentive": {"num_heads": 2}}


def trained(name: str, num_samples: int = 40) -> tuple[Head, InMemoryTokens]:
    """A head of 3 tokens of width 8 and 3 classes after some updates, so that no parameter is as it was drawn."""
    array = np.random.default_rng(0).normal(size=(num_samples, 3, 8)).astype(np.float32)
    source, info = InMemoryTokens(array), get_head(name)
    (head,) = fit_members(
        lambda *size: info.build(*size, **OPTIONS[name]),
        source,
        torch.arange(num_samples) % 3,
        torch.arange(num_samples),
        [Member(1e-2, 1e-4, 0.1 if info.has_dropout else 0.0)],
        protocol=replace(QUICK, min_epochs=1, min_steps=5),
        batch_size=20,
        seed=0,
        num_classes=3,
    )
    return head, source


def config(name: str) -> HeadConfig:
    return HeadConfig(
        head=name,
        layers=("1", "final"),
        tokens=("cls", "registers"),
        num_tokens=3,
        options=OPTIONS[name],
        input="l2",
        target_kind="single-label",
        width=8,
        num_classes=3,
        class_names=("a", "b", "c"),
        cache_key="0123456789ab",
        architecture="timm:tiny",
        weights_digest="0" * 64,
        protocol="quick",
        seed=0,
        parts=[("final", ("final",), ("cls",)), ("norm2_registers", ("1",), ("register0", "register1"))],
        features="0" * 64,
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_there_and_back(tmp_path: Path, name: str) -> None:
    head, source = trained(name)
    save_head(tmp_path, head, config(name))
    loaded, found = load_head(tmp_path)
    assert json.loads(json.dumps(vars(found))) == json.loads(json.dumps(vars(config(name))))
    rows = torch.arange(40)
    torch.testing.assert_close(predict(loaded, source, rows, 16), predict(head, source, rows, 16))
    assert not loaded.training
    with pytest.raises(FileNotFoundError):
        load_head(tmp_path / "elsewhere")


def test_files_that_do_not_fit_each_other(tmp_path: Path) -> None:
    head, _ = trained("attentive")
    for changes in ({"options": {"num_heads": 3}}, {"head": "linear", "options": {}}, {"num_classes": 4}):
        save_head(tmp_path, head, replace(config("attentive"), **changes))
        with pytest.raises(CacheError, match=f"{PARAMETERS_FILE} does not fit {CONFIG_FILE}"):
            load_head(tmp_path)
    save_head(tmp_path, head, config("attentive"))
    whole = (tmp_path / PARAMETERS_FILE).read_bytes()
    (tmp_path / PARAMETERS_FILE).write_bytes(whole[:-10])
    with pytest.raises(CacheError, match=PARAMETERS_FILE):
        load_head(tmp_path)
    (tmp_path / CONFIG_FILE).write_text((tmp_path / CONFIG_FILE).read_text().replace('"final"', '"2"'))
    with pytest.raises(CacheError, match="field 'digest' does not match"):
        load_head(tmp_path)


def test_a_head_that_predicts_first_leaves_others_to_train(tmp_path: Path) -> None:
    """As in a notebook: buffers that predicting made are used again by a training in the same thread."""
    head, source = trained("attentive")
    release()
    predict(head, source, torch.arange(40), 40)
    again, _ = trained("attentive")
    torch.testing.assert_close(again.state_dict(), head.state_dict(), rtol=0, atol=0)


def test_the_caches_of_a_head_are_described(tmp_path: Path) -> None:
    plan = make_plan()
    cache_path = cache_folder(tmp_path / "root", plan)
    write_cache(cache_path, plan, make_content(plan))
    cache = open_cache(cache_path)
    parts = [("norm2", ["0", "1"], ["cls"])]
    source = HeadSource.of(cache, parts, [named_view("flip")])
    head, _ = trained("linear")
    save_head(tmp_path, head, replace(config("linear"), sources=[source]))
    _, found = load_head(tmp_path)
    [again] = found.sources
    assert (again.spec, again.cache_key, again.views) == (cache.spec, cache.key, [named_view("flip")])
    assert again.to_dict() == json.loads(json.dumps(source.to_dict()))
    document = json.loads((tmp_path / "head.json").read_text())
    assert document["version"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "head version 3; this featcache reads versions 1 and 2: upgrade featcache"),
        ({"sources": [{}]}, "field 'spec' must be dict"),
        ({"sources": [3]}, "a source must be an object"),
        ({"temperature": "warm"}, "field 'temperature' must be float"),
        ({"temperature": 2.0}, "a temperature or input stages, which this featcache does not apply"),
        (
            {"input_stages": [{"name": "pca"}]},
            "a temperature or input stages, which this featcache does not apply",
        ),
    ],
)
def test_a_head_json_that_cannot_be_read_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    head, _ = trained("linear")
    save_head(tmp_path, head, config("linear"))
    document = read_sealed(tmp_path / "head.json")
    write_sealed(tmp_path / "head.json", {**document, **change})
    with pytest.raises(CacheError, match=message):
        load_head(tmp_path)


def test_a_head_of_the_first_version_has_no_sources(tmp_path: Path) -> None:
    head, _ = trained("linear")
    save_head(tmp_path, head, config("linear"))
    document = read_sealed(tmp_path / "head.json")
    later = ("version", "sources", "units", "input_stages", "temperature")
    write_sealed(
        tmp_path / "head.json", {name: value for name, value in document.items() if name not in later}
    )
    _, found = load_head(tmp_path)
    assert (list(found.sources), found.temperature) == ([], None)
