"""Every head of the registry does what all must; and single heads against what a library or an obvious formula gives."""

import pytest
import torch

from featcache.probe.heads import HEADS, HeadInfo
from featcache.probe.heads.contract import Check, check_head, checks
from featcache.probe.heads.linear import LinearHead

CASES = [
    pytest.param(info, check, id=f"{info.name}-{check.__name__.removeprefix('check_')}")
    for info in HEADS.values()
    if info.listed
    for check in checks(info)
]


@pytest.mark.parametrize(("info", "check"), CASES)
def test_contract(info: HeadInfo, check: Check) -> None:
    check(info)


class MixingHead(LinearHead):
    """Takes the mean of the batch off, so a sample's output depends on its company."""

    def classify(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().classify(inputs - inputs.mean(0))


def test_the_contract_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    info = HEADS["linear"]
    monkeypatch.setattr(HeadInfo, "load", lambda self: MixingHead)
    with pytest.raises(AssertionError, match="linear: check_samples_do_not_mix: outputs depend on the batch"):
        check_head(info)
