"""Invitations and enrolments: files, locks, erasure; who is refused, and why."""

import errno
import json
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from fedray.edges import line_files, pacing
from fedray.edges.contacts import STEP, Contacts, read_contacts
from fedray.edges.protocol import Enrol, hash_secret, read_token, write_token
from fedray.edges.registry import Registry
from fedray.edges.roster import ENROLLED, LEFT, REVOKED, Roster
from fedray.errors import CallRefused, ConfigError, RunFolderError

SECRET = "s" * 43


def request_of(invitation, key="1", token=None, **changes):
    fields = {
        "invitation": invitation,
        "public_key": key * 64,
        "token_hash": token or hash_secret(SECRET),
        "version": "0.1.0",
    }
    return Enrol(**fields | changes)


def refused_status(registry, request):
    with pytest.raises(CallRefused) as refused:
        registry.enrol(request)
    return refused.value.status, str(refused.value)


def texts_of(folder):
    files = (folder / "edges").glob("*.jsonl")
    return "".join(file.read_text() for file in files)


def test_an_invited_edge_enrols_and_every_process_knows_its_token(tmp_path):
    registry, other = Registry(tmp_path), Roster(tmp_path)
    (invitation,) = registry.invite("hospital-a")
    enrolment = registry.enrol(request_of(invitation))
    assert (enrolment.name, enrolment.edge) == ("hospital-a", "0")
    assert enrolment.run == registry.run_id == read_token(token_of(enrolment)).run
    other.refresh()
    edge = other.authenticate(read_token(token_of(enrolment)))
    assert (edge.name, edge.state) == ("hospital-a", ENROLLED)
    assert other.authenticate(read_token(token_of(enrolment, secret="t" * 43))) is None


def token_of(enrolment, secret=SECRET, edge=None):
    return write_token(enrolment.run, edge or enrolment.edge, secret)


def test_files_have_no_secret_and_nobody_else_reads_them(tmp_path):
    registry = Registry(tmp_path)
    invitation = registry.invite()[0]
    registry.enrol(request_of(invitation))
    assert invitation.rpartition(".")[2] not in texts_of(tmp_path)
    assert SECRET not in texts_of(tmp_path)
    folder = tmp_path / "edges"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {f.stat().st_mode & 0o777 for f in folder.iterdir()} == {0o600}


def test_the_same_invitation_and_key_get_the_same_answer_after_a_lost_one(tmp_path):
    registry = Registry(tmp_path)
    (invitation,) = registry.invite()
    first = registry.enrol(request_of(invitation))
    size = (tmp_path / "edges" / "edges.jsonl").stat().st_size
    assert Registry(tmp_path).enrol(request_of(invitation)) == first
    assert registry.check(request_of(invitation)) == first
    assert (tmp_path / "edges" / "edges.jsonl").stat().st_size == size


@pytest.mark.parametrize("change", [{"key": "2"}, {"token": "3" * 64}])
def test_an_invitation_that_is_used_enrols_no_other_key_or_token(tmp_path, change):
    registry = Registry(tmp_path)
    (invitation,) = registry.invite()
    registry.enrol(request_of(invitation))
    status, text = refused_status(registry, request_of(invitation, **change))
    assert status == 409
    assert "another key or token" in text


def test_a_million_enrolments_with_one_invitation_cost_no_write(tmp_path):
    registry = Registry(tmp_path)
    (invitation,) = registry.invite()
    registry.enrol(request_of(invitation))
    sizes = [f.stat().st_size for f in sorted((tmp_path / "edges").iterdir())]
    for i in range(1000):
        with pytest.raises(CallRefused):
            registry.check(request_of(invitation, token=f"{i:064x}"))
    assert len(registry.edges) == 1
    assert [f.stat().st_size for f in sorted((tmp_path / "edges").iterdir())] == sizes


def test_a_guessed_an_expired_and_a_foreign_invitation_enrol_nobody(tmp_path):
    registry = Registry(tmp_path / "a")
    good = registry.invite()[0]
    guessed = good[:-43] + "x" * 43
    (expired,) = registry.invite(days=1e-9)
    while time.time() <= registry._batches[-1].expires:
        time.sleep(0.001)
    foreign = Registry(tmp_path / "b").invite()[0]
    for text, why in (
        (guessed, "not known"),
        (expired, "expired"),
        (foreign, "none of this run"),
        ("fedray-invite", "none of this run"),
    ):
        status, said = refused_status(registry, request_of(text))
        assert (status, why in said) == (403, True)
        assert text[-43:] not in said
    assert registry.edges == []


def test_a_named_invitation_enrols_that_name_alone(tmp_path):
    registry = Registry(tmp_path)
    (named,), (free,) = registry.invite("hospital-a"), registry.invite()
    status, text = refused_status(registry, request_of(named, name="hospital-b"))
    assert status == 403
    assert "it has hospital-a" in text
    status, text = refused_status(registry, request_of(free, name="hospital-a"))
    assert "edges of a population are named here" in text
    assert registry.enrol(request_of(free)).name == "edge-0"
    assert registry.enrol(request_of(named, name="hospital-a")).name == "hospital-a"


