"""Tests of the trainer: problems so small that a second thread costs more than it brings."""

import pytest

from support.running import one_torch_thread


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    with one_torch_thread():
        yield
