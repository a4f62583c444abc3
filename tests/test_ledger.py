"""The privacy ledger and its key: what is altered is refused, what is torn counts."""

import hashlib
import hmac
import os
import pickle

import pytest

from fedray.errors import LedgerError
from fedray.privacy import keys
from fedray.privacy.ledger import RELEASE, SETTINGS, TORN, Anchor, Ledger

SECRET = bytes(range(32))


@pytest.fixture
def key():
    return keys.SecretKey(SECRET)


@pytest.fixture
def ledger(tmp_path, key):
    """Of a run with three releases."""
    ledger = Ledger(tmp_path / "privacy.jsonl")
    ledger.begin(key, run="ab" * 16)
    ledger.append(SETTINGS, noise_multiplier=1.1, group=None)
    for round in (1, 2, 3):
        ledger.append(RELEASE, round=round, tag=f"{round:02x}", clip_norm=0.1)
    return ledger


def reread(ledger, key=None):
    return Ledger(ledger.path, key)


def lines_of(ledger) -> list[bytes]:
    return ledger.path.read_bytes().splitlines(keepends=True)


def test_a_ledger_is_read_as_it_was_written(ledger, key):
    again = reread(ledger, key)
    assert again.lines == ledger.lines
    assert again.anchor == ledger.anchor
    assert [line["round"] for line in again.releases] == [1, 2, 3]
    assert again.settings(group=None)["noise_multiplier"] == 1.1
    assert again.settings(group="a") == {}
    assert again.start["run"] == "ab" * 16
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_a_link_and_its_hmac_are_those_that_the_page_describes(tmp_path, key):
    ledger = Ledger(tmp_path / "privacy.jsonl")
    ledger.begin(key)
    text = b'{"key":"%s","kind":"start"}' % key.id.encode()
    first = hashlib.sha256(b"fedray privacy ledger 1").hexdigest().encode()

    framed = b"str:64:%s" % first + b"bytes:%d:%s" % (len(text), text)
    link = hashlib.sha256(framed).hexdigest()
    assert ledger.anchor == Anchor(1, link)
    message = b"str:6:ledgerstr:64:" + link.encode()
    mac = hmac.digest(SECRET, message, "sha256")
    assert mac.hex().encode() in ledger.path.read_bytes()


@pytest.mark.parametrize("n", range(5))
def test_a_changed_line_is_refused(ledger, key, n):
    lines = lines_of(ledger)
    lines[n] = lines[n].replace(b'"kind"', b'"kinds"', 1)
    ledger.path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerError, match=rf"line {n + 1} was changed.*Restore it"):
        reread(ledger)


@pytest.mark.parametrize(
    "order", [(0, 1, 3, 2, 4), (0, 1, 3, 4), (1, 2, 3, 4), (0, 2, 3, 4), (0, 1, 2, 2)]
)
def test_lines_that_are_missing_doubled_or_in_another_order_are_refused(
    ledger, key, order
):
    lines = lines_of(ledger)
    ledger.path.write_bytes(b"".join(lines[n] for n in order))
    with pytest.raises(LedgerError, match="has been altered"):
        reread(ledger, key)
    anchor = ledger.anchor
    with pytest.raises(LedgerError, match=r"the checkpoint|has been altered"):
        reread(ledger).require(anchor, "the checkpoint of round 3")


def test_a_value_that_was_edited_is_refused_under_the_key_and_by_an_anchor(ledger, key):
    text = ledger.path.read_bytes().replace(b"0.1, ", b"0.2, ", 1)
    ledger.path.write_bytes(text)
    with pytest.raises(LedgerError, match="has been altered"):
        reread(ledger, key)
    with pytest.raises(LedgerError, match="first 5 lines is not what round 3"):
        reread(ledger).require(ledger.anchor, "round 3")


def test_fewer_lines_than_an_anchor_knows_are_refused(ledger, key):
    ledger.path.write_bytes(b"".join(lines_of(ledger)[:4]))
    shorter = reread(ledger, key)  # nothing else could tell
    with pytest.raises(LedgerError, match=r"has 4 lines, the .* knows 5\. Restore"):
        shorter.require(ledger.anchor, "the checkpoint of round 3")


