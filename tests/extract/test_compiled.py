"""Compiled passes: the same features, or none."""

import numpy as np
import pytest
import torch

from featcache.extraction.forward_pass.compiled import compiled_pass
from featcache.extraction.forward_pass.forward import FeatureExtractor
from featcache.store.errors import BackboneError

from .test_pipeline import CPU, plain_features, samples_of
from .tiny import default_arrays, noise, num_hooks, timm_vit


def compile_pass(backbone, said, batch=4):
    return compiled_pass(backbone, CPU, "fp32", default_arrays(backbone), batch, said.append)


def test_a_compiled_pass_gives_the_same_features(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    backbone, said = timm_vit(reg_tokens=2), []
    compiled = compile_pass(backbone, said)
    assert said == []
    assert num_hooks(backbone) == 0
    extractor = FeatureExtractor(
        backbone, CPU, "fp32", default_arrays(backbone), "float32", compiled=compiled
    )
    for batch in (4, 3):  # the last one of a block is smaller
        images = noise(batch, seed=batch)
        wanted = plain_features(backbone, images)
        for name, values in extractor(images, samples_of(batch)).items():
            np.testing.assert_allclose(values, wanted[name], rtol=1e-4, atol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "compiled again for the small batch"


@pytest.mark.parametrize("wrong", [lambda values: 1.01 * values, lambda values: values * float("nan")])
def test_a_compiled_pass_that_gives_other_features_is_not_used(monkeypatch, wrong):
    monkeypatch.setattr(
        torch,
        "compile",
        lambda run, **_: (
            lambda images: {
                name: wrong(values) if name == "norm2" else values for name, values in run(images).items()
            }
        ),
    )
    said = []
    assert compile_pass(timm_vit(), said) is None
    assert len(said) == 1
    assert "the compiled forward pass gives other features ('norm2' differs by" in said[0]


def test_without_a_compiler_there_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    from torch._inductor import config

    torch.compiler.reset()
    with (
        config.patch({"cpp.cxx": (None, str(tmp_path / "c++"))}),
        pytest.raises(BackboneError) as caught,
    ):
        compile_pass(timm_vit(), [])
    assert str(caught.value).startswith("the forward pass cannot be compiled here (")
    assert str(caught.value).endswith("; leave --compile out")
    assert "\n" not in str(caught.value)
