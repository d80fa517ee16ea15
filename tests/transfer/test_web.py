"""nginx over a pushed folder: what teammates without an account can read."""

import json
from pathlib import Path

import pytest

from featcache.store.checking.verify import verify
from support.servers import nginx


@pytest.fixture
def web(pushed_once, tmp_path):
    with nginx(pushed_once, tmp_path / "nginx") as address:
        yield address


def test_nginx_over_a_pushed_folder(cli, made_once, web, tmp_path):
    rows = json.loads(cli("ls", web, "--json").out)
    assert [row["key"] for row in rows] == [made_once.plan.spec.key]
    root = ("--root", tmp_path / "other")
    assert cli("pull", f"{web}/{made_once.plan.spec.key[:5]}", "--layers", "last", *root).status == 0
    assert cli("pull", rows[0]["address"], *root).status == 0
    assert verify(tmp_path / "other" / made_once.name).intact
    assert json.loads(cli("pull", rows[0]["address"], *root, "--json").out)["bytes"] == 0


def test_a_web_server_is_for_reading(cli, made, web):
    pushed, removed = cli("push", made.directory, web), cli("rm", f"{web}/{made.name}", "--yes")
    assert pushed.status == removed.status == 2
    assert "read-only" in pushed.err
    assert "read-only" in removed.err


def test_without_an_index_a_full_name_goes(cli, made_once, pushed_once, tmp_path):
    with nginx(pushed_once, tmp_path / "nginx", extra="location /_catalogue/ { autoindex off; }") as web:
        listed = cli("ls", web)
        assert listed.status == 1
        assert "logins belong into ~/.netrc" in listed.err or "shows no index" in listed.err
        assert cli("pull", f"{web}/{made_once.name}", "--root", tmp_path / "other").status == 0
    gone = cli("pull", f"{web}/{made_once.name}", "--root", tmp_path / "other")
    assert gone.status == 1
    assert "Connection refused" in gone.err


def test_a_login_from_netrc(cli, made_once, pushed_once, tmp_path):
    passwords = tmp_path / "passwords"
    passwords.write_text("me:{PLAIN}a-password-of-mine\n")
    passwords.chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents[:1]):
        Path(folder).chmod(0o755)
    extra = f'auth_basic "team"; auth_basic_user_file {passwords};'
    with nginx(pushed_once, tmp_path / "nginx", extra=extra) as web:
        refused = cli("ls", web)
        assert refused.status == 1
        assert "refused (status 401)" in refused.err
        home = tmp_path / "home"
        home.mkdir()
        (home / ".netrc").write_text("machine 127.0.0.1 login me password a-password-of-mine\n")
        (home / ".netrc").chmod(0o600)
        assert cli("ls", web).status == 0
        assert cli("pull", f"{web}/{made_once.name}", "--root", tmp_path / "other").status == 0
    held = b"".join(path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file())
    assert b"a-password" not in held
