"""Documents that several processes write at once: a reader finds one of them, whole."""

import errno
import fcntl
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from featcache.store.files import read_sealed, write_atomic, write_sealed


@pytest.mark.parametrize("locks", [True, False])
def test_writers_of_the_same_document_do_not_disturb_each_other(tmp_path, monkeypatch, locks):
    if not locks:

        def no_locks(*arguments):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", no_locks)
    path = tmp_path / "request.json"
    write_sealed(path, {"requests": []})

    def write(number: int) -> None:
        for size in range(40):
            write_sealed(path, {"requests": [number] * (size * 100)})

    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        looks = 0
        while not all(writer.done() for writer in writers):
            assert len(set(read_sealed(path)["requests"])) <= 1
            looks += 1
        for writer in writers:
            writer.result()
    assert looks > 10
    assert os.listdir(tmp_path) == ["request.json"]


def test_what_a_killed_process_left_is_written_over(tmp_path):
    (tmp_path / "a.json.partial").write_bytes(b"longer than the new content")
    write_atomic(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.json"]
