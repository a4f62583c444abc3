"""What a client sends is refused, or answered as it came; nothing ends in a 500."""

import html
import inspect
import json
import os
import random
import socket
import sys
from pathlib import Path

import orjson
import pytest
from ray.exceptions import RayError
from starlette.responses import Response
from starlette.testclient import TestClient

from fedray import errors
from fedray.config import parse, read_overrides, read_yaml
from fedray.data import resolve_in_root
from fedray.errors import CallRefused, ConfigError, DataError
from fedray.service import auth, federation_actor, json_text, schemas
from fedray.service.auth import AuthMiddleware
from fedray.service.request_body import parse_json
from fedray.service.responses import error_response, history_pieces
from fedray.service.settings import Settings
from fedray.service.uploads import MultipartTarget, PartHeader

FORM = {"num_parties": "2", "optimizer": "optim.SGD"}
LARGE = "1" + "0" * 40
DEEP = "[" * 30 + "]" * 30

# texts of a mapping, and what is said of it
UNWRITABLE = {
    f'{{"momentum": {LARGE}}}': "optimizer_args.momentum must be a number of at most",
    f'{{"momentum": -{LARGE}}}': "optimizer_args.momentum must be a number of at most",
    f'{{"betas": [0.9, {LARGE}]}}': "optimizer_args.betas[1] must be a number of at",
    f'{{"a": {{"b": {LARGE}}}}}': "optimizer_args.a.b must be a number of at most 64",
    '{"momentum": 18446744073709551616}': "at most 64 bits, got 18446744073709551616",
    '{"momentum": NaN}': "optimizer_args.momentum must be a finite number, got nan",
    '{"momentum": 1e400}': "optimizer_args.momentum must be a finite number, got inf",
    '{"momentum": -Infinity}': "must be a finite number, got -inf",
    '{"momentum": "\\ud800"}': "must be text without halves of surrogate pairs",
    '{"a\\udfff": 1}': "key of optimizer_args must be text without halves of",
    f'{{"momentum": {DEEP}}}': "optimizer_args is nested deeper than 20 levels",
    f'{{"momentum": {"[" * 5000}}}': "optimizer_args must be a mapping",
    f'{{"momentum": {"1" * 5000}}}': "optimizer_args must be a mapping",
    '{"momentum": 1, "momentum": 2}': "gives the key 'momentum' twice",
}


@pytest.mark.parametrize("text", UNWRITABLE, ids=lambda text: text[:30])
def test_a_mapping_that_no_answer_could_repeat_is_refused_and_named(text):
    with pytest.raises((ConfigError, CallRefused)) as caught:
        schemas.read_settings(FORM | {"optimizer_args": text}, 256)
    assert UNWRITABLE[text] in str(caught.value)


@pytest.mark.parametrize("text", UNWRITABLE, ids=lambda text: text[:30])
def test_the_same_is_refused_anywhere_in_json(text):
    for place in ('{"optimizer_args": %s}', '{"aggregator_id": [%s]}'):
        with pytest.raises((ConfigError, CallRefused)):
            parse_json((place % text).encode(), 64)


def test_a_large_number_is_refused_for_a_key_that_is_a_number():
    for key in ("learning_rate", "rounds", "seed", "num_parties", "aggregator_id"):
        with pytest.raises(ConfigError, match=f"{key} must be a number of at most 64"):
            parse_json(f'{{"{key}": {LARGE}}}'.encode(), 64)


@pytest.mark.parametrize(
    "value",
    [2**63 - 1, -(2**63), 2**64 - 1, 0.1, 1e308, 5e-324, -0.0, True, None, "",
     "\0\x1b\u2028\ufffe\U0001f600", {"": {"": []}}, {"a b\n": [1, [2.5, "x"]]},
     [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]], list(range(1000))],
    ids=lambda value: ascii(value)[:20],
)  # fmt: skip
def test_all_else_is_answered_as_it_came(value):
    sent = json.dumps({"optimizer_args": value}).encode()
    values = parse_json(sent, 64)
    answered = json_text.write_json(values)
    assert json.loads(answered) == json.loads(sent)
    assert orjson.loads(answered) == values


