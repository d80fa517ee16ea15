"""Real servers on the loopback, each on a port that the system chooses, ended with the fixture that started them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

MOTO = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def closed_port() -> str:
    """An address of the loopback where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def moto_server() -> Iterator[str]:
    """Moto's S3 server, which somebody else wrote; gives its endpoint."""
    process = subprocess.Popen(
        [sys.executable, "-c", MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: object) -> None:
        """Clients that are killed leave broken connections."""


class QuietHandler(BaseHTTPRequestHandler):
    """Frame of the handlers of the tests' own servers: no log, connections that stay, one way to reply.

    Subclasses define `get` (which answers HEAD as well), `put` and `post` as they need them.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self.get()

    def do_GET(self) -> None:
        self.get()

    def do_PUT(self) -> None:
        self.put()

    def do_POST(self) -> None:
        self.post()

    def head(self, status: int, headers: Mapping[str, str | None]) -> None:
        """Send the status and all headers that have a value."""
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def reply(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str | None] | None = None,
        sent: int | None = None,
    ) -> None:
        """Send a whole reply, or only the first `sent` bytes of its body before the connection ends."""
        self.head(status, {"Content-Length": str(len(body)), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        self.close_connection |= sent is not None and sent < len(body)


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """A server of the test's own; gives its port."""
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def binary(name: str) -> str:
    """Return the path of a system program; skip the test where it is not installed."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: apt-get install nginx-light openssh-server)")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int, process: subprocess.Popen) -> bool:
    for _ in range(200):
        if process.poll() is not None:
            return False
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.02)
    return False


def _start(command_for, attempts: int = 5) -> tuple[subprocess.Popen, int]:
    """Start a server that takes no port 0; another process may be faster with a port that was free."""
    for _ in range(attempts):
        port = free_port()
        process = subprocess.Popen(command_for(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if _wait_for(port, process):
            return process, port
        process.kill()
        process.wait()
    raise RuntimeError("the server does not start")


NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; master_process off;
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{ listen 127.0.0.1:{port}; root {root}; autoindex on; {extra} }}
}}
"""


@contextmanager
def nginx(root: Path, folder: Path, extra: str = "") -> Iterator[str]:
    """nginx over a folder; gives its address."""
    program = binary("nginx")

    def command(port: int) -> list[str]:
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, root=root, port=port, extra=extra))
        return [program, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "error.log")]

    folder.mkdir(exist_ok=True)
    process, port = _start(command)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


SSHD = """
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
MaxSessions 50
MaxStartups 50
Subsystem sftp internal-sftp
"""


@contextmanager
def sshd(folder: Path) -> Iterator[int]:
    """OpenSSH's server for this user; gives its port. `folder`/home has what a client needs in ``~/.ssh``."""
    program = binary("sshd")
    keygen = binary("ssh-keygen")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd puts itself aside; the package makes it at boot
    home = folder / "home" / ".ssh"
    home.mkdir(parents=True, mode=0o700)
    for path in (folder / "host_key", home / "id_ed25519"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    shutil.copy(home / "id_ed25519.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    process, port = _start(lambda port: [program, "-D", "-f", str(folder / "sshd_config"), "-p", str(port)])
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    try:
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
