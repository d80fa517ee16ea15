"""What sharing costs: push and pull against the same client without featcache, and what does not have to move."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from timing import Document

from featcache.probing.requests.jobs import needed
from featcache.probing.requests.request import ProbeRequest
from featcache.store.address import CacheName, parse_address
from featcache.store.journal import Plan
from featcache.store.network.concurrency import CONCURRENT_FILES
from featcache.store.reading.reader import open_cache
from featcache.store.transfer.borrow import borrow
from featcache.store.transfer.catalogue import CatalogueEntry
from featcache.store.transfer.pull import pull
from featcache.store.transfer.push import push
from featcache.store.transfer.selection import CacheSelection, data_files
from featcache.store.writing.writer import CacheWriter
from support.caches import cache_folder, make_plan
from support.faulty_proxy import Faults, FaultyProxy
from support.servers import http_server, moto_server

BUCKET = "bench"


@dataclass(frozen=True)
class Size:
    """Sizes of what is moved; with smaller ones the figures say nothing."""

    train_rows: int
    width: int
    caches: int
    """Caches in the remote that is listed."""
    runs: int
    commands: int
    """Runs of a whole command."""


# 25 layers of 1,024 channels (a ViT-L): 20,480 rows are 2.1 GB.
FULL = Size(19_456, 1024, 1000, 3, 5)
TOY = Size(512, 16, 10, 1, 1)


def bench_transfer(toy: bool = False) -> Document:
    """All rows of sharing, against moto's S3 server on the same machine."""
    size = TOY if toy else FULL
    keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        root = Path(name)
        samples = {"train": size.train_rows, "test": 1_024}
        plan = make_plan(samples, num_layers=24, width=size.width, batch_size=512)
        directory = cache_folder(root / "ours", plan)
        write_random(directory, plan)
        pushes = bench_push(directory, size)
        endpoint = stack.enter_context(moto_server())
        use(endpoint)
        push(directory, parse_address(f"s3://{BUCKET}/team"))
        address = f"s3://{BUCKET}/team/made/{directory.name}"
        faults = Faults(int(endpoint.rpartition(":")[2]))
        port = stack.enter_context(http_server(type("Handler", (FaultyProxy,), {"faults": faults})))
        return {
            "megabytes": plan.inventory.num_bytes // 10**6,
            "push, against the client alone": pushes,
            "pull, against the client alone": bench_pull(directory, address, root, size),
            "pull --layers last": bench_last_layer(address, root, plan, faults, port, endpoint),
            "second pull of a complete cache": bench_second_pull(address, root, size),
            "first probe on one layer, against the client alone": bench_probe(directory, address, root, size),
            "ls of 1,000 caches": bench_listing(faults, port, endpoint, size),
        }


def use(endpoint: str) -> None:
    """Point the clients at a server, and make the bucket there."""
    import boto3

    os.environ["AWS_ENDPOINT_URL"] = endpoint
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    client.close()


def write_random(directory: Path, plan: Plan) -> None:
    """Write a cache batch by batch: all of it would not fit in memory many times over."""
    rng = np.random.default_rng(0)
    with CacheWriter(directory, plan) as writer:
        while (block := writer.claim()) is not None:
            arrays = plan.inventory.splits[block.block.split].arrays
            for start in range(block.block.start, block.block.stop, plan.batch_size):
                rows = min(plan.batch_size, block.block.stop - start)
                batch = {}
                for name, array in arrays.items():
                    shape = (rows, *([len(array.layers)] if array.layers else []), *array.row_shape)
                    values = rng.random(shape, np.float32) if array.layers else np.ones(shape)
                    batch[name] = values.astype(array.stored_dtype)
                batch["label"] = (np.arange(start, start + rows) % 3).astype("<i8")
                block.append(batch)
            writer.commit(block)
        writer.finish({"model_names": ["tiny"], "dataset_names": ["made"], "completed_at": 1.0}, "# card\n")


def plain_store():
    """The client that featcache uses, without featcache."""
    from obstore.store import S3Store

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    return S3Store(BUCKET, endpoint=endpoint, client_options={"allow_http": True, "timeout": "1 day"})


def plain_push(files: list[tuple[Path, str]]) -> None:
    import obstore

    store = plain_store()
    with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
        list(pool.map(lambda file: obstore.put(store, file[1], file[0]), files))


def plain_pull(files: list[tuple[Path, str]]) -> None:
    import obstore

    store = plain_store()

    def fetch(file: tuple[Path, str]) -> None:
        with file[0].open("wb") as target:
            for piece in obstore.get(store, file[1]).stream(min_chunk_size=2**20):
                target.write(piece)

    for path, _ in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
        list(pool.map(fetch, files))


