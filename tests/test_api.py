"""The public functions: their signatures are a promise."""

import ast
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import featcache
from featcache.store.errors import FeatcacheError

SIGNATURES = {
    "convert": "(cache, *, dtype='int8', root=(), progress=True)",
    "open": "(cache, *, allow_partial=False, splits=(), layers=None, taps=(), patches=True, views=(), root=())",
    "extract": "(model, dataset, *, preprocess='own', input_size=None, crop=None, crop_pct=None, resize_size=None, "
    "interpolation=None, mean=None, std=None, data=None, revision=None, target='auto', limit=None, split_seed=0, "
    "test_splits=(), train_split=None, group_by=None, resplit=False, pixel_range='auto', channels=3, max_pixels=None, "
    "taps=('norm2',), layers='every', tokens='cls,ap', patches=None, splits=(), views='', weights=None, weights_key=None, "
    "trust_remote_code=False, "
    "dtype='float16', precision='auto', resize='auto', exif=None, batch_size=None, workers=None, device='auto', "
    "compile=False, on_error='stop', reuse='auto', root=None, force=False, backbone=None, source=None, progress=True)",
    "probe": "(cache, head='attentive', *, table=None, layers=None, tokens=None, tap='norm2', views=(), num_heads=None, protocol='paper', "
    "solver='adamw', penalty='l2', input=None, folds=None, groups=None, halving=None, shots=(), draws=1, target_kind=None, "
    "regression_loss='mse', baselines=None, templates='photo', text_weights=None, options=None, seeds=(0,), precision='auto', device='auto', memory=None, "
    "out='featcache-results', force=False, progress=True)",
    "load_head": "(folder)",
    "ls": "(remote=None, *, model=None, dataset=None, root=())",
    "info": "(cache=None, *, root=(), progress=True)",
    "verify": "(cache=None, *, repair=False, threads=None, recompute=None, dtype_loss=False, dataset=None, data=None, model=None, weights=None, "
    "trust_remote_code=False, "
    "seed=0, device='auto', root=(), progress=True)",
    "push": "(cache, remote, *, force=False, root=(), progress=True)",
    "pull": "(cache, *, splits=(), layers=None, taps=(), patches=True, views=(), check=False, root=(), progress=True)",
    "results": "(out='featcache-results', *, score='main', against=None, model=(), dataset=(), head=(), layers=(), tokens=(), "
    "tap=(), views=(), input=(), protocol=(), solver=(), shots=(), seed=(), view='summary', progress=True)",
    "plot": "(out='featcache-results', *, score='main', against=None, model=(), dataset=(), head=(), layers=(), tokens=(), "
    "tap=(), views=(), input=(), protocol=(), solver=(), shots=(), seed=(), kind=(), to=None, progress=True)",
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


def test_what_is_public():
    """The three lists of `featcache/__init__.py` agree, and every name is there."""
    tree = ast.parse(Path(featcache.__file__).read_text())
    typed = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom):
                    typed |= {name.name: line.module for name in line.names}
    loaded = {name: module for module, names in featcache._HOMES.items() for name in names}
    assert typed == {**loaded, "errors": "featcache"}
    assert set(featcache.__all__) == {*typed, "__version__"}
    assert list(featcache.__all__) == sorted(featcache.__all__)
    assert set(featcache.__all__) <= set(dir(featcache))
    for name in featcache.__all__:
        value = getattr(featcache, name)
        assert name == "__version__" or inspect.getdoc(value), name
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__name__ == name
    assert set(SIGNATURES) < set(featcache.__all__)


def test_all_errors_are_public():
    from featcache.store import errors

    raised = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert set(featcache.errors.__all__) == raised
    assert all(getattr(featcache.errors, name) is getattr(errors, name) for name in raised)


@pytest.mark.parametrize("name", SIGNATURES)
def test_help_shows_parameters(name):
    function = getattr(featcache, name)
    title, _, signature, *explained = pydoc.render_doc(function, renderer=pydoc.plaintext).splitlines()
    assert title.startswith(f"Python Library Documentation: function {name} in module featcache")
    for parameter in inspect.signature(function).parameters:
        assert re.match(rf"{name}\(.*\b{parameter}: ", signature), parameter
        assert any(line.strip().startswith(f"{parameter}: ") for line in explained), parameter


def test_a_renamed_argument_works_with_a_warning(tmp_path):
    with (
        pytest.warns(DeprecationWarning, match=r"open\(\) takes cache instead of directory") as warned,
        pytest.raises(FileNotFoundError, match="no cache here"),
    ):
        featcache.open(directory=tmp_path)
    assert warned[0].filename == __file__
    with pytest.raises(TypeError, match="directory"):
        featcache.open(tmp_path, directory=tmp_path)


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
