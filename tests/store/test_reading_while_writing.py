"""A reader beside a writer that is killed again and again: it sees whole blocks or nothing of them."""

import json
import random
import time
from collections import defaultdict

from support.processes import start_module, start_writer

KILLS = 8


def test_a_reader_beside_writers_that_are_killed(tmp_path):
    # Into a file: nobody reads a pipe meanwhile.
    with (tmp_path / "looks").open("w") as looks:
        reader = start_module("support.reader_loop", tmp_path, stdout=looks)
    rng, completed, kills = random.Random(0), 0, 0
    while kills < KILLS or not completed:
        writer = start_writer(tmp_path / f"cache-{completed:02d}", 0.01)
        writer.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
        kills += writer.poll() is None
        writer.kill()
        writer.communicate()
        completed += (tmp_path / f"cache-{completed:02d}" / "manifest.json").exists()
    (tmp_path / "stop").touch()
    _, err = reader.communicate(timeout=60)
    assert reader.returncode == 0, err

    seen = defaultdict(list)
    for line in (tmp_path / "looks").read_text().splitlines():
        look = json.loads(line)
        seen[look["directory"]].append(look)
    for looks in seen.values():
        rows = [look["rows"] for look in looks]
        assert rows == sorted(rows), "what was there stays there"
        for look in looks:
            if look["error"]:
                assert look["error"].startswith("CacheNotFoundError"), "before the plan was written"
        errors = [bool(look["error"]) for look in looks]
        assert errors == sorted(errors, reverse=True)
    everything = {look["rows"] for looks in seen.values() for look in looks}
    assert everything >= {0, 128, 256, 390}
    assert completed