def test_more_lines_than_an_anchor_knows_are_fine(ledger, key):
    anchor = ledger.anchor
    ledger.append(RELEASE, round=4)
    reread(ledger, key).require(anchor, "the checkpoint of round 3")
    with pytest.raises(LedgerError):
        reread(ledger).require(Anchor(5, "0" * 64), "the checkpoint of round 3")


def test_another_key_is_refused(ledger, key):
    other = keys.SecretKey(os.urandom(32))
    with pytest.raises(LedgerError, match=f"{key.id}.*{other.id}.*Restore the key"):
        reread(ledger, other)


def test_a_new_key_goes_on_and_guards_the_lines_of_the_one_before(ledger, key):
    new = keys.SecretKey(os.urandom(32))
    again = reread(ledger)
    again.begin(new, run="cd" * 16)
    again.append(RELEASE, round=4)
    assert len(reread(ledger, new).releases) == 4
    text = ledger.path.read_bytes().replace(b"0.1, ", b"0.2, ", 1)
    ledger.path.write_bytes(text)
    with pytest.raises(LedgerError, match="up to line 6 is not what was written"):
        reread(ledger, new)


@pytest.mark.parametrize("n_cut", [1, 2, 30, 1000])
def test_a_torn_last_line_counts_as_a_release(ledger, key, n_cut):
    whole = ledger.path.read_bytes()
    last = lines_of(ledger)[-1]
    ledger.path.write_bytes(whole[: len(whole) - min(n_cut, len(last) - 1)])
    torn = reread(ledger, key)
    assert [line["kind"] for line in torn.releases] == [RELEASE, RELEASE, TORN]
    torn.append(RELEASE, round=3, tag="ff")
    assert [x["kind"] for x in torn.releases] == [RELEASE, RELEASE, TORN, RELEASE]
    assert reread(ledger, key).lines == torn.lines


def test_a_torn_line_that_is_the_beginning_of_this_one_may_be_completed(ledger, key):
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-20])
    torn = reread(ledger, key)
    assert not torn.completes(RELEASE, round=3, tag="04", clip_norm=0.1)
    assert torn.completes(RELEASE, round=3, tag="03", clip_norm=0.1)
    torn.drop_torn()
    torn.append(RELEASE, round=3, tag="03", clip_norm=0.1)
    assert ledger.path.read_bytes() == whole


def test_a_torn_first_line_was_no_release(tmp_path, key):
    path = tmp_path / "privacy.jsonl"
    path.write_bytes(b'{"kind": "sta')
    ledger = Ledger(path, key)
    assert ledger.releases == []
    ledger.begin(key)
    assert len(Ledger(path, key).lines) == 1


def test_two_writers_do_not_overwrite_each_other(ledger, key):
    other = reread(ledger, key)
    other.append(RELEASE, round=4)
    with pytest.raises(LedgerError, match="another process has written"):
        ledger.append(RELEASE, round=4)
    assert len(reread(ledger, key).releases) == 4


@pytest.mark.parametrize(
    "text",
    [b"[]\n", b"null\n", b"1\n", b"\n", b"{}\n", b'{"mac": 1}\n', b"\xff\n", b"[" * 99],
)
def test_what_is_no_ledger_is_refused_or_counts_as_torn(tmp_path, text):
    (tmp_path / "privacy.jsonl").write_bytes(text)
    if text.endswith(b"\n"):
        with pytest.raises(LedgerError, match="line 1 was changed"):
            Ledger(tmp_path / "privacy.jsonl")
    else:
        assert Ledger(tmp_path / "privacy.jsonl").releases == []


