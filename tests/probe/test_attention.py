"""Where a head looks, layer by layer and kind by kind, as numbers and as a picture."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from featcache.probing.attention import mean_attention, save_attention
from featcache.probing.heads import get_head
from featcache.probing.inputs.data import load_split
from featcache.probing.results.records import AttentionRecord, read_attention

from .caches import WIDTH, rich_cache, rich_plan, select


@pytest.mark.parametrize("memory", [None, 1], ids=["memory", "streamed"])
def test_the_tokens_of_a_layer_and_kind_add_up(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(
        "featcache.probing.training.prediction.PREDICTION_BYTES", 16
    )  # 40 rows: the last batch is smaller
    cache, _ = rich_cache(tmp_path, rich_plan())
    selection = select(cache, "2,3,final", "cls+registers+patches")
    tokens = load_split(cache, "test", selection, "cpu", memory).tokens
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = get_head("attentive").build(selection.num_tokens, WIDTH, 3, num_heads=4).eval()
        torch.nn.init.normal_(head.get_parameter("query"), std=30)  # so that attention is far from even
        torch.nn.init.normal_(head.get_parameter("query_norm.weight"), std=30)
    labels = np.arange(40) % 3
    names = ("a", "b", "c", "none in test")
    record = mean_attention(head, tokens, selection, labels, names)
    got = record.weights

    with torch.inference_mode():
        each = head.attention(tokens.batch(torch.arange(40)))[0].double()  # [N, H, T]
    want = np.full((3, 3), np.nan)
    # In the order of the parts: cls of 2, 3, final; two registers of each; patches, which layer 2 has not.
    want[:, 0] = [float(each[:, :, index].mean()) for index in range(3)]
    want[:, 1] = [float(each[:, :, 3 + 2 * index : 5 + 2 * index].sum(2).mean()) for index in range(3)]
    want[1:, 2] = [float(each[:, :, 9 + 6 * index : 15 + 6 * index].sum(2).mean()) for index in range(2)]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert record.by_class is not None
    of_class_1 = [float(each[labels == 1, :, index].mean()) for index in range(3)]
    np.testing.assert_allclose(record.by_class[1, :, 0], of_class_1, rtol=1e-5)
    np.testing.assert_allclose(np.nansum(record.by_class, (1, 2)), [1, 1, 1, 0], rtol=1e-5)
    assert np.isnan(record.by_class[3]).all()
    assert mean_attention(head, tokens, selection).by_class is None
    assert np.nansum(got) == pytest.approx(1)
    assert np.nanmax(got[:, 0]) / np.nanmin(got[:, 0]) > 1.2, "not even: an order that is wrong shows"


def test_what_is_written(tmp_path):
    weights = np.array([[0.125, np.nan], [0.125, 0.5], [0.05, 0.2]])
    record = AttentionRecord(("2", "3", "final"), ("cls", "patches"), weights, (), None)
    save_attention(tmp_path, record, "a title")
    document = json.loads((tmp_path / "attention.json").read_text())
    assert document == {
        "layers": ["2", "3", "final"],
        "tokens": ["cls", "patches"],
        "weights": [[0.125, None], [0.125, 0.5], [0.05, 0.2]],
    }

    def picture() -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO((tmp_path / "attention.png").read_bytes())).convert("RGB"))

    before = picture()
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 50
    weights[0, 0] += 0.1
    save_attention(tmp_path, record, "a title")
    assert before.shape == picture().shape
    assert (before != picture()).any()
    np.testing.assert_array_equal(read_attention(tmp_path).weights, weights)
