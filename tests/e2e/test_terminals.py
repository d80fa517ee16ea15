"""Names from elsewhere never reach a terminal as they are, in any command; programs get them in full."""

import errno
import io
import json
import os
import re
import resource
import sys
from collections.abc import Callable

import pytest

from featcache.store.files import canonical_json, read_sealed, sha256_hex, write_sealed
from featcache.store.redaction import remember_logins
from featcache.terminal.console import ConsoleReporter, echo, print_document, print_json, print_table
from featcache.terminal.streams import Guarded, echo_error, guard_streams

EVIL = "x\x1b]0;PWNED\x07\x1b[2Jy\x9b31mz\x7f\u202e\r\nfeatcache: gone"
NOT_UTF8 = os.fsdecode(b"m\xff\xe9")


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def attach(monkeypatch) -> Callable[[], Terminal]:
    """Make stdout and stderr one terminal, guarded as the command line does it; pytest sets its own before each test."""

    def attached() -> Terminal:
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        guard_streams()
        return screen

    return attached


def harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.replace("\t", " ").split("\n"))


@pytest.fixture
def evil(made):
    """A cache in a folder of an evil name."""
    folder = made.parent.with_name(EVIL)
    made.parent.rename(folder)
    return folder / made.name


@pytest.fixture
def forged(made):
    """A cache whose texts are evil, and whose digests are right."""
    manifest = read_sealed(made / "manifest.json")
    manifest["spec"]["backbone"]["architecture"] = f"timm:{EVIL}"
    manifest["spec"]["dataset"] = {"kind": EVIL, EVIL: EVIL}
    manifest["key"] = sha256_hex(canonical_json(manifest["spec"]))[:12]
    write_sealed(made / "manifest.json", manifest)
    texts = {"command": EVIL, "model_names": [EVIL], EVIL: EVIL, "weights_source": {EVIL: EVIL}}
    write_sealed(made / "provenance.json", {**read_sealed(made / "provenance.json"), **texts})
    return made


COMMANDS = (
    ["ls"],
    ["info", "KEY"],
    ["verify", "KEY"],
    ["gc"],
    ["push", "KEY", "/nowhere\x1b[2J"],
    ["export", "KEY", "--to", "npy", "--out", "OUT"],
    ["rm", "KEY"],
    ["rm", "KEY", "--yes"],
)


@pytest.mark.parametrize("name", [EVIL, NOT_UTF8])
def test_no_command_obeys_a_folder_name(cli, made, tmp_path, name):
    folder = made.parent.with_name(name)
    made.parent.rename(folder)
    key = made.name.rpartition("-")[2]
    for command in COMMANDS:
        command = [{"KEY": key, "OUT": tmp_path / "out"}.get(word, word) for word in command]
        outcome = cli(*command, "--root", tmp_path / "root")
        assert harmless(outcome.out + outcome.err), command
        assert "Traceback" not in outcome.err
        # A line break in a name cannot begin a message of its own.
        assert not any(line.startswith("featcache: gone") for line in outcome.err.splitlines())
    assert not folder.joinpath(made.name).exists()


@pytest.mark.parametrize("name", [EVIL, NOT_UTF8])
def test_json_tells_programs_the_very_name(cli, made, tmp_path, name):
    made.parent.rename(made.parent.with_name(name))
    key = made.name.rpartition("-")[2]
    for command, path in (
        (["ls"], lambda document: document[0]["dataset"]),
        (["info", key], lambda document: document["path"].split("/")[-2]),
        (["rm", key, "--yes"], lambda document: document["path"].split("/")[-2]),
    ):
        outcome = cli(*command, "--json", "--root", tmp_path / "root")
        assert path(json.loads(outcome.out)) == name
        assert harmless(outcome.out)


def test_no_command_obeys_a_text_in_a_document(cli, forged, tmp_path):
    for command in (["info", forged], ["verify", forged], ["info", forged, "--json"], ["ls", "--json"]):
        outcome = cli(*command, "--root", tmp_path / "root")
        assert outcome.out
        assert harmless(outcome.out + outcome.err), command
    out = tmp_path / "results"
    outcome = cli("probe", "--cache", forged, "--head", "ncm", "--protocol", "quick", "--out", out)
    assert harmless(outcome.out + outcome.err)
    outcomes = [cli("results", out, "--view", view) for view in ("summary", "runs", "pivot", "gains")]
    outcomes += [cli("results", out, "--format", form) for form in ("markdown", "latex")]
    outcomes.append(cli("results", out, "--json"))
    for outcome in outcomes:
        assert outcome.status == 0, outcome.err
        assert harmless(outcome.out + outcome.err)


@pytest.mark.parametrize(
    "command", [[EVIL], ["ls", f"--{EVIL}"], ["gc", "--older-than", EVIL], ["info", EVIL], ["import", EVIL]]
)
def test_no_argument_is_obeyed(cli, command):
    outcome = cli(*command)
    assert outcome.status == 2
    assert harmless(outcome.err)


