"""Training on a GPU queues its work: the host waits once an update, to learn how many samples are jittered."""

import numpy as np
import pytest
import torch

from featcache.probing.heads import get_head
from featcache.probing.inputs.tokens import InMemoryTokens
from featcache.probing.protocols.protocol import PAPER, Plan
from featcache.probing.scoring.tasks import SingleLabel
from featcache.probing.training.array_fitting import array_job
from featcache.probing.training.batches import Seeds, mini_batches
from featcache.probing.training.trainer import Training, initial_head

UPDATES = 3


@pytest.mark.parametrize("name", ["attentive", "linear"])
def test_the_host_waits_once_an_update(pretended, name):
    device = torch.device("cuda:0")
    info = get_head(name)
    members = PAPER.members(info.has_dropout)
    rng = np.random.default_rng(0)
    tokens = InMemoryTokens(rng.normal(size=(64, 6, 16)).astype(np.float16), device)
    labels = torch.arange(64) % 4
    dropouts = [member.dropout for member in members]
    head = initial_head(array_job(info, 6, 3).build, tokens, 4, dropouts, 0).to(device)
    loss = SingleLabel(4).loss(labels, device)
    generator = torch.Generator(device).manual_seed(0)
    training = Training([head], members, PAPER, loss, UPDATES, "bf16", generator)
    waits = []
    rows, plan = torch.arange(64), Plan(64, 1, UPDATES)
    for batch in mini_batches(tokens, labels, rows, plan, PAPER, Seeds.derive(0), device):
        training.step(batch)
        waits.append(dict(pretended.counts.host_waits))
        pretended.counts.host_waits.clear()
    assert waits[1:] == [{"aten.nonzero.default": 1}] * (UPDATES - 1)
