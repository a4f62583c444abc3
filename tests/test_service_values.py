"""What a client sends is refused, or answered as it came; nothing ends in a 500."""

import json

import orjson
import pytest

from fedray.config import parse
from fedray.errors import CallRefused, ConfigError
from fedray.service import json_text, schemas
from fedray.service.request_body import parse_json
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
    import random

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
    from fedray.config import read_overrides, read_yaml

    base = {"model_file": "m.pt", "partition": {}, "num_parties": 2}
    if text != "0x7fffffffffffffff":  # YAML's own
        settings = schemas.read_settings(FORM | {"seed": text}, 256)
        assert parse(base | settings)[0].seed == 2**63 - 1
    values, problems = read_overrides([f"seed={text}"])
    assert (values["seed"], problems) == (2**63 - 1, [])
    (tmp_path / "a.yaml").write_text(f"seed: {text}\n")
    assert read_yaml(tmp_path / "a.yaml")["seed"] == 2**63 - 1
