"""The edge protocol: what each message takes, what it refuses, and how texts route."""

import pickle

import pytest

from fedray.edges import protocol
from fedray.edges.protocol import (
    BoardChanges,
    CheckIn,
    Commit,
    Enrol,
    Task,
    Verdict,
    hash_secret,
    make_secret,
    read_invitation,
    read_token,
    write_invitation,
    write_token,
)
from fedray.errors import EdgeMessageError

RUN, INSTANCE, SHA = "a" * 32, "b" * 32, "c" * 64
CHECK_IN = CheckIn(instance=INSTANCE, version="0.1.0")
TASK = Task(
    id="d" * 32,
    run="clinics",
    round=3,
    party=1,
    name="hospital-a",
    kind="train",
    base=SHA,
    plan=SHA,
    plan_bytes=9,
    lease_s=600.0,
)


@pytest.mark.parametrize("message", [CHECK_IN, TASK, Verdict(verdict="taken")])
def test_a_message_is_the_same_after_json_and_between_processes(message):
    assert type(message).parse(message.to_json()) == message
    assert pickle.loads(pickle.dumps(message)) == message


def test_a_board_travels_between_processes():
    changes = BoardChanges(7, opened=(TASK,), closed=("d" * 32,))
    assert pickle.loads(pickle.dumps(changes)) == changes


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "instance"),
        (b"[", "the body"),
        (b"[]", "the body"),
        (b"\xff\xfe", "the body"),
        (b"[" * 60_000, "the body"),
        (b'{"instance": 5}', "instance"),
        (CHECK_IN.to_json()[:-1] + b',"admin":true}', "admin"),
        (CHECK_IN.to_json().replace(b'"share":0.0', b'"share":NaN'), "share"),
        (CHECK_IN.to_json().replace(b'"share":0.0', b'"share":1e999'), "share"),
        (CHECK_IN.to_json().replace(b'"wait_s":0.0', b'"wait_s":1e9'), "wait_s"),
        (CHECK_IN.to_json().replace(b'"wait_s":0.0', b'"wait_s":"1"'), "wait_s"),
        (CHECK_IN.to_json().replace(b'"have":[]', b'"have":["../x"]'), "have"),
        (CHECK_IN.to_json().replace(b'"task":null', b'"task":"../../x"'), "task"),
    ],
)
def test_what_is_not_declared_is_refused_by_field(body, field):
    with pytest.raises(EdgeMessageError, match=f"CheckIn: .*{field}"):
        CheckIn.parse(body)


def test_a_refusal_repeats_no_value():
    secret = make_secret()
    body = b'{"invitation": 5, "name": "", "public_key": "%b"}' % secret.encode()
    with pytest.raises(EdgeMessageError) as refused:
        Enrol.parse(body)
    assert secret not in str(refused.value)


def test_invitation_and_token_say_which_run_they_are_of():
    secret = make_secret()
    assert read_invitation(f" {write_invitation(RUN, secret)}\n") == (RUN, secret)
    assert read_token(write_token(RUN, "17", secret)) == (RUN, 17, secret)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", f"{RUN}.1.", f"{RUN}.01.{SHA[:43]}", f"{RUN}.-1.{SHA[:43]}"),
        *(f"{RUN}.1.{SHA}", f"../{RUN}.1.{SHA[:43]}", f"{RUN}.9999999999.{SHA[:43]}"),
        *(f"{RUN}.1.{SHA[:43]}\n", f"{RUN}.١.{SHA[:43]}"),
    ],
)
def test_what_is_no_token_is_not_read_as_one(text):
    assert read_token(text) is None
    assert read_invitation(f"fedray-invite.{text}") is None


def test_only_a_hash_of_a_secret_is_kept():
    # from `printf %s abc | sha256sum`
    hashed = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_secret("abc") == hashed


def test_a_signature_is_of_task_file_and_report_as_they_stand():
    commit = Commit(size=4, sha256=SHA, report='{"loss": 1.0}', signature="e" * 128)
    expected = f'fedray edge commit 1\n{"d" * 32}\n4\n{SHA}\n{{"loss": 1.0}}'
    assert commit.signed_bytes("d" * 32) == expected.encode()


def test_every_call_is_in_the_table_of_the_module():
    text = protocol.__doc__ or ""
    names = ("Enrol", "CheckIn", "Commit", "Fail", "Enrolment", "Task", "Verdict")
    assert all(f"`{name}`" in text for name in names)
