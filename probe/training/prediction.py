"""Outputs of a fitted head, batch by batch.

Shapes: R rows, C classes or outputs of a regression.
"""

import torch
from torch import Tensor

from featcache.devices.float32 import exact_float32
from featcache.probing.heads.base import Head
from featcache.probing.inputs.tokens import TokenSource
from featcache.probing.scoring.tasks import Task
from featcache.probing.training.batches import Jitter

# Bytes of tokens in float32 that are predicted from at once.
PREDICTION_BYTES = 2**26


def prediction_batch(tokens: TokenSource, head: Head | None = None) -> int:
    """Return the batch size outside of training: as many samples as the tokens and the results of `head` leave room for."""
    values = tokens.num_tokens * tokens.width
    if head is not None:
        values = max(values, head.num_members * (head.num_classes + head.activations))
    return max(1, PREDICTION_BYTES // (4 * values))


def predict_samples(head: Head, tokens: TokenSource, task: Task) -> Tensor:
    """Compute the outputs ``[N, C]`` of all N samples on the CPU, averaged over the views of each.

    Probabilities are averaged, and of a regression the outputs themselves; see `Task.average`.
    """
    rows = torch.arange(tokens.num_samples)
    outputs = predict(head, tokens, rows, prediction_batch(tokens, head)).cpu()
    if tokens.num_views == 1:
        return outputs
    return task.average(outputs.reshape(tokens.num_views, -1, outputs.shape[1]))


@exact_float32()
@torch.inference_mode()
def predict(
    head: Head, tokens: TokenSource, rows: Tensor, batch_size: int, jitter: Jitter | None = None
) -> Tensor:
    """Compute the outputs ``[R, C]`` of `rows` (``[R]``, int64, on the CPU), in float32.

    Args:
        head: one member; left in eval mode. Its input transform takes the place of that of `tokens`.
        tokens: the token source.
        rows: which samples.
        batch_size: samples at a time.
        jitter: noise that is added to the tokens.

    Returns:
        Logits, or numbers in the units of the targets.
    """
    head.eval()
    device = next(iter(head.state_dict().values())).device
    tokens = tokens.with_transform(head.input_transform)
    joined: Tensor | None = None
    for start, part in zip(range(0, len(rows), batch_size), torch.split(rows, batch_size), strict=True):
        x = tokens.batch(part).to(device)
        outputs = head(x if jitter is None else jitter.add_(x)).squeeze(0)
        if joined is None:  # filled in place, since concatenating the parts would take twice the memory
            joined = outputs.new_empty(len(rows), *outputs.shape[1:])
        joined[start : start + len(part)] = outputs
    if joined is None:
        joined = torch.empty(0, head.num_classes, device=device)
    return joined if head.output is None else head.output.apply(joined)
