"""HTTP as hostile clients speak it: headers, paths, queries, logs. No Ray."""

import asyncio
import json
import logging

import pytest

from fedray.service import asgi, auth
from fedray.service.http_server import HarmlessLines
from fedray.service.settings import Settings

ID = "a" * 32
HOSTS = [  # that no address has
    *(b"[", b"]", b"[::1", b"[::1]:x", b"a b", b"localhost/x", b"localhost#", b"a?x"),
    *(b"@localhost", b"localhost@evil", b"[v1.x]", b"a:-1", b"a\\b", b"<b>", b"a:1:2"),
    b"localhost:999999",
]
PATHS = [
    *(
        "*",
        "//",
        "/\x1b[31m",
        "/\n",
        "/\x00",
        "//evil.com/..",
        "http://evil/x",
        "a:443",
    ),
    *("", "@x", "/aggregators/\x00", "/aggregators/" + "a" * 10_000, "/health/"),
    *("/static-offline-docs/../x", "/static-offline-docs/\x00", "/aggregators/\udcff"),
]
METHODS = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "FOO", "CONNECT", "__init__"]
QUERIES = [
    *(b"wait=\xff", b"wait=%ff", b"%00=%00", b"best=1" * 2000, b"&" * 10_000, b";;"),
    *(b"best=%ed%a0%80", b"=", b"best", b"best=true&best=false", b"a=b" * 5000),
]
VALUES = [
    *(b"", b"\xff\xfe", b"a" * 20_000, b"bytes=0-", b"bytes=-1-2", b"x=1", b'"', b"["),
    *(b"bytes=5-1", b"bytes=-0", b"bytes=" + b"9" * 30 + b"-", b"\xed\xa0\x80"),
    *(b"bytes=" + b",".join(b"%d-%d" % (i, i) for i in range(2000)), b"0, 1"),
]
HEADERS = [
    *(b"origin", b"range", b"if-range", b"if-none-match", b"if-modified-since"),
    *(b"accept", b"cookie", b"content-type", b"content-length", b"forwarded", b"te"),
    *(b"transfer-encoding", b"x-forwarded-for", b"x-forwarded-proto", b"expect"),
    *(b"x-ibm-client-id", b"x-ibm-client-secret", b"upgrade", b"user-agent"),
]
FORMS = [  # Content-Type of a form
    *("", "; boundary=", "; boundary=" + "x" * 5000, "; boundary=\xff", '; boundary="'),
    *("; boundary*=UTF-8''%ff", "; boundary*0=a; boundary*9999999999=b", ";" * 5000),
    *("; boundary*x=a", "; boundary*0*=a''b", "; boundary=--", "; boundary=a b"),
]
PARTS = [
    *("Content-Disposition", ": x", "X: " + "x" * 20_000, "Content-Type: " + "/" * 999),
    *(f"Content-Disposition: form-data; {rest}" for rest in (
        *("name*=UTF-8''%ff", "name*0*=UTF-8''a; name*1=b", "name*=undefined''a"),
        *("name*=idna''%ff", "name*x=1", "name*99999999999=1; name*0=2", ";" * 5000),
        *("name=a; filename*=punycode''%ff%fe", "name=a; filename*=undefined''%ff"),
        *('a="b;c";' * 2000 + "name=x", 'name="' + "\\" * 5000 + '"', "name=\udced"),
        *('name="a"; filename="' + "/" * 5000 + '"', 'name="a"; filename=".."'),
    )),
]  # fmt: skip


@pytest.fixture
def app(tmp_path):
    return asgi.build(Settings(str(tmp_path / "root")))


def call(app, method="GET", path="/aggregators", query=b"", *, body=b"", **headers):
    """Make a call as a server hands it on; its status and body."""
    sent, received = [], []
    headers = {"host": b"localhost"} | headers
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2),
        "scheme": "http", "method": method, "root_path": "", "path": path,
        "raw_path": path.encode(errors="replace"), "query_string": query,
        "headers": [(k.replace("_", "-").encode(), v) for k, v in headers.items()],
    }  # fmt: skip

    async def receive():
        if received:
            await asyncio.sleep(3600)
        received.append(True)
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:])


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_that_no_address_has_is_400_everywhere(app, host):
    for path in ("/aggregators", "/health", "/health/", "/nothing"):
        status, body = call(app, path=path, host=host)
        assert status == 400
        assert "Host is no address" in json.loads(body)["detail"]


