"""Means and symmetric products of features that are read block by block, in float64.

Shapes: N samples, F features, B rows of a block.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from featcache.probing.inputs.features import Features

# Rows of one block of a symmetric product: what lies above the diagonal is not computed twice.
PRODUCT_BLOCK = 256

Centered = Callable[[slice, Tensor], Tensor]
"""Makes float64 values ``[B, F]`` of the positions of rows and their features ``[B, F]``."""


def mean_of(features: Features) -> Tensor:
    """Return the mean ``[F]``, float64, of all samples."""
    total = torch.zeros(features.num_features, dtype=torch.float64, device=features.device)
    for _, block in features.blocks():
        total += block.sum(0, dtype=torch.float64)
    return total / features.num_samples


def gram_of(features: Features, centered: Centered) -> Tensor:
    """Return products ``[N, N]``, float64, of all pairs of samples.

    Every block meets every earlier block, which is read again for that.
    """
    size = features.num_samples
    gram = torch.zeros(size, size, dtype=torch.float64, device=features.device)
    for rows, block in features.blocks():
        own = centered(rows, block)
        gram[rows, rows] = symmetric_product(own)
        if rows.start:
            for columns, other in features.select(slice(0, rows.start)).blocks():
                product = own @ centered(columns, other).T
                gram[rows, columns] = product
                gram[columns, rows] = product.T
    return gram


def covariance_of(features: Features, centered: Centered) -> Tensor:
    """Return the sum ``[F, F]``, float64, of the outer products of all samples."""
    size = features.num_features
    total = torch.zeros(size, size, dtype=torch.float64, device=features.device)
    for rows, block in features.blocks():
        add_symmetric_product(total, centered(rows, block).T)
    return total


def symmetric_product(rows: Tensor) -> Tensor:
    """Return ``rows @ rows.T``."""
    product = rows.new_zeros(len(rows), len(rows))
    add_symmetric_product(product, rows)
    return product


def add_symmetric_product(total: Tensor, rows: Tensor) -> None:
    """Add ``rows @ rows.T`` to `total`, computing little more than one half of it."""
    for start in range(0, len(rows), PRODUCT_BLOCK):
        stop = start + PRODUCT_BLOCK
        block = rows[start:stop] @ rows[: min(stop, len(rows))].T
        total[start:stop, : block.shape[1]] += block
        total[:start, start:stop] += block[:, :start].T