def test_a_newer_invitation_of_a_name_replaces_the_one_before(tmp_path):
    registry = Registry(tmp_path)
    (old,), (new,) = registry.invite("a"), registry.invite("a")
    assert "replaced by a newer one" in refused_status(registry, request_of(old))[1]
    registry.enrol(request_of(new))
    with pytest.raises(ConfigError, match=r"a is enrolled already: rotate"):
        registry.invite("a")


def test_one_write_enrols_many_and_answers_each(tmp_path, monkeypatch):
    registry = Registry(tmp_path)
    texts = registry.invite(count=501)
    flushes = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushes.append(fd), real(fd)))
    requests = [request_of(text, key=f"{i % 9}") for i, text in enumerate(texts)]
    answers = registry.enrol_all([*requests, requests[0], request_of("x")])
    assert [answer.party for answer in answers[:501]] == list(range(501))
    assert answers[501] == answers[0]
    assert answers[502].status == 403
    assert len(flushes) <= 2  # the file, and its folder as it is new
    assert len(Roster(tmp_path).edges) == 501


def test_two_requests_with_one_invitation_in_one_write_make_one_edge(tmp_path):
    registry = Registry(tmp_path)
    (text,) = registry.invite()
    one, other = request_of(text), request_of(text, key="2")
    first, second = registry.enrol_all([one, other])
    assert (first.party, second.status) == (0, 409)
    assert len(registry.edges) == 1


def test_a_disk_that_refuses_enrols_nobody_and_the_next_try_does(tmp_path, monkeypatch):
    registry = Registry(tmp_path)
    texts = registry.invite(count=2)
    registry.enrol(request_of(texts[0]))
    before = (tmp_path / "edges" / "edges.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(RunFolderError, match="No space left"):
            registry.enrol(request_of(texts[1]))
    assert (tmp_path / "edges" / "edges.jsonl").read_bytes() == before
    assert len(Roster(tmp_path).edges) == len(registry.edges) == 1
    assert registry.enrol(request_of(texts[1])).party == 1


def refuse(handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("n_bytes", [1, 20, 150])
def test_half_a_line_that_a_crash_left_is_no_edge_and_is_cut_off(tmp_path, n_bytes):
    registry = Registry(tmp_path)
    texts = registry.invite(count=2)
    registry.enrol(request_of(texts[0]))
    file = tmp_path / "edges" / "edges.jsonl"
    file.write_bytes(file.read_bytes() + file.read_bytes()[:n_bytes])
    again = Registry(tmp_path)
    assert len(again.edges) == 1
    assert again.enrol(request_of(texts[1])).party == 1
    assert [json.loads(line)["edge"] for line in file.read_text().splitlines()] == [
        0,
        1,
    ]


def test_a_damaged_line_is_an_error_that_says_what_to_do(tmp_path):
    registry = Registry(tmp_path)
    registry.enrol(request_of(registry.invite()[0]))
    file = tmp_path / "edges" / "edges.jsonl"
    for line in ("{}", "[]", "nonsense", '{"kind":"enrol"}', '{"kind":"_writing"}'):
        file.write_text(f"{line}\n")
        with pytest.raises(RunFolderError, match="damaged line"):
            Roster(tmp_path)


def test_revoking_shuts_out_an_edge_or_an_invitation_at_once(tmp_path):
    registry, door = Registry(tmp_path), Registry(tmp_path)
    used, unused = registry.invite(count=2)
    enrolment = door.enrol(request_of(used))
    assert registry.revoke("edge-0") == "edge edge-0"
    id = next(one.id for one in registry.invitations() if one.state == "unused")
    assert registry.revoke(id) == f"invitation {id}"
    door.refresh()
    assert door.authenticate(read_token(token_of(enrolment))) is None
    assert "revoked" in refused_status(door, request_of(unused))[1]
    assert "who has used it is revoked" in refused_status(door, request_of(used))[1]
    assert door.edges[0].state == REVOKED
    with pytest.raises(ConfigError, match="no edge or unused invitation 'edge-7'"):
        registry.revoke("edge-7")


def test_rotating_keeps_the_place_and_shuts_out_the_old_token(tmp_path):
    registry = Registry(tmp_path)
    old = registry.enrol(request_of(registry.invite("a")[0]))
    registry.enrol(request_of(registry.invite()[0]))
    invitation = registry.rotate("a")
    assert registry.authenticate(read_token(token_of(old))) is None
    new = registry.enrol(request_of(invitation, "2", hash_secret("t" * 43)))
    assert (new.party, new.name) == (0, "a")
    assert registry.authenticate(read_token(token_of(new, "t" * 43))).name == "a"
    assert registry.authenticate(read_token(token_of(old))) is None
    with pytest.raises(ConfigError, match=r"edge-1 is one of a population: revoke"):
        registry.rotate("edge-1")


def test_leaving_erases_key_token_and_invitation_also_of_earlier_ones(tmp_path):
    registry, door = Registry(tmp_path), Registry(tmp_path)
    invitations = [registry.invite("a")[0]]
    registry.enrol(request_of(invitations[0], "1", "a" * 64))
    invitations.append(registry.rotate("a"))
    registry.enrol(request_of(invitations[1], "2", "b" * 64))
    other = registry.enrol(request_of(registry.invite()[0], "1"))
    registry.leave(0)
    text = texts_of(tmp_path)
    hashes = [hash_secret(one.rpartition(".")[2]) for one in invitations]
    for gone in ("a" * 64, "2" * 64, "b" * 64, *hashes):
        assert gone not in text
    assert text.count("1" * 64) == 1  # the other's, who has the same key
    door.refresh()
    for roster in (registry, door, Roster(tmp_path)):
        assert roster.edges[0].state == LEFT
        assert roster.authenticate(read_token(token_of(other))).name == "edge-1"
    assert registry.enrol(request_of(registry.invite("a")[0], "3")).party == 0


def test_a_leave_that_is_killed_midway_frees_no_invitation(tmp_path, monkeypatch):
    registry = Registry(tmp_path)
    (invitation,) = registry.invite("a")
    registry.enrol(request_of(invitation, "1"))
    erase = line_files.erase

    def erase_once(path, pattern):
        erase(path, pattern)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(line_files, "erase", erase_once)
        with pytest.raises(KeyboardInterrupt):
            registry.leave(0)
    again = Registry(tmp_path)
    assert refused_status(again, request_of(invitation, "2"))[0] == 409
    again.leave(0)
    assert refused_status(Registry(tmp_path), request_of(invitation, "2"))[0] == 403


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"name": "../x"}, "names become part of paths"),
        ({"name": ""}, "it is empty"),
        ({"name": "edge-5"}, "given to edges of a population"),
        ({"name": "a", "count": 2}, "leave --name or --count out"),
        ({"count": 0}, "count must be 1 to 1000000, got 0"),
        ({"count": 10**9}, "count must be 1 to 1000000"),
        ({"days": 0}, "days must be above 0"),
        ({"days": float("nan")}, "days must be above 0"),
    ],
)
def test_what_cannot_be_invited_is_refused_and_nothing_is_made(
    tmp_path, arguments, wrong
):
    with pytest.raises(ConfigError, match=wrong):
        Registry(tmp_path).invite(**arguments)
    assert not (tmp_path / "edges").exists()


