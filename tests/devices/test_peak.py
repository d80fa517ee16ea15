"""The measured peak of a computation is what its tensors take."""

import torch

from featcache.devices.peak import measure_peak

CPU = torch.device("cpu")
MEGABYTE = 10**6


def megabyte() -> torch.Tensor:
    return torch.empty(MEGABYTE, dtype=torch.uint8)


def test_what_is_freed_does_not_count_again():
    def run():
        for _ in range(5):
            megabyte().add_(1)

    assert measure_peak(CPU, run) == MEGABYTE


def test_what_exists_at_once_counts_together():
    def run():
        first = megabyte()
        second = first + 1
        del first
        third = second + 1
        return second, third

    assert measure_peak(CPU, run) == 2 * MEGABYTE


def test_views_and_tensors_from_before_do_not_count():
    before = megabyte()

    def run():
        before.view(1000, 1000).t().add_(1)
        return before[10:]

    assert measure_peak(CPU, run) == 0


def test_the_backward_pass_counts():
    weight = torch.ones(MEGABYTE // 4, requires_grad=True)

    def run():
        return torch.autograd.grad((weight * weight.detach()).square().sum(), weight)

    # The product is kept for the backward pass, in which gradients of the product and of the weight come to it.
    assert 3 * MEGABYTE <= measure_peak(CPU, run) <= 4 * MEGABYTE + 64