def test_hosts_of_this_machine_are_served_and_others_are_403(app):
    for host in (b"localhost", b"LOCALHOST:80", b"127.0.0.1:8000", b"[::1]:8000",
                 b"[::1]", b"a.localhost", b"localhost:"):  # fmt: skip
        assert call(app, host=host)[0] == 200, host
    for host in (b"", b"evil.com", b"127.0.0.1.evil.com", b"0.0.0.0", b"[::2]",
                 b"xlocalhost", b"\xe9.com"):  # fmt: skip
        assert call(app, host=host)[0] == 403, host


def test_load_balancers_may_ask_for_health_by_head(app):
    assert call(app, method="HEAD", path="/health")[0] == 200


def test_pages_of_other_sites_are_403(app):
    own = {"host": b"localhost:80"}
    assert call(app, origin=b"http://localhost:80", **own)[0] == 200
    for origin in (b"null", b"[", b"http://[", b"://", b"\xff", b"http://localhost",
                   b"http://evil.com", b"http://localhost:80@evil"):  # fmt: skip
        assert call(app, origin=origin, **own)[0] == 403, origin


def test_no_path_method_or_query_is_5xx(app):
    for path in PATHS:
        for method in METHODS:
            assert call(app, method, path)[0] < 500, (method, path)
    for query in QUERIES:
        for path in ("/aggregators", f"/aggregators/{ID}/weights", "/docs"):
            assert call(app, "GET", path, query)[0] < 500, (path, query)
        assert call(app, "POST", "/train", query)[0] < 500, query


def test_no_header_is_5xx(app):
    for name in HEADERS:
        for value in VALUES:
            one = {name.decode(): value}
            for method, path in (("GET", "/page.js"), ("POST", "/train")):
                assert call(app, method, path, **one)[0] < 500, (name, value)


def test_no_form_is_5xx(app):
    for rest in FORMS:
        kind = f"multipart/form-data{rest}".encode("latin-1")
        for body in (b"", b"--x\r\n", b"{}", b"--\r\n\r\n----"):
            form = {"body": body, "content-type": kind}
            assert 400 <= call(app, "POST", "/train", **form)[0] < 500, rest
    for part in PARTS:
        body = f"--x\r\n{part}\r\n\r\n1\r\n--x--\r\n".encode(errors="surrogateescape")
        form = {"body": body, "content-type": b"multipart/form-data; boundary=x"}
        assert 400 <= call(app, "POST", "/train", **form)[0] < 500, part


def test_text_of_a_client_in_a_log_cannot_steer_a_terminal(app, caplog, monkeypatch):
    async def fail(*_):
        raise RuntimeError("\x1b[2J")

    monkeypatch.setattr(app, "app", fail)
    assert call(app, path="/\x1b[31m\nERROR all is lost \u202e")[0] == 500
    lines = HarmlessLines("%(message)s").format(caplog.records[0]).splitlines()
    assert lines[0] == r"call to /\u001b[31m\u000aERROR all is lost \u202e failed"
    assert lines[-1] == r"RuntimeError: \u001b[2J"


def test_a_key_file_that_cannot_be_read_lets_nobody_in_and_tells_nobody_why(
    tmp_path, caplog
):
    file = tmp_path / "keys"
    _, secret = auth.add_key(file, "ann")
    app = asgi.build(Settings(str(tmp_path / "root"), str(file)))
    key = {"x-ibm-client-id": b"ann", "x-ibm-client-secret": secret.encode()}
    assert call(app, **key)[0] == 200
    text = file.read_text()
    file.write_text(text + "half a li")
    for _ in range(3):
        status, body = call(app, **key)
        assert (status, b"keys" in body, bytes(tmp_path) in body) == (503, True, False)
    assert [r.levelno for r in caplog.records] == [logging.ERROR]  # not one a call
    assert "line 3 is not a client and sha256" in caplog.text
    assert call(app, path="/health")[0] == 200
    file.unlink()
    assert call(app, **key)[0] == 503
    file.write_text(text)
    assert call(app, **key)[0] == 200
