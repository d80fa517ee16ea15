"""Batch sizes that the machine decides."""

import pytest
import torch

from featcache.extraction.forward_pass.capacity import default_batch_size
from featcache.store.arrays import MIN_BLOCK_ROWS


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_default_batches_divide_blocks(device):
    """Block sizes are powers of two from `MIN_BLOCK_ROWS` on, so no batch is smaller than it need be."""
    assert MIN_BLOCK_ROWS % default_batch_size(torch.device(device)) == 0
