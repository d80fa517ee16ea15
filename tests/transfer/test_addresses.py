"""Addresses are read strictly, and no credential in one is ever shown."""

import os
from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.store.address import parse_address, require_clear_login, split_roots
from featcache.store.catalogue import roots, select
from featcache.store.errors import FeatcacheError, RequestError
from featcache.store.redaction import redacted, redacted_lines, remember_logins

SECRET = "Tr0ub4dor"
SCHEMES = ("https", "http", "s3", "gs", "az", "ssh", "sftp", "hf", "HTTPS")
ODD = st.text(alphabet="ab:/?#@'\" \\%\n\x1b[]é", max_size=6)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "hf"])
@given(before=ODD, after=ODD, user=st.sampled_from(["", "user:", "123:", "a/b:"]))
def test_a_secret_is_part_of_the_login_or_the_address_is_refused(scheme, before, after, user):
    text = f"{scheme}://{user}{before}{SECRET}{after}@host/x"
    try:
        address = parse_address(text)
    except FeatcacheError as error:
        shown = str(error)
    else:
        # The user of SSH is no secret; what stands before the host of any other address is never shown.
        assert SECRET in address.login
        assert (address.host_or_bucket, address.parts) == ("host", ("x",))
        shown = "" if address.scheme == "ssh" else f"{address} {address!r}"
    assert SECRET not in shown


@pytest.mark.parametrize(
    "form",
    ["u:{}@datasets/o/n", "{}@datasets/o/n", "{}/x@datasets/o/n", "u:{}@o/n", "o/n/{}@x", "u:a/{}@o/n"],
)
def test_the_hub_takes_no_login(form):
    with pytest.raises(RequestError, match="no logins") as caught:
        parse_address(f"hf://{form.format(SECRET)}")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("form", ["h:{}/x", "h/x?token={}", "h/x#{}", "u:{}@/x", "h:99999/{}", "h:{}"])
def test_a_refused_address_is_not_quoted(scheme, form):
    with pytest.raises(FeatcacheError) as caught:
        parse_address(f"{scheme}://{form.format(SECRET)}")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", ["https:/u:{}@h/x", "s3:/k:{}@b/x", "https:u:{}@h/x", "HTTPS:/u:{}@h/x"])
def test_a_slash_too_few_makes_no_folder(text, tmp_path):
    address = text.format(SECRET)
    for use in (parse_address, lambda a: select([tmp_path], a), lambda a: roots([tmp_path, a])):
        with pytest.raises(RequestError) as caught:
            use(address)
        assert SECRET not in str(caught.value)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1))
def test_an_encoded_password_is_read_back(password):
    address = parse_address(f"https://user:{quote(password, safe='')}@host:8080/a/b")
    assert unquote(address.login.partition(":")[2]) == password
    assert str(address) == "https://host:8080/a/b"


@pytest.mark.parametrize(
    "text",
    [
        "https://host/a%20b/100%25/me%40home/what%3F/%23",
        "https://[::1]:8080/x",
        "s3://bucket/me%40home/100%",
        "ssh://me@host:22/data/me%40home",
        "hf://datasets/org/name@v1/x",
        "hf://buckets/org/name",
        "/data/me@home/what?#",
        "az://$root/x",
        os.fsdecode(b"/data/caf\xe9 x/100%"),
    ],
)
def test_an_address_is_written_as_it_is_read(text):
    address = parse_address(text)
    assert parse_address(str(address)) == address
    str(address).encode()


@given(before=ODD, after=ODD, user=st.sampled_from(["", "user:", "123:"]))
def test_a_login_of_a_file_to_fetch_is_clear(before, after, user):
    text = f"https://{user}{before}{SECRET}{after}@host:80/x.tar?y=1"
    try:
        require_clear_login(text)
    except RequestError as error:
        shown = str(error)
    else:
        split = urlsplit(text)
        assert (split.hostname, split.port, split.path, split.query) == ("host", 80, "/x.tar", "y=1")
        shown = redacted(f"cannot fetch {text}")
    assert SECRET not in shown