def files_of(directory: Path, choice: CacheSelection | None = None) -> list[str]:
    """Paths of the data files of a part of a cache."""
    manifest = open_cache(directory).manifest
    part = (choice or CacheSelection()).of(manifest.inventory, manifest.spec.backbone.num_layers)
    return list(data_files(manifest, part))


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def compared(ours: list[float], alone: list[float]) -> Document:
    return {
        "seconds": round(median(ours), 2),
        "client alone, seconds": round(median(alone), 2),
        "speed of the client alone that is left": round(median(alone) / median(ours), 2),
        "runs": len(ours),
    }


def bench_push(directory: Path, size: Size) -> Document:
    """To a fresh server every time, in turn."""
    ours, alone = [], []
    for _ in range(size.runs):
        with moto_server() as endpoint:
            use(endpoint)
            files = [(directory / path, f"plain/{path}") for path in files_of(directory)]
            alone.append(timed(lambda files=files: plain_push(files)))
        with moto_server() as endpoint:
            use(endpoint)
            ours.append(timed(lambda: push(directory, parse_address(f"s3://{BUCKET}/team"))))
    return compared(ours, alone)


def bench_pull(directory: Path, address: str, root: Path, size: Size) -> Document:
    """From one server, in turn, into folders that do not exist; ours checks digests and syncs every file to the disk."""
    key = address.removeprefix(f"s3://{BUCKET}/")
    ours, alone, synced = [], [], []
    for number in range(size.runs):
        targets = [(root / f"plain-{number}" / path, f"{key}/{path}") for path in files_of(directory)]
        alone.append(timed(lambda targets=targets: plain_pull(targets)))
        synced.append(alone[-1] + timed(lambda targets=targets: [_sync(path) for path, _ in targets]))
        subprocess.run(["rm", "-r", root / f"plain-{number}"], check=True)
        ours.append(timed(lambda number=number: pull(parse_address(address), [root / f"pulled-{number}"])))
        if number:
            subprocess.run(["rm", "-r", root / f"pulled-{number}"], check=True)
    return {**compared(ours, alone), "client alone, then fsync, seconds": round(median(synced), 2)}


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def bench_last_layer(
    address: str, root: Path, plan: Plan, faults: Faults, port: int, endpoint: str
) -> Document:
    """Bytes that the server sent, counted there, as a share of all token data."""
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    faults.bytes_out = 0
    pull(parse_address(address), [root / "last"], CacheSelection(layers="last"))
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    share = faults.bytes_out / plan.inventory.num_bytes
    return {"megabytes": round(faults.bytes_out / 1e6, 1), "share": round(share, 4), "1/25": 0.04}


def command(runs: int, *arguments: object) -> list[float]:
    """Seconds of whole commands, process and all."""
    program = str(Path(sys.executable).parent / "featcache")
    return [
        timed(lambda: subprocess.run([program, *map(str, arguments)], check=True, capture_output=True))
        for _ in range(runs)
    ]


def bench_second_pull(address: str, root: Path, size: Size) -> Document:
    """The copy of the first of `bench_pull` is complete."""
    seconds = command(size.commands, "pull", address, "--root", root / "pulled-0")
    moved = pull(parse_address(address), [root / "pulled-0"]).num_bytes
    return {"seconds of the whole command": round(median(seconds), 2), "bytes of data": moved}


def bench_probe(directory: Path, address: str, root: Path, size: Size) -> Document:
    """What a probe on the last layer waits for before it can begin, against the client fetching the same files."""
    key = address.removeprefix(f"s3://{BUCKET}/")
    request = ProbeRequest(heads=("linear",), layers="last")
    ours, alone = [], []
    for number in range(size.runs):
        paths = files_of(directory, CacheSelection(layers="last"))
        targets = [(root / f"probe-plain-{number}" / path, f"{key}/{path}") for path in paths]
        alone.append(timed(lambda targets=targets: plain_pull(targets)))
        into = [root / f"borrowed-{number}"]
        ours.append(
            timed(
                lambda into=into: borrow(parse_address(address), into, lambda whole: needed(whole, request))
            )
        )
    return {**compared(ours, alone), "seconds more": round(median(ours) - median(alone), 2)}


def bench_listing(faults: Faults, port: int, endpoint: str, size: Size) -> Document:
    """Whole commands, and the requests of one."""
    import boto3

    client = boto3.client("s3")
    for number in range(size.caches):
        name = CacheName(f"dataset-{number % 20}", f"model-{number % 50}", f"{number:012x}")
        entry = CatalogueEntry(name, f"{number:016x}", 10**9, 25, 50_000, 10_000)
        client.put_object(Bucket=BUCKET, Key=f"many/{entry.path}", Body=b"")
    client.close()
    seconds = command(size.commands, "ls", f"s3://{BUCKET}/many")
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    faults.requests.clear()
    subprocess.run(
        [str(Path(sys.executable).parent / "featcache"), "ls", f"s3://{BUCKET}/many"],
        check=True,
        capture_output=True,
    )
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    return {"seconds": round(median(seconds), 2), "requests": len(faults.requests)}