def test_what_an_earlier_version_has_accepted_is_still_answered():
    value = {"a": 10**40, "b": "x\ud800", "\udfff": [-(2**80), float("nan")]}
    answered = json_text.write_json(
        {"settings": value, "history": orjson.Fragment("[]")}
    )
    plain = json.loads(answered)["settings"]
    assert plain["a"] == 10**40
    assert plain["b"] == "x\\ud800"
    assert plain["\\udfff"] == [-(2**80), None]
    deep = []
    for _ in range(400):
        deep = [deep]
    assert json.loads(json_text.write_json(deep))


def test_many_keys_of_which_the_last_is_given_twice_take_no_time():
    keys = ",".join(f'"{i}":1' for i in range(100_000))
    with pytest.raises(CallRefused, match="gives the key '99999' twice"):
        json_text.read_json(f'{{{keys},"99999":1}}')


CHARSET = 'form-data; name="a"\r\nContent-Type: text/plain; charset='
PARTS = {  # header of a part, its bytes
    f"{CHARSET}utf-7": b"+2AA-",
    f"{CHARSET}unicode_escape": b"\\ud800",
    f"{CHARSET}raw_unicode_escape": b"a",
    f"{CHARSET}idna": b"xn--a",
    f"{CHARSET}undefined": b"a",
    f"{CHARSET}hex": b"61",
    f"{CHARSET.removesuffix('=')}*=us-ascii''%00": b"a",
    f"{CHARSET}punycode": (
        b"a" * 30_000 + b"-" + b"a" * 30_000  # decoding takes a second and more
    ),
    "form-data; name*=idna''%61": b"a",
    "form-data; name*=undefined''a": b"a",
    "form-data; name*=%00''a": b"a",
    "form-data; name=a; filename*=idna''xn--%ff": b"a",
    f"form-data; name=a{';a=b' * 1000}": b"a",
}


@pytest.mark.parametrize("header", PARTS, ids=lambda header: header[:40] + header[-30:])
def test_a_part_of_a_charset_that_is_none_is_malformed(tmp_path, header):
    with pytest.raises(CallRefused, match="The form is malformed") as caught:
        receive(tmp_path, f"Content-Disposition: {header}", PARTS[header])
    assert caught.value.status == 400


def test_names_and_values_of_any_charset_become_text_that_can_be_answered(tmp_path):
    for charset in ("utf-8", "latin-1", "utf-16", "shift_jis", "koi8-r", "utf-7"):
        kind = f"Content-Type: text/plain; charset={charset}"
        text = {"latin-1": "é", "shift_jis": "日本", "koi8-r": "привет"}.get(
            charset, "x"
        )
        header = f'Content-Disposition: form-data; name="a"\r\n{kind}'
        form = receive(tmp_path, header, text.encode(charset))
        assert form.values == {"a": text}
    half = "Content-Disposition: form-data; name=a; filename*=utf-7''%2B2AA-.pt"
    (upload,) = receive(tmp_path, half, b"x").files.values()
    assert upload.client_name == "ud800.pt"
    half = "Content-Disposition: form-data; name*=unicode_escape''%5Cud800"
    assert receive(tmp_path, half, b"x").values == {"\\ud800": "x"}


def receive(folder, headers: str, value: bytes):
    """The form of one part with these headers."""
    assert len(value) <= Settings().max_value
    target = MultipartTarget(folder, Settings())
    target.begin_part()
    for line in headers.split("\r\n"):
        name, _, text = line.partition(": ")
        target.add_header_name(name.encode(), 0, len(name))
        target.add_header_value(text.encode(), 0, len(text.encode()))
        target.end_header()
    target.end_headers()
    target.add_data(value, 0, len(value))
    target.end_part()
    return target.form


def test_any_header_of_a_part_is_read_or_malformed(tmp_path):
    draw = random.Random(0)
    words = ["form-data", ";", "=", "*", "'", '"', "\\", "name", "filename", "0", "1",
             "utf-8", "idna", "utf-7", "%", "%ff", "é", " ", ",", "(", "+2AA-",
             "unicode_escape", "%00", "=?utf-8?b?YQ==?="]  # fmt: skip
    for _ in range(3000):
        text = "form-data; name=a;" + "".join(draw.choices(words, k=20))
        kind = "text/plain; charset" + "".join(draw.choices(words, k=8))
        headers = {
            b"content-disposition": text.encode(),
            b"content-type": kind.encode(),
        }
        try:
            header = PartHeader(headers)
        except ValueError:
            continue
        (header.name + (header.file_name or "")).encode()


