"""The command line in this process, where what it imports is imported once."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Outcome:
    status: int
    out: str
    err: str


def command_line(monkeypatch, capsys) -> Callable[..., Outcome]:
    """Return a function that runs the real entry point with some arguments."""
    from featcache.cli import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["featcache", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch use one thread: small heads train ten times slower on two that wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