def test_a_signed_file_may_be_fetched():
    require_clear_login("https://host/a%40b/0.tar?X-Amz-Signature=ab%2Fc&X-Amz-Credential=d#x")
    for text in ("https:///x", "host/x", "https://host:port/x"):
        with pytest.raises(RequestError):
            require_clear_login(text)


def test_the_host_of_a_file_address_is_not_dropped():
    assert parse_address("file:///a/b") == parse_address("/a/b") == parse_address("file://localhost/a/b")
    with pytest.raises(RequestError, match="three slashes"):
        parse_address("file://host/a/b")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/a:https://u:pw@h/x:/b", ["/a", "https://u:pw@h/x", "/b"]),
        ("/a:https://u:p:w@h:80/x", ["/a", "https://u:p:w@h:80/x"]),
        ("/a:https://tok@h:/b", ["/a", "https://tok@h", "/b"]),
        ("/me@home:s3://bucket:/b::~/c", ["/me@home", "s3://bucket", "/b", "~/c"]),
        ("/a:http://[::1]:80/x:/b", ["/a", "http://[::1]:80/x", "/b"]),
        ("rel:s3://b/x:rel2", ["rel", "s3://b/x", "rel2"]),
    ],
)
def test_roots_are_divided_around_logins(text, parts):
    assert split_roots(text) == parts


@given(before=ODD, after=ODD)
def test_no_root_is_a_piece_of_a_login(before, after):
    text = f"/a:https://user:{before}{SECRET}{after}@host/x"
    shown = []
    try:
        for part in split_roots(text):
            shown.append(str(parse_address(part)) if "://" in part else part)
    except FeatcacheError as error:
        shown.append(str(error))
    assert not any(SECRET in one for one in shown), shown


def test_an_existing_folder_with_an_at_sign_may_follow(tmp_path):
    folder = tmp_path / "me@home"
    with pytest.raises(RequestError, match="cannot be divided safely"):
        split_roots(f"/a:s3://bucket/x:{folder}")
    folder.mkdir()
    assert split_roots(f"/a:s3://bucket/x:{folder}")[-1] == str(folder)


@pytest.mark.parametrize(
    "text",
    [
        "Client: GET https://user:{}@host/x failed",
        "https://user:a/{}@host/x",
        "url (https://h/x?X-Amz-Signature={}&y=1)",
        "for url: https://h/x?sv=1&sig={}",
        "Authorization: Bearer {}",
        "AuthorizationHeader X-Amz-Security-Token={}",
        "https://h/x#{}",
    ],
)
def test_what_a_client_quotes_is_redacted(text):
    assert SECRET not in redacted(text.format(SECRET))
    lines = redacted_lines("Traceback:\n  " + text.format(SECRET) + "\nError")
    assert SECRET not in lines
    assert len(lines.splitlines()) == 3


def test_all_forms_of_a_known_secret_are_redacted(monkeypatch):
    raw, escaped = "p/w d@#+é!", quote("p/w d@#+é!", safe="")
    remember_logins(f"https://user:{raw}@host/x")
    for form in (raw, escaped, quote(raw)):
        assert redacted(f"cannot open {form} there") == "cannot open *** there"
    monkeypatch.setenv("SOME_API_KEY", "an-api/key")
    assert redacted("key an-api/key, or an-api%2Fkey") == "key ***, or ***"


def test_names_of_the_hub_and_users_of_ssh_are_no_secrets():
    for text in ("hf://datasets/org/dataset@branch/x", "ssh://alice@host/x", "file:///home/alice@corp/x"):
        remember_logins(text)
    assert redacted("org/dataset of alice@corp") == "org/dataset of alice@corp"
    assert redacted("hf://org/name@v1") == "hf://org/name@v1"


def test_a_root_that_is_an_address_is_refused_before_it_is_shown(monkeypatch):
    monkeypatch.setitem(os.environ, "FEATCACHE_ROOT", f"https://user:a/{SECRET}@127.0.0.1:9/x")
    with pytest.raises(RequestError) as caught:
        roots()
    assert SECRET not in str(caught.value)