# whole numbers are exact in each form of text


@pytest.mark.parametrize(
    "text",
    [2**63 - 1, "9223372036854775807", "9223372036854775807.0", "0x7fffffffffffffff",
     "922337203685477580.7e1", " 9_223_372_036_854_775_807 "],
)  # fmt: skip
def test_a_seed_is_exact_over_rest_yaml_and_the_command_line(tmp_path, text):
    base = {"model_file": "m.pt", "partition": {}, "num_parties": 2}
    if text != "0x7fffffffffffffff":  # YAML's own
        settings = schemas.read_settings(FORM | {"seed": text}, 256)
        assert parse(base | settings)[0].seed == 2**63 - 1
    values, problems = read_overrides([f"seed={text}"])
    assert (values["seed"], problems) == (2**63 - 1, [])
    (tmp_path / "a.yaml").write_text(f"seed: {text}\n")
    assert read_yaml(tmp_path / "a.yaml")["seed"] == 2**63 - 1


# a data path that cannot be read is told by what is wrong with it, and never waited for


@pytest.mark.parametrize(
    ("path", "got"),
    [
        ("a" * 300, "a path that cannot be read on this node: File name too long"),
        ("a/" * 3000, "a path that cannot be read on this node: File name too long"),
        ("pipe", "neither a file nor a folder"),
        ("socket", "neither a file nor a folder"),
        ("to-null", "a path that leads elsewhere"),
        ("loop", "a path that leads elsewhere"),
        ("../outside", "a path that leads elsewhere"),
        ("a\0b", "a path that leads elsewhere"),
        ("file/below", "nothing there on this node"),
        ("missing", "nothing there on this node"),
        ("dangling", "nothing there on this node"),
    ],
    ids=lambda text: text[:12].replace("\0", "0"),
)
def test_data_that_cannot_be_read_is_told(tmp_path, path, got):
    root = tmp_path / "root"
    root.mkdir()
    (root / "file").write_text("x")
    os.mkfifo(root / "pipe")
    for name, target in (("to-null", "/dev/null"), ("loop", "loop"), ("dangling", "x")):
        (root / name).symlink_to(target)
    with socket.socket(socket.AF_UNIX) as here:
        here.bind(str(root / "socket"))
        with pytest.raises(DataError) as caught:
            resolve_in_root(str(root / path), str(root))
    assert caught.value.got == got
    assert str(root) not in str(caught.value)
    assert resolve_in_root(str(root / "file"), str(root)) == str(root / "file")
    assert resolve_in_root(str(root), str(root)) == str(root)


def test_a_key_file_that_breaks_while_running_is_for_the_operator_alone(
    tmp_path, caplog
):
    file = tmp_path / "secret-folder" / "keys"
    file.parent.mkdir()
    client, secret = auth.add_key(file, "ann")
    answered = []

    async def app(scope, receive, send):
        await Response("served")(scope, receive, send)

    door = AuthMiddleware(app, Settings(api_keys=str(file)), error_response)
    http = TestClient(door)
    own = {auth.ID_HEADER: client, auth.SECRET_HEADER: secret}
    assert http.get("/aggregators", headers=own).text == "served"
    good = file.read_text()

    def take_away():
        file.unlink()

    def make_pipe():
        os.mkfifo(file)

    harms = (lambda: file.write_text(good + "bob s3cr3t"), take_away, make_pipe)
    for harm in harms:
        caplog.clear()
        harm()
        for headers in ({}, own):
            for _ in range(3):
                got = http.get("/aggregators", headers=headers)
                assert got.status_code == 503
                answered.append(got.text)
        assert http.get("/health").text == "served"
        (line,) = [
            r.getMessage() for r in caplog.records if "nobody is let in" in r.msg
        ]
        assert str(file) in line
    assert not any("secret-folder" in text or "s3cr3t" in text for text in answered)
    assert json.loads(answered[0])["detail"] == "The service cannot read its keys."
    file.unlink()
    file.write_text(good)
    assert http.get("/aggregators", headers=own).text == "served"


# what is inside stays inside: folders, hosts, other clients' federations

