"""Remotes of every kind that can be had on the loopback, and a cache to share."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from featcache.store.address import parse_address
from featcache.store.journal import Plan
from featcache.store.transfer.pull import pull
from featcache.store.transfer.push import push
from featcache.store.transfer.selection import CacheSelection
from support.caches import Content, all_files, cache_folder, make_content, make_plan, write_cache
from support.hostile_server import HostileHandler, Site
from support.hub_server import Hub, HubHandler
from support.no_backoff import no_backoff
from support.running import Outcome, command_line
from support.servers import http_server, moto_server, sshd


@dataclass
class Made:
    """A cache with known content."""

    directory: Path
    plan: Plan
    content: Content

    @property
    def name(self) -> str:
        return f"made/tiny-{self.plan.spec.key}"


@pytest.fixture(autouse=True)
def roots_of_its_own(monkeypatch, tmp_path):
    """No test sees the user's caches, credentials or proxies."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "HF_", "GOOGLE_", "AZURE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEATCACHE_ROOT", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def soon_again(monkeypatch):
    """Failures are tried again at once, as often as ever."""
    no_backoff(monkeypatch.setattr)


@pytest.fixture
def cli(monkeypatch, capsys) -> Callable[..., Outcome]:
    return command_line(monkeypatch, capsys)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Made:
    """Written once: syncing it to the disk takes longer than most tests."""
    plan = make_plan()
    content = make_content(plan)
    directory = cache_folder(tmp_path_factory.mktemp("made") / "root", plan)
    write_cache(directory, plan, content)
    return Made(directory, plan, content)


@pytest.fixture
def made(made_once, tmp_path) -> Made:
    """A cache of two splits, three layers and the final one, four blocks in all."""
    directory = tmp_path / "root" / made_once.name
    shutil.copytree(made_once.directory, directory)
    return replace(made_once, directory=directory)


@pytest.fixture(scope="session")
def pushed_once(made_once, tmp_path_factory) -> Path:
    """A folder that the cache was pushed to, and beside it a root that holds its last layer."""
    share = tmp_path_factory.mktemp("pushed") / "share"
    share.mkdir()
    push(made_once.directory, parse_address(str(share)))
    pull(parse_address(f"{share}/{made_once.name}"), [share.parent / "old"], CacheSelection(layers="last"))
    return share


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint, monkeypatch, request) -> str:
    """An empty bucket."""
    import boto3

    environment = {
        "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
        "AWS_SECRET_ACCESS_KEY": "a-secret-that-is-never-shown",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_endpoint,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{abs(hash(request.node.nodeid))}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    client.close()
    return f"s3://{bucket}/team"


@pytest.fixture
def folder(tmp_path) -> str:
    """A shared folder."""
    (tmp_path / "share").mkdir()
    return f"file://{tmp_path}/share"


@pytest.fixture(scope="session")
def ssh_server(tmp_path_factory) -> Iterator[tuple[int, Path]]:
    folder = tmp_path_factory.mktemp("sshd")
    with sshd(folder) as port:
        yield port, folder


@pytest.fixture
def ssh(ssh_server, tmp_path) -> str:
    """A folder behind sshd; the client's keys are in the home of the test."""
    port, folder = ssh_server
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / ".ssh").symlink_to(folder / "home" / ".ssh")
    (tmp_path / "far").mkdir()
    return f"ssh://127.0.0.1:{port}{tmp_path}/far"


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def hub_address(hub, monkeypatch, tmp_path) -> Iterator[str]:
    """A repository that does not exist yet, on a server that speaks the Hub's protocol."""
    from huggingface_hub import constants

    with http_server(type("Handler", (HubHandler,), {"hub": hub})) as port:
        endpoint = f"http://127.0.0.1:{port}"
        # The client reads its environment when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield "hf://team/features"


KINDS = ("s3", "folder", "ssh", "hub_address")


@pytest.fixture(params=KINDS)
def remote(request) -> str:
    """A remote of every kind in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def site(made_once, pushed_once):
    """A pushed cache behind a server that does what it is told."""
    site = Site(all_files(pushed_once))
    with http_server(type("Handler", (HostileHandler,), {"site": site})) as port:
        site.address = f"http://127.0.0.1:{port}/{made_once.name}"
        yield site
