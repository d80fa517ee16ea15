"""The public functions: their signatures are a promise."""

import inspect
import subprocess
import sys

import pytest

import featcache
from featcache.store.errors import FeatcacheError

SIGNATURES = {
    "open": "(directory, *, allow_partial=False, splits=(), layers=None, taps=(), patches=True)",
    "extract": "(model, dataset, *, data=None, revision=None, target='auto', limit=None, split_seed=0, test_splits=(), "
    "train_split=None, group_by=None, resplit=False, pixel_range='auto', exif_orientation='ignore', max_pixels=None, "
    "taps=('norm2',), layers='every', tokens='cls,ap', patches=None, splits=(), weights=None, weights_key=None, "
    "dtype='float16', precision='auto', resize='auto', batch_size=None, workers=None, device='auto', "
    "compile=False, on_error='stop', root=None, force=False, backbone=None, source=None, progress=True)",
    "probe": "(cache, head='attentive', *, table=None, layers=None, tokens=None, tap='norm2', num_heads=None, protocol='paper', "
    "solver='adamw', penalty='l2', input=None, folds=None, groups=None, halving=None, shots=(), draws=1, target_kind=None, "
    "regression_loss='mse', options=None, seeds=(0,), precision='auto', device='auto', memory=None, "
    "out='featcache-results', force=False, progress=True)",
    "load_head": "(folder)",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    function = getattr(featcache, name)
    found = inspect.signature(function)
    bare = found.replace(
        parameters=[one.replace(annotation=inspect.Parameter.empty) for one in found.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    assert str(bare) == SIGNATURES[name]
    assert all(one.annotation is not inspect.Parameter.empty for one in found.parameters.values())
    # Every argument is explained.
    documented = inspect.getdoc(function)
    for argument in found.parameters:
        assert f"    {argument}: " in documented, argument


def test_a_head_that_is_not_there():
    with pytest.raises(
        FileNotFoundError, match=r"^nope holds no head; give OUT/FOLDER, where OUT is what"
    ) as caught:
        featcache.load_head("nope")
    assert isinstance(caught.value, FeatcacheError)


def test_importing_featcache_is_free():
    code = (
        "import sys, featcache\n"
        "assert not {'torch', 'numpy', 'click'} & set(sys.modules)\n"
        "try:\n    featcache.prob\nexcept AttributeError as error:\n    assert 'prob' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