FOLDERS = ("/srv/fed ray/service", "/data/hospital a", "/home/ann smith", sys.prefix)
INSIDE = [*FOLDERS, "site-packages", "10.1.2.3", "Traceback", "/opt/", "/var/"]
TEXTS = [
    f"[Errno 2] No such file or directory: '{sys.prefix}/lib/site-packages/t/x.py'",
    "cannot open:/opt/fedray/a.npz",
    "cannot open file:///opt/fedray/a.npz.",
    "ip: 10.1.2.3, see /var/log/ray/worker-1.out",
    "no such file '/opt/a folder/b c.npz'",
    "run folder /srv/fed ray/service/0a/config.yaml",
    f'File "{sys.prefix}/x.py", line 3, in f',
]


KINDS = [  # every exception of fedray but those of a call, which are its answer
    kind for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.FedrayError)
    and kind is not errors.FedrayError and not issubclass(kind, errors.CallRefused)
]  # fmt: skip


def make_error(kind, text):
    """An exception with this text wherever it takes a text."""
    types = inspect.get_annotations(kind.__init__)
    if kind is errors.ConfigError:
        return kind([text, text])
    values = {"str": text, str: text, "int": 3, int: 3, "float": 1.0, float: 1.0}
    mapping, listing = {"party-0": text}, [text]
    return kind(*(
        values.get(one, mapping if "dict" in str(one) else listing)
        for name, one in types.items() if name != "return"
    ))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_no_error_tells_a_client_of_folders_or_machines(kind, text):
    error = make_error(kind, text)
    scope = {"type": "http", "method": "GET", "path": "/", "client_id": "ann"}
    answers = [bytes(error_response(error, scope).body).decode()]
    root = Path("/srv/fed ray/service")
    words = {"/data/hospital a/b.npz": "data_path b.npz"}
    answers.append(json.dumps(federation_actor.failure_of(error, root / "0a", words)))
    for answer in answers:
        assert [inside for inside in INSIDE if inside in answer] == []


def test_other_exceptions_are_told_by_their_kind_alone():
    scope = {"type": "http", "method": "GET", "path": "/", "client_id": "ann"}
    for error in (OSError(13, "Permission denied", "/srv/x"), RuntimeError(TEXTS[0]),
                  KeyError("/srv/x"), RayError(TEXTS[3]), OSError(TEXTS[0]),
                  errors.UnknownRun("a", ["0a" * 16])):  # fmt: skip
        answer = bytes(error_response(error, scope).body).decode()
        assert "/" not in json.loads(answer)["detail"]
        failed = federation_actor.failure_of(error, Path("/srv/x"), {})["detail"]
        assert "/" not in failed
        assert "0a0a" not in answer + failed


def test_history_and_report_have_the_clients_names_for_files(tmp_path):
    folder = tmp_path / ("0a" * 16)
    folder.mkdir()
    upload = f"{'b' * 32}.npz"
    inside = f"failed: DataError: data {folder}/uploads/{upload}: no\n{TEXTS[0]}"
    lines = [
        {"round": 1, "loss": 0.1, "parties": [{"name": "a", "outcome": "fused"}]},
        {"round": 2, "notes": [f"at {sys.prefix}: x", "half \ud800"],
         "parties": [{"name": "a", "outcome": inside}]},
    ]  # fmt: skip
    first = json.dumps(lines[0])
    text = f"{first}\n{json.dumps(lines[1])}\ncut\x00\n{first[:9]}"
    (folder / "history.jsonl").write_text(text)
    words = {upload: "data März.npz"}
    history = b"".join(history_pieces(folder, words)).decode()
    plain = json.loads(history)
    assert plain[0] == lines[0]
    outcome = plain[1]["parties"][0]["outcome"]
    assert outcome.startswith("failed: DataError: data März.npz: no\n")
    assert plain[1]["notes"] == ["at a folder of the service: x", "half \\ud800"]
    assert len(plain) == 2
    page = f"<style>a/b{{}}</style><p>{html.escape(inside)} 1/2 &lt;b&gt;</p><td>x</td>"
    (folder / "report.html").write_text(page)
    shown = federation_actor.client_report(folder, words).decode()
    assert "<style>a/b{}</style>" in shown
    assert "1/2 &lt;b&gt;</p><td>x</td>" in shown
    for text in (history, shown):
        assert "März.npz" in text
        assert not [i for i in (*INSIDE, str(tmp_path), upload) if i in text]
