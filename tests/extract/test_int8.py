"""int8 in extraction: codes on the device are those of the plain rule, and the scales come from a seeded sample of train."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from featcache.extraction.forward_pass.encoding import Clipping, Int8Encoder
from featcache.extraction.forward_pass.forward import FeatureExtractor
from featcache.extraction.running.scales import sample_rows
from featcache.extraction.sources.base import Sample
from featcache.store.arrays import ArrayInfo
from featcache.store.errors import BackboneError
from featcache.store.quantization import RangeFit

from .tiny import WIDTH, default_arrays, noise, timm_vit

CPU = torch.device("cpu")
KINDS = ("cls", "ap")


def int8_arrays(layers=("0", "1", "2")):
    norm2 = ArrayInfo("norm2", (9, 3, 2, WIDTH), 128, "int8", ("a", "b", "c", "d"), layers, KINDS)
    return [norm2, replace(norm2, name="final", shape=(9, 1, 2, WIDTH), layers=("final",))]


def features_of(backbone, images, arrays=None, encoder=None):
    samples = [Sample(f"image-{row}", 0) for row in range(len(images))]
    extractor = FeatureExtractor(
        backbone, CPU, "fp32", arrays or default_arrays(backbone), "float32", encoder=encoder
    )
    return extractor(images, samples)


def scales_of(features):
    scales = {}
    for array in int8_arrays():
        fit = RangeFit(array)
        fit.add(features[array.name])
        scales[array.name] = fit.scales()
    return scales


@pytest.mark.parametrize("layers", [("0", "1", "2"), ("2",)])
def test_codes_and_counts_are_those_of_the_plain_rule(layers):
    backbone = timm_vit()
    scales = scales_of(features_of(backbone, noise(3)))
    clipping, images = Clipping(), noise(6) * 3
    arrays = int8_arrays(layers)
    codes = features_of(backbone, images, arrays, Int8Encoder(scales, arrays, clipping))
    exact = features_of(backbone, images, arrays)
    for array in arrays:
        at = [array.position(layer) for layer in array.layers]
        wanted, clipped = scales[array.name].of(at).encode(exact[array.name])
        np.testing.assert_array_equal(codes[array.name], wanted)
        assert codes[array.name].dtype == np.int8
        assert clipping.clipped[array.name] == clipped.sum()
    assert clipping.values == sum(values.size for values in exact.values())
    assert sum(clipping.clipped.values()) > 0
    assert clipping.notes()[0].startswith(
        f"{sum(clipping.clipped.values()):,} of {clipping.values:,} values ("
    )


def test_values_that_are_not_finite_have_no_code():
    backbone = timm_vit()
    scales = scales_of(features_of(backbone, noise(3)))
    with torch.no_grad():
        backbone.final_norm.bias[0] = torch.nan
    with pytest.raises(BackboneError, match=r"sample 'image-0', final, layer final: .* not finite"):
        features_of(backbone, noise(3), int8_arrays(), Int8Encoder(scales, int8_arrays(), Clipping()))


def test_the_sample_is_all_of_a_small_split_and_fixed_in_a_large_one():
    assert sample_rows(7) == list(range(7))
    rows = sample_rows(100_000)
    assert len(rows) == len(set(rows)) == 512
    assert rows == sorted(rows) == sample_rows(100_000)
    # From all over the split, which may be sorted by class.
    assert np.histogram(rows, 8, (0, 100_000))[0].min() > 30