def test_processes_that_enrol_at_once_give_each_edge_a_place_of_its_own(tmp_path):
    texts = Registry(tmp_path).invite(count=60)
    code = (
        "import sys; from pathlib import Path\n"
        "from fedray.edges.registry import Registry\n"
        "from fedray.edges.protocol import Enrol\n"
        "registry = Registry(Path(sys.argv[1]))\n"
        "for text in sys.argv[2:]:\n"
        "    registry.enrol(Enrol(invitation=text, public_key='1' * 64,\n"
        "                         token_hash='2' * 64, version='0.1.0'))\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), *texts[i::2]])
        for i in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    edges = Roster(tmp_path).edges
    assert [edge.number for edge in edges] == list(range(60))


def test_files_put_back_from_a_copy_are_read_anew(tmp_path):
    registry = Registry(tmp_path)
    texts = registry.invite(count=2)
    registry.enrol(request_of(texts[0]))
    file = tmp_path / "edges" / "edges.jsonl"
    copy = file.read_bytes()
    registry.enrol(request_of(texts[1]))
    file.unlink()
    file.write_bytes(copy)
    registry.refresh()
    assert len(registry.edges) == 1
    assert registry.enrol(request_of(texts[1])).party == 1


def test_contacts_are_read_by_others_at_once_and_cost_no_memory_of_unheard_ones(
    tmp_path,
):
    contacts = Contacts(tmp_path)
    contacts.row(5)["last_seen"] = 100.0
    contacts.row(STEP)["version"] = b"0.1.0"
    rows = read_contacts(tmp_path, STEP + 2)
    assert rows["last_seen"][5] == 100.0
    assert rows["version"][STEP] == b"0.1.0"
    assert contacts.count_seen(99.0) == 1
    assert read_contacts(tmp_path / "none", 3)["last_seen"].tolist() == [0, 0, 0]
    assert (tmp_path / "contacts.bin").stat().st_size < 100 * 2 * STEP


def test_100000_edges_come_back_at_200_a_second_however_they_came(tmp_path):
    rng = random.Random(0)
    times = np.array([pacing.return_after_s(100_000, rng) for _ in range(20_000)])
    assert times.min() >= 250  # N / rate = 500 s, half of it on either side
    assert times.max() <= 750
    per_second = np.bincount(times)[250:750]
    assert abs(times.mean() - 500) < 5
    assert per_second.max() < 3 * per_second.mean()
    assert not pacing.may_wait(100_000)


def test_a_few_edges_wait_for_their_answers():
    assert pacing.may_wait(3)
    assert pacing.return_after_s(3, random.Random(1)) == 1
