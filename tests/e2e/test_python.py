"""The public functions, from images to a head that scores them."""

import pytest

import featcache

from .conftest import MODEL


def test_from_images_to_a_head(weights, images, capsys):
    quiet = {"progress": False}
    cache = featcache.extract(MODEL, f"imagefolder:{images}", weights=weights, precision="fp32", **quiet)
    assert (
        featcache.extract(MODEL, f"imagefolder:{images}", weights=weights, precision="fp32", **quiet).key
        == cache.key
    )
    asked = {"layers": "all", "tokens": "cls+ap", "protocol": "quick", "out": "results", **quiet}
    rows = featcache.probe(cache, ["ridge", "ncm"], **asked)
    assert [row.head for row in rows] == ["linear", "ridge", "ncm"]
    # By folder or by key it is the same cache, and what is known is not trained again.
    for name in (cache.directory, cache.key):
        assert featcache.probe(name, "ridge", **asked) == rows[:2]
    head = featcache.load_head(f"results/{rows[1].folder}")
    assert head.score(cache).scores == pytest.approx(rows[1].scores)
    features = cache["test"].load(head.layers, head.tokens)
    assert (head.predict(features) == cache["test"].labels()).mean() == pytest.approx(rows[1].top1)
    assert tuple(capsys.readouterr()) == ("", ""), "nothing is printed where progress is not wanted"
    with pytest.raises(ValueError, match="unknown head 'rigde'; did you mean ridge"):
        featcache.probe(cache, "rigde", **quiet)
    with pytest.raises(ValueError, match="the table paper says which heads it has; leave them out"):
        featcache.probe(cache, "ridge", table="paper", **quiet)
    with pytest.raises(FileNotFoundError, match="no cache matches ffff"):
        featcache.probe("ffff", **quiet)