@pytest.mark.parametrize(
    "command",
    [
        ["ls", "--root"],
        ["results"],
        ["plot"],
        ["import"],
        ["extract", "--model", "m", "--dataset", "digits", "--weights"],
        ["extract", "--model", "m", "--dataset", "digits", "--data"],
        ["probe", "--head", "linear", "--out"],
        ["export", "x", "--to", "npy", "--out"],
        ["info"],
        ["verify"],
        ["export", "--to", "npy", "--out", "x"],
        ["ls"],
        ["rm", "--yes"],
        ["datasets", "show", "--no-sheet"],
    ],
)
def test_no_command_shows_a_login_or_makes_a_folder_of_it(cli, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEATCACHE_ROOT", str(tmp_path / "root"))
    for address in ("https://user:a/Sup3rS3cret@127.0.0.1:9/x", "https:/user:Sup3rS3cret@127.0.0.1:9/x"):
        outcome = cli(*command, address)
        assert outcome.status == 2
        assert "Sup3rS3cret" not in outcome.out + outcome.err
        assert not list(tmp_path.glob("*:*"))


def test_the_limit_of_open_files_is_raised(cli, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
        cli("ls", "--root", tmp_path)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_too_few_open_files(cli, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", str(tmp_path))

    monkeypatch.setattr("featcache.api.listing.scan", full)
    outcome = cli("ls", "--root", tmp_path)
    assert outcome.status == 1
    assert "ulimit -n" in outcome.err


@pytest.mark.parametrize("variables", [{}, {"FEATCACHE_ROOT": "~/caches"}])
def test_no_home_folder(cli, made, tmp_path, monkeypatch, variables):
    for name in ("HOME", "XDG_CACHE_HOME", "FEATCACHE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", getpwuid_without_entry)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    outcome = cli("ls")
    assert outcome.status == 2
    assert "home folder" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    monkeypatch.setenv("FEATCACHE_ROOT", str(made.parents[1]))
    assert cli("ls").status == 0


def test_ssh_without_a_user(cli, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", getpwuid_without_entry)
    outcome = cli("ls", "ssh://me@127.0.0.1:9/x")
    assert outcome.status == 2
    assert "no name or no home folder" in outcome.err


def test_paths_begin_with_the_home_folder(cli, made, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(made)
    assert made.name.rpartition("-")[2] in cli("ls", "--root=~/root").out
    assert cli("export", made, "--to", "npy", "--out=~/exported").status == 0
    assert (tmp_path / "exported").is_dir()
    assert cli("import", "~/exported", "--root=~/imported").status == 0
    assert not list(made.glob("~*"))


def test_files_whose_names_are_not_utf8(cli, made, tmp_path):
    protocol = tmp_path / f"{NOT_UTF8}.toml"
    protocol.write_text('base = "quick"\n')
    (made / "provenance.json").unlink()
    folder = made.parent.with_name(NOT_UTF8)
    made.parent.rename(folder)
    out = tmp_path / NOT_UTF8 / "out"
    outcome = cli(
        "probe", "--cache", folder / made.name, "--head", "linear", "--protocol", protocol, "--out", out
    )
    assert outcome.status == 0, outcome.err
    row, *_ = json.loads(cli("results", out, "--view", "runs", "--json").out)
    assert row["dataset"] == row["protocol"] == "m\\udcff\\udce9"


def getpwuid_without_entry(uid: int) -> object:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


def test_a_table_on_a_terminal(attach):
    terminal = attach()
    print_table(["name", EVIL], [[EVIL, "[red]1[/red]"]], numeric=[EVIL])
    shown = terminal.getvalue()
    assert "PWNED" in shown
    assert "[red]1[/red]" in shown
    assert harmless(re.sub(r"\x1b\[[0-9;]*m", "", shown))  # the styles of rich
    terminal = attach()
    for documents in (print_document, echo):
        documents(EVIL)
    assert harmless(terminal.getvalue())


def test_a_progress_bar_and_what_is_printed_beside_it(attach):
    terminal = attach()
    reporter = ConsoleReporter()
    with reporter.progress(f"[bold]{EVIL}", "images") as update:
        update(1, 2)
        reporter.message(EVIL)
        print(EVIL, file=sys.stderr)  # a library's warning
        update(2, 2)
    shown = terminal.getvalue()
    assert "[bold]x\\x1b]0;PWNED" in shown
    for mark in ("\x1b]0", "\x1b[2Jy", "\x9b", "\x7f", "\u202e"):
        assert mark not in shown
    assert isinstance(sys.stderr, Guarded)
    assert sys.stderr.unguarded is terminal


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_stream_that_cannot_encode(monkeypatch, encoding):
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding=encoding, errors="strict"))
    guard_streams()
    document = {NOT_UTF8: "日本 é \U000e0041 \x7f", "n": 1.5}
    print_json(document)
    sys.stdout.flush()
    assert json.loads(data.getvalue().decode(encoding)) == document
    echo(f"日本 {NOT_UTF8}")
    print_document(f"日本 {NOT_UTF8}")
    print_table(["日本"], [[NOT_UTF8]])
    sys.stdout.flush()
    assert data.getvalue().decode(encoding)


def test_closed_streams(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    guard_streams()
    print_table(["name"], [[EVIL]])
    print_json({})
    echo_error(EVIL)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, Guarded)
        stream.unguarded.close()


def test_lines_of_an_error_come_from_its_list_alone(attach):
    terminal = attach()
    echo_error("featcache: 2 caches match\nfeatcache: all gone; name one:\n  a/b\n  c\x1b[2J")
    assert terminal.getvalue().splitlines() == [
        "featcache: 2 caches match\\nfeatcache: all gone; name one:",
        "  a/b",
        "  c\\x1b[2J",
    ]


def test_a_document_goes_into_a_pipe_as_it_is(monkeypatch):
    data = io.StringIO()
    monkeypatch.setattr(sys, "stdout", data)
    guard_streams()
    print_document(EVIL)
    assert data.getvalue() == EVIL


def test_logins_of_the_command_line_are_hidden_in_all_output(attach):
    terminal = attach()
    remember_logins("--weights=https://user:a/Sup3rS3cret@host/w.pt")
    print("weights file https:/user:a/Sup3rS3cret@host/w.pt does not exist", file=sys.stderr)
    echo("password a%2FSup3rS3cret")
    assert "Sup3r" not in terminal.getvalue()
