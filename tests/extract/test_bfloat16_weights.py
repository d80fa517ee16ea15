"""Backbones with bfloat16 weights: features near those in float32, in a cache of their own."""

import numpy as np
import pytest
import torch

from featcache.extraction.forward_pass.bfloat16_weights import in_precision
from featcache.extraction.forward_pass.forward import FeatureExtractor
from featcache.store.errors import BackboneError

from .test_families import TIMM, noise_for, timm_member
from .test_pipeline import CPU, samples_of
from .tiny import clip_vit, default_arrays, noise, timm_vit

FAMILIES = ["dinov2", "dinov3", "eva02", "beit", "siglip", "pe-core"]


def features(backbone, precision, images):
    extractor = FeatureExtractor(
        in_precision(backbone, precision), CPU, precision, default_arrays(backbone), "float32"
    )
    return extractor(images, samples_of(len(images)))


@pytest.mark.parametrize("make", [timm_vit, clip_vit], ids=["timm", "open_clip"])
def test_features_are_near_those_in_float32_and_the_backbone_stays_as_it_is(make):
    backbone, images = make(), noise(3)
    wanted, found = (features(backbone, precision, images) for precision in ("fp32", "bf16"))
    for name in wanted:
        difference = np.linalg.norm(found[name] - wanted[name], axis=-1) / np.linalg.norm(
            wanted[name], axis=-1
        )
        assert 1e-5 < difference.max() < 0.1, name
    assert {parameter.dtype for parameter in backbone.module.parameters()} == {torch.float32}
    again = features(backbone, "fp32", images)
    assert all(np.array_equal(again[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_position_embedding_runs(family):
    backbone = timm_member(*TIMM[family][:2])
    assert all(
        np.isfinite(values).all() for values in features(backbone, "bf16", noise_for(backbone)).values()
    )


def test_a_backbone_that_does_not_stand_it_is_refused():
    backbone = timm_vit()
    # Beyond bfloat16's eight bits, the scale of the last norm is lost against its offset.
    backbone.module.norm.bias.data.fill_(1e4)
    backbone.module.fc_norm = torch.nn.LayerNorm(backbone.spec.width)
    with pytest.raises(
        BackboneError, match=r"with bfloat16 weights gives other features .* use --precision mixed"
    ):
        in_precision(backbone, "bf16")