def test_a_key_is_kept_for_its_owner_alone_and_never_shown(tmp_path):
    path = tmp_path / "privacy.key"
    assert keys.read_secret(path) is None
    secret = keys.make_secret(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.read_secret(path) == secret
    key = keys.SecretKey(secret)
    assert secret.hex() not in repr(key)
    assert key.id not in secret.hex()
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(key)


def test_a_key_file_that_others_may_read_or_that_is_damaged_is_refused(tmp_path):
    path = tmp_path / "privacy.key"
    keys.make_secret(path)
    path.chmod(0o640)
    with pytest.raises(LedgerError, match=r"others may read this secret\. chmod 600"):
        keys.read_secret(path)
    path.chmod(0o600)
    for data in (b"", b"ab", b"z" * 31, b"z" * 33):
        path.write_bytes(data)
        with pytest.raises(LedgerError, match=r"is damaged: .* a secret has 32"):
            keys.read_secret(path)


def test_keys_come_from_the_operating_system(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "urandom", lambda n: b"\7" * n)
    assert keys.make_secret(tmp_path / "privacy.key") == b"\7" * 32
    assert len(bytes.fromhex(keys.new_run_id())) == 16  # 128 bits


def test_a_derived_key_is_that_of_rfc_5869_and_another_for_each_purpose(key):
    extracted = hmac.digest(bytes(32), SECRET, "sha256")
    info = b"str:5:noisebytes:3:tag"
    expanded = hmac.digest(extracted, info + b"\1", "sha256")
    assert key.noise_key(b"tag") == expanded
    assert key.draw_key(b"tag") != expanded
    assert key.draw_key("ta", "g") != key.draw_key("tag")


BINDING = {
    "settings": {"noise_multiplier": 1.0, "clip_norm": 0.1, "expected": 10},
    "place": ("ab" * 16, None, 3),
    "reporters": ["a", "b"],
    "weights": b"0",
    "total": b"1",
}
CHANGES = [
    {"settings": {"noise_multiplier": 1.0 + 2**-52, "clip_norm": 0.1, "expected": 10}},
    {"settings": {"noise_multiplier": 1.0, "clip_norm": 0.2, "expected": 10}},
    {"settings": {"noise_multiplier": 1.0, "clip_norm": 0.1, "expected": 11}},
    {"place": ("cd" * 16, None, 3)},
    {"place": ("ab" * 16, "g", 3)},
    {"place": ("ab" * 16, None, 4)},
    {"reporters": ["a"]},
    {"reporters": ["a", "b", "c"]},
    {"reporters": ["ab"]},
    {"weights": b"2"},
    {"total": b"2"},
]


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_differs_is_another_tag_and_other_noise(key, change):
    tag = key.release_tag(keys.release_binding(**BINDING))
    assert tag == key.release_tag(keys.release_binding(**BINDING))
    other = key.release_tag(keys.release_binding(**{**BINDING, **change}))
    assert other != tag
    assert key.noise_key(other) != key.noise_key(tag)
    assert (
        keys.SecretKey(os.urandom(32)).release_tag(keys.release_binding(**BINDING))
        != tag
    )


def test_several_lines_are_appended_by_one_flush(ledger, key, monkeypatch):
    flushes = []
    monkeypatch.setattr(os, "fsync", flushes.append)
    ledger.extend([{"kind": RELEASE, "round": n} for n in range(4, 104)])
    assert len(flushes) == 1
    assert len(reread(ledger, key).lines) == len(ledger.lines) == 105


def test_lines_of_another_process_are_read_and_checked(ledger, key):
    other = reread(ledger, key)
    ledger.append(RELEASE, round=4)
    ledger.append(RELEASE, round=5)
    assert [line["round"] for line in other.refresh()] == [4, 5]
    assert other.refresh() == []
    other.append(RELEASE, round=6)
    assert [line["round"] for line in ledger.refresh()] == [6]
    with ledger.path.open("ab") as file:
        file.write(lines_of(ledger)[-1].replace(b"6", b"7", 1))
    with pytest.raises(LedgerError, match="has been altered: line 9"):
        other.refresh()


def test_a_torn_line_of_another_process_is_read_once_it_is_whole(ledger, key):
    other, before = reread(ledger, key), ledger.path.read_bytes()
    ledger.append(RELEASE, round=4)
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-9])
    assert other.refresh() == []
    assert other.torn == whole[len(before) : -9]
    ledger.path.write_bytes(whole)
    assert [line["round"] for line in other.refresh()] == [4]
    ledger.path.write_bytes(before)
    with pytest.raises(LedgerError, match="lines are missing that were there before"):
        other.refresh()
