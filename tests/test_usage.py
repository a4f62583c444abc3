"""The ledger of limits: per client and in total, over processes, after kills."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedray.errors import LimitReached
from fedray.service import usage as usage_module
from fedray.service.disk import Disk
from fedray.service.limit_log import PAUSE_S, LimitLog
from fedray.service.settings import Settings
from fedray.service.store import STOPPED, WAITING, State, make_id, save
from fedray.service.usage import FOLDER, Usage, free_bytes

HOLDER = """
import sys, time
from fedray.service.settings import Settings
from fedray.service.usage import Usage
Usage(Settings(sys.argv[1])).claim("ann", calls=2, bytes_in_flight=1000)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def usage_of(root, **limits) -> Usage:
    limits = {"max_calls_per_client": 3, "max_calls": 5, "min_free_disk": 0} | limits
    return Usage(Settings(str(root), **limits))


@contextlib.contextmanager
def holder(root):
    """A process that holds two calls of ann's."""
    command = [sys.executable, "-c", HOLDER, str(root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_client_has_its_limit_and_all_together_theirs(root):
    usage = usage_of(root)
    own = [usage.claim("ann", calls=1) for _ in range(3)]
    with pytest.raises(LimitReached) as caught:
        usage.claim("ann", calls=1)
    assert (caught.value.limit, caught.value.status) == ("max_calls_per_client", 429)
    others = [usage.claim("bob", calls=1) for _ in range(2)]
    with pytest.raises(LimitReached) as caught:
        usage.claim("bob", calls=1)
    assert caught.value.limit == "max_calls"
    assert "ann" not in str(caught.value)
    own[0].release()
    usage.claim("bob", calls=1)
    for claim in (*own, *others):
        claim.release()
        claim.release()  # a second time frees nothing of others
    assert usage.total("calls") == 1


def test_a_refused_claim_holds_nothing(root):
    usage = usage_of(root)
    with pytest.raises(LimitReached):
        usage.claim("ann", examiner_s=1, calls=4)
    assert usage.total("examiner_s") == usage.amount("calls", "ann") == 0


def test_a_claim_grows_to_what_is_needed_and_shrinks(root):
    usage = usage_of(root, max_bytes_in_flight_per_client=4 << 20)
    with usage.claim("ann", calls=1) as claim:
        claim.raise_to(bytes_in_flight=3 << 20)
        claim.raise_to(bytes_in_flight=1 << 20)  # has it already
        assert usage.amount("bytes_in_flight", "ann") == 3 << 20
        with pytest.raises(LimitReached):
            claim.raise_to(bytes_in_flight=5 << 20)
        claim.reduce_to(bytes_in_flight=1 << 20)
        assert usage.total("bytes_in_flight") == 1 << 20
        with claim.without(calls=1):
            assert usage.total("calls") == 0
        assert usage.total("calls") == 1
    assert usage.total("bytes_in_flight") == usage.total("calls") == 0


def test_eight_uploads_cannot_reserve_the_same_space(root):
    usage = usage_of(root, max_disk_per_client=1 << 50)
    usage.total("disk")  # makes the folder
    share = free_bytes(root) // 4
    claims, refused = [], []
    for _ in range(8):
        try:
            claims.append(usage.claim("ann", disk=share))
        except LimitReached as error:
            refused.append((error.limit, error.status))
    assert 1 <= len(claims) <= 2
    assert refused == [("min_free_disk", 507)] * (8 - len(claims))
    usage.claim("bob", disk=share)  # what ann has declared leaves room for others
    claims[0].remove(unwritten=share)  # written: it is no longer only reserved
    usage.claim("ann", disk=share)


def stored_federation(root, owner: str, state: str, n_bytes: int):
    """Folder of a federation with so many bytes beside its state file."""
    one = State(make_id(), owner, {}, 2, state=state)
    folder = root / one.id
    (folder / "uploads").mkdir(parents=True)
    save(folder, one)
    (folder / "uploads" / "a.npz").write_bytes(bytes(n_bytes))
    return folder


@pytest.mark.parametrize("state", [WAITING, STOPPED])
def test_what_is_stored_counts_with_what_is_under_way(root, state):
    limits = {"max_disk_per_client": 2_000_000, "max_disk": 2_500_000}
    usage, disk = usage_of(root, **limits), Disk(usage_of(root, **limits).settings)
    folder = stored_federation(root, "ann", state, 1_000_000)
    assert 1_000_000 < disk.stored_bytes("ann") < 1_010_000
    assert disk.stored_bytes("bob") == 0
    with usage.claim("ann") as claim:
        asyncio.run(disk.reserve(claim, 900_000))
        with pytest.raises(LimitReached) as caught:
            asyncio.run(disk.reserve(claim, 1_100_000))
        assert (caught.value.limit, caught.value.status) == ("max_disk_per_client", 507)
        assert claim.amounts["disk"] == claim.amounts["unwritten"] == 900_000
        with usage.claim("bob") as other, pytest.raises(LimitReached) as caught:
            asyncio.run(disk.reserve(other, 800_000))
        assert caught.value.limit == "max_disk"
    shutil.rmtree(folder)
    assert disk.stored_bytes() == 0
    with usage.claim("ann") as claim:
        asyncio.run(disk.reserve(claim, 1_900_000))


def test_counts_hold_over_processes_and_the_kernel_frees_those_of_a_killed_one(root):
    usage = usage_of(root)
    with holder(root) as process:
        assert usage.amount("calls", "ann") == 2
        usage.claim("ann", calls=1)
        with pytest.raises(LimitReached):
            usage.claim("ann", calls=1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert usage.amount("calls", "ann") == 1
    assert usage.total("bytes_in_flight") == 0
    names = [path.name for path in (root / FOLDER).glob("*.json")]
    assert names == [usage.ledger.own_name]


def test_a_process_killed_in_the_middle_of_a_change_holds_nobody_up(root):
    usage = usage_of(root)
    code = HOLDER.replace(
        'print("held"',
        "usage = Usage(Settings(sys.argv[1]))\n"
        "with usage.ledger.open():\n print('held', flush=True); time.sleep(600)\n#",
    )
    command = [sys.executable, "-c", code, str(root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with ThreadPoolExecutor() as pool:
        waits = pool.submit(usage.claim, "ann", calls=1)
        time.sleep(0.1)
        assert not waits.done()
        process.kill()
        process.wait()
        waits.result(timeout=60)
    assert usage.total("calls") == 1


def test_threads_count_as_well_as_processes(root):
    usage = usage_of(root, max_calls_per_client=10_000, max_calls=10_000)
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: usage.claim("ann", calls=1), range(200)))
    assert usage.total("calls") == 200
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda claim: claim.release(), claims))
    assert usage.total("calls") == 0


def test_many_clients_fit_into_a_process_file(root):
    usage, other = usage_of(root, max_calls=10_000), usage_of(root, max_calls=10_000)
    for i in range(1000):
        usage.claim(f"client-{i:0>50}", calls=1, bytes_in_flight=1 << 15)
    assert other.total("calls") == 1000


def test_where_the_folder_cannot_be_made_a_process_counts_by_itself(root, caplog):
    root.write_text("a file")
    usage = usage_of(root)
    with usage.claim("ann", calls=3), pytest.raises(LimitReached):
        usage.claim("ann", calls=1)
    assert usage.total("calls") == 0
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_claim_takes_well_under_a_millisecond(root):
    """Here; the bound allows for a slow machine."""
    usage, others = usage_of(root), [usage_of(root) for _ in range(3)]
    for i, other in enumerate(others):
        other.claim(f"other-{i}", calls=1)
    seconds = []
    for _ in range(200):
        begun = time.thread_time()
        usage.claim("ann", calls=1).release()
        seconds.append(time.thread_time() - begun)
    assert sorted(seconds)[100] < 5e-3


def test_a_full_disk_does_not_stop_the_counting(root, monkeypatch):
    usage, other = usage_of(root), usage_of(root)
    usage.claim("ann", calls=1).release()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(usage_module.durable_files, "make_folder", refuse)
    monkeypatch.setattr(usage_module.os, "posix_fallocate", refuse)
    usage.claim("ann", calls=2)
    assert usage.total("calls") == 2
    assert other.total("calls") == 0  # it came too late to share anything


def test_lines_about_limits_are_escaped_and_rare(caplog, monkeypatch):
    log, now = LimitLog(), [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in range(500):
        log.record("ann", "GET /\x1b[31m\nroot: all is well", "max_calls")
    log.record("bob", "GET /", "max_calls")
    log.record(None, "POST /train", "max_open")
    now[0] += PAUSE_S
    log.record("ann", "GET /x", "max_calls")
    assert [record.getMessage() for record in caplog.records] == [
        "limit max_calls reached by ann: GET /\\u001b[31m\\u000aroot: all is well",
        "limit max_calls reached by bob: GET /",
        "limit max_open reached: POST /train",
        "limit max_calls reached by ann: GET /x (499 more since the last such line)",
    ]
