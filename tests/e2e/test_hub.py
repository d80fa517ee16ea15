"""Pretrained weights through the libraries' own hub loading, against a server of the test's own on the loopback."""

import hashlib
import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from .conftest import MODEL, featcache

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's protocol as a download of one file takes."""

    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        data = self.files.get(self.path)
        self.send_response(200 if data else 404)
        if data is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
        else:
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if data and body:
            self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        """Be quiet."""


@pytest.fixture
def hub(weights) -> Iterator[str]:
    path = f"/{MODEL.replace('timm:', 'timm/')}/resolve/main/model.safetensors"
    handler = type("Handler", (Hub,), {"files": {path: weights.read_bytes()}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_weights_from_the_hub_give_the_cache_of_the_same_weights_from_a_file(hub, weights, tmp_path):
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        **{
            "HF_ENDPOINT": hub,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        },
    }
    results = []
    arguments = (
        "extract",
        "--model",
        MODEL,
        "--dataset",
        "digits",
        "--limit",
        10,
        "--precision",
        "fp32",
        "--json",
    )
    for more in ((), ("--weights", weights)):
        process = featcache(*arguments, *more, env=environment)
        out, err = process.communicate()
        assert process.returncode == 0, err
        results.append(json.loads(out))
    assert not results[0]["cached"]
    assert results[1] == {
        **results[0],
        "cached": True,
        "samples": 0,
        "seconds": 0.0,
        "images_per_second": None,
    }
    provenance = json.loads((Path(results[0]["path"]) / "provenance.json").read_text())
    assert provenance["weights_source"] == "hub:test_vit.r160_in1k"
