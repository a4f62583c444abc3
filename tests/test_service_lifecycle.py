"""Joins, leaves, stops and the sweep of the service's federations, as folders. No Ray.

Processes are killed for real where a lock is the matter, else stopped at each call that
changes the disk (support/faulty_disk.py), with what a SIGKILL leaves there.
"""

import asyncio
import contextlib
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGKILL
from types import SimpleNamespace
from unittest import mock

import pytest
from ray.exceptions import RayActorError
from support.faulty_disk import FaultyDisk, PowerCut
from support.waiting import wait_for

from fedray.errors import CallRefused, ConfigError
from fedray.placement import aggregator_name, party_actor
from fedray.service import (
    federation_actor,
    file_locks,
    lifecycle,
    stop_record,
    store,
    sweep,
)
from fedray.service.federation_actor import actor_name
from fedray.service.settings import Settings
from fedray.service.store import (
    FAILED,
    QUEUED,
    STOPPED,
    TRAINED,
    TRAINING,
    WAITING,
    Joining,
)
from fedray.service.sweep import Sweep
from fedray.service.uploads import MultipartTarget

MODEL = b"a model" * 300
DATA = b"data" * 500
PARTY = {"data_handler": "mnist_pytorch"}
SETTINGS = Settings()


def actors_of(run: str, party: str = "party-0") -> list[str]:
    return [aggregator_name(run), party_actor(run, party)]


class Cluster:
    """Stands for Ray: which actors there are, by federation."""

    def __init__(self):
        self.actors: set[str] = set()
        self.others: list[str] = []  # names of further actors

    def names(self, all_namespaces: bool) -> list[dict[str, str]]:
        names = [*map(actor_name, self.actors), *self.others]
        return [{"name": name, "namespace": "fedray"} for name in names]

    def find(self, folder: Path):
        """An actor that ends just then, if there is one."""

        async def end(*_):
            raise RayActorError

        actor = SimpleNamespace(join=SimpleNamespace(remote=end))
        return actor if folder.name in self.actors else None

    def start(self, folder: Path) -> None:
        self.actors.add(folder.name)

    def kill(self, folder: Path) -> None:
        self.actors.discard(folder.name)

    def get_actor(self, name: str, namespace: str) -> str:
        return name

    def kill_named(self, name: str) -> None:
        self.actors = {id for id in self.actors if actor_name(id) != name}
        self.others = [other for other in self.others if other != name]


@pytest.fixture
def cluster(monkeypatch):
    one = Cluster()
    monkeypatch.setattr(federation_actor, "find", one.find)
    monkeypatch.setattr(federation_actor, "get_or_start", one.start)
    monkeypatch.setattr(federation_actor, "kill", one.kill)
    monkeypatch.setattr(sweep, "ray", SimpleNamespace(
        util=SimpleNamespace(list_named_actors=one.names),
        get_actor=one.get_actor, kill=one.kill_named,
    ))  # fmt: skip
    monkeypatch.setattr(lifecycle, "ACTOR_S", 0.05)
    monkeypatch.setattr(sweep, "SETTLE_S", 0.0)
    monkeypatch.setattr(sweep, "UPLOAD_S", -1.0)
    return one


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def create(root: Path, num_parties: int = 2, **settings) -> Path:
    form = upload(root, MODEL)
    try:
        state = store.State(store.make_id(), None, settings, num_parties)
        return store.create(root, state, form.files["data"].path)
    finally:
        form.discard()


def upload(root: Path, content: bytes = DATA):
    """A form with a file that has arrived, as the parser of a call makes it."""
    target = MultipartTarget(store.upload_folder(root), Settings())
    target.begin_part()
    head = b'form-data; name="data"; filename="a.npz"'
    target.headers[b"content-disposition"] = head
    target.end_headers()
    target.add_data(content, 0, len(content))
    target.flush(0)
    target.end_part()
    return target.form


def join(folder: Path, max_parties: int = 16) -> tuple[str, int]:
    form = upload(folder.parent)
    try:
        path = form.files["data"].path
        party = PARTY | {"data": str(path)}
        return asyncio.run(lifecycle.join(folder, party, form, max_parties))
    finally:
        form.discard()


def ready(root: Path, num_parties: int = 2, **changes) -> Path:
    folder = create(root, num_parties)
    for _ in range(num_parties):
        join(folder)
    change(folder, **changes)
    return folder


def change(folder: Path, **changes) -> None:
    with store.changing(folder) as state:
        for name, value in changes.items():
            setattr(state, name, value)


def swept(root: Path, **settings) -> None:
    asyncio.run(Sweep(Settings(root=str(root), **settings)).sweep())


def stop(folder: Path) -> None:
    asyncio.run(lifecycle.stop(folder))


def train(folder: Path) -> None:
    lifecycle.queue_training(folder, store.make_id(), SETTINGS)
    lifecycle.start_training(folder, SETTINGS)


def uploads(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in store.uploads_in(folder)]


def state_of(folder: Path) -> str:
    return store.read(folder).state


def in_child(function) -> int:
    """Run it in a forked process, which kills itself if it returns; its signal."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            lifecycle.CHANGES = ThreadPoolExecutor(1)  # threads do not fork
            function()
        os.kill(os.getpid(), SIGKILL)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


# one writer


def test_joins_at_once_are_one_after_the_other_and_all_are_kept(root, cluster):
    folder = create(root, num_parties=16)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: join(folder), range(16)))
    assert sorted(n for _, n in answers) == list(range(16))
    assert {name for name, _ in answers} == {f"party-{i}" for i in range(16)}
    assert len(store.read(folder).parties) == 16
    with pytest.raises(CallRefused, match="16 parties have joined already"):
        join(folder)
    assert uploads(folder).count(DATA) == 16


def test_joins_at_once_do_not_exceed_the_most_parties(root, cluster):
    folder = ready(root, state=QUEUED)

    def status(_):
        with contextlib.suppress(CallRefused):
            return join(folder, max_parties=5)

    with ThreadPoolExecutor(8) as threads:
        assert sum(1 for name in threads.map(status, range(8)) if name) == 3
    assert store.read(folder).num_parties == 5
    assert uploads(folder).count(DATA) == 5
    with pytest.raises(CallRefused, match="5 parties have joined, the most"):
        join(folder, max_parties=5)


def test_joins_of_several_processes_are_all_kept(root, cluster):
    folder = create(root, num_parties=12)
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                lifecycle.CHANGES = ThreadPoolExecutor(1)  # threads do not fork
                for _ in range(3):
                    join(folder)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    assert store.read(folder).n_remaining == 0
    assert len({party["data"] for party in store.read(folder).parties}) == 12


def test_the_lock_of_a_killed_process_is_free(root):
    folder = create(root)

    def hold_forever():
        with store.lock(folder):
            os.kill(os.getpid(), SIGKILL)

    assert in_child(hold_forever) == SIGKILL
    with store.lock(folder, timeout_s=0):
        pass


def test_who_waits_for_the_lock_holds_up_nobody_else(root, cluster):
    folder, other = create(root), create(root)

    async def play():
        with store.lock(folder):
            waiting = asyncio.ensure_future(asyncio.to_thread(join, folder))
            for _ in range(5):
                assert (await asyncio.to_thread(join, other))[0]
                await lifecycle.leave(other, "party-0")
            assert not waiting.done()
        return await waiting

    assert asyncio.run(play()) == ("party-0", 1)


def test_a_lock_that_is_not_to_be_had_is_503(root):
    folder = create(root)
    again = store.lock(folder, timeout_s=0.05)
    with store.lock(folder), pytest.raises(CallRefused) as refused, again:
        pass
    assert refused.value.status == 503


def test_a_repeated_call_of_the_same_token_does_nothing(root):
    folder = create(root)
    party = PARTY | {"data": "/data/a.npz"}
    first = lifecycle.join_folder(folder, Joining(party, "token", {}, 9))
    assert lifecycle.join_folder(folder, Joining(party, "token", {}, 9)) == first
    assert len(store.read(folder).parties) == 1
    lifecycle.join_folder(folder, Joining(party, "another", {}, 9))
    lifecycle.queue_training(folder, "train", SETTINGS)
    lifecycle.queue_training(folder, "train", SETTINGS)
    with pytest.raises(CallRefused, match="queued already"):
        lifecycle.queue_training(folder, "another", SETTINGS)


# hang-ups


def test_a_hang_up_cancels_nothing_that_changes_a_federation():
    done = []

    async def work():
        for step in range(5):
            await asyncio.sleep(0.01)
            done.append(step)
        return "done"

    async def call():
        try:
            await lifecycle.run_to_end(work())
        finally:
            done.append("cleaned up")

    async def play():
        task = asyncio.ensure_future(call())
        await asyncio.sleep(0)
        for _ in range(3):  # impatient
            task.cancel()
            await asyncio.sleep(0.005)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await lifecycle.run_to_end(work()) == "done"

    asyncio.run(play())
    assert done == [0, 1, 2, 3, 4, "cleaned up", 0, 1, 2, 3, 4]


def test_an_error_of_what_a_call_changes_is_its_answer():
    async def work():
        raise CallRefused(409, "no", "hint")

    with pytest.raises(CallRefused, match="no"):
        asyncio.run(lifecycle.run_to_end(work()))


# stop


@pytest.mark.parametrize("state", [WAITING, QUEUED, TRAINED, FAILED])
def test_a_stop_without_a_process_deletes_the_uploads_and_starts_none(
    root, cluster, state
):
    folder = ready(root, state=state)
    stop(folder)
    stop(folder)
    assert (state_of(folder), uploads(folder)) == (STOPPED, [MODEL])
    assert cluster.actors == set()
    for call in (lambda: join(folder), lambda: train(folder)):
        with pytest.raises(CallRefused, match="stopped"):
            call()
    swept(root)
    assert list((root / store.INCOMING).iterdir()) == []


def test_stops_and_trainings_at_once_leave_it_stopped_without_a_process(root, cluster):
    for _ in range(10):
        folder = ready(root)
        calls = [stop, stop, train, join] * 2
        barrier = threading.Barrier(len(calls))

        def call(function, folder=folder, barrier=barrier):
            barrier.wait()
            with contextlib.suppress(CallRefused):
                function(folder)

        with mock.patch.object(lifecycle, "LOOK_S", 0.01), mock.patch.object(
            lifecycle, "STOP_S", 0.05
        ), ThreadPoolExecutor(len(calls)) as threads:  # fmt: skip
            list(threads.map(call, calls))
        assert (state_of(folder), uploads(folder)) == (STOPPED, [MODEL])
        if cluster.actors:  # started just after the stop: it ends itself, or is ended
            swept(root)
        assert cluster.actors == set()


def test_a_training_that_does_not_end_is_killed_with_its_actor(root, cluster):
    folder = ready(root, state=TRAINING, started=time.time())
    cluster.start(folder)
    with mock.patch.object(lifecycle, "STOP_S", 0.2):
        stop(folder)
    assert cluster.actors == set()
    state = store.read(folder)
    assert state.state == STOPPED
    assert state.elapsed_s < 60


def test_no_party_joins_and_no_training_begins_while_it_is_being_stopped(root, cluster):
    folder = ready(root)
    with stop_record.request_stop(folder):
        for call in (
            lambda: join(folder),
            lambda: asyncio.run(lifecycle.leave(folder, "party-0")),
            lambda: train(folder),
        ):
            with pytest.raises(CallRefused, match="being stopped"):
                call()
    swept(root)
    assert state_of(folder) == STOPPED


def test_a_stop_on_a_disk_without_a_byte_free_makes_room(small_disk, cluster):
    root = small_disk / "root"
    folder, empty = ready(root), create(root)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(small_disk).free == 0
    with pytest.raises(OSError, match="No space left"):
        change(empty, call="x")
    stop(empty)  # has nothing to delete
    assert state_of(empty) == STOPPED
    stop(folder)
    assert (state_of(folder), uploads(folder)) == (STOPPED, [MODEL])
    assert shutil.disk_usage(small_disk).free > 0
    assert [state.state for state in store.list_states(root)] == [STOPPED] * 2


def test_a_full_disk_refuses_an_answer_but_not_the_stop(root, cluster):
    folder = ready(root, state=FAILED)

    async def no_room(folder):
        return False

    with (
        mock.patch.object(lifecycle, "_write_missing_answer", no_room),
        pytest.raises(CallRefused) as refused,
    ):
        stop(folder)
    assert refused.value.status == 507
    assert "stopped and its uploads are deleted" in refused.value.detail
    assert (state_of(folder), uploads(folder)) == (STOPPED, [MODEL])


# killed at every stage


def killed_at_each_call(play, folder: Path):
    """Yield each time that `play` was killed at another call that changes the disk.

    In a process of its own: what that held is free.
    """
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept, dirs_exist_ok=True)
    with FaultyDisk(folder).mounted() as disk:
        play()
    for point in disk.points:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        assert in_child(lambda point=point: cut_off(play, folder, point)) == SIGKILL
        yield point


def cut_off(play, folder: Path, point) -> None:
    with FaultyDisk(folder, point).mounted():
        play()


def test_a_stop_killed_at_any_stage_is_carried_out_or_has_done_nothing(root, cluster):
    folder = ready(root)
    outcomes = []
    for point in killed_at_each_call(lambda: stop(folder), root):
        swept(root)
        outcomes.append(state_of(folder))
        if state_of(folder) == STOPPED:
            assert uploads(folder) == [MODEL], point
        else:
            assert sorted(uploads(folder)) == sorted([MODEL, DATA, DATA]), point
        assert not list(folder.glob(".*.part*")), point
        stop(folder)
        assert (state_of(folder), uploads(folder)) == (STOPPED, [MODEL])
    assert outcomes[0] == WAITING
    assert set(outcomes[5:]) == {STOPPED}


def test_a_join_killed_at_any_stage_is_there_whole_or_leaves_nothing(root, cluster):
    folder = create(root)
    outcomes = set()
    for point in killed_at_each_call(lambda: join(folder), root):
        swept(root)
        n_parties = len(store.read(folder).parties)
        outcomes.add(n_parties)
        assert sorted(uploads(folder)) == sorted([MODEL] + [DATA] * n_parties), point
        assert list((root / store.INCOMING).iterdir()) == [], point
    assert outcomes == {0, 1}


def test_a_leave_killed_at_any_stage_has_happened_or_not(root, cluster):
    folder = ready(root)

    def leave():
        asyncio.run(lifecycle.leave(folder, "party-0"))

    for point in killed_at_each_call(leave, root):
        swept(root)
        state = store.read(folder)
        assert uploads(folder).count(DATA) == len(state.parties), point
        for party in state.parties:
            assert Path(party["data"]).read_bytes() == DATA, point


def test_a_federation_killed_while_it_is_made_is_there_whole_or_not(root, cluster):
    store.upload_folder(root)
    for point in killed_at_each_call(lambda: create(root), root):
        swept(root)
        assert list((root / store.INCOMING).iterdir()) == [], point
        for folder in store.federation_folders(root):
            assert (state_of(folder), uploads(folder)) == (WAITING, [MODEL]), point


def test_a_training_that_was_killed_before_its_actor_started_goes_on(root, cluster):
    folder = ready(root)
    for point in killed_at_each_call(lambda: train(folder), root):
        cluster.actors.clear()
        swept(root)
        started = {folder.name} if state_of(folder) == TRAINING else set()
        assert cluster.actors == started, point
    with (
        mock.patch.object(federation_actor, "get_or_start", side_effect=PowerCut),
        pytest.raises(PowerCut),
    ):
        train(ready(root))
    swept(root)
    assert len(cluster.actors) == 2


# the sweep


def test_the_sweep_deletes_what_a_killed_process_uploaded_and_nobody_elses(
    root, cluster, caplog
):
    folder = create(root)
    assert in_child(lambda: upload(root)) == SIGKILL
    form = upload(root)  # of a call under way
    claimed = store.claim_uploads(folder, PARTY | {"data": "x"}, form.paths)
    living = upload(root)
    assert len(list((root / store.INCOMING).iterdir())) == 2
    swept(root)
    assert [*(root / store.INCOMING).iterdir()] == living.paths
    assert sorted(uploads(folder)) == sorted([MODEL, DATA])
    assert "an upload that was cut off" in caplog.text
    living.discard()
    form.discard()  # its call has ended, and the party has not joined
    os.utime(folder / store.UPLOADS)
    swept(root)
    assert uploads(folder) == [MODEL]
    assert "an upload of no party" in caplog.text
    assert claimed


def test_the_sweep_ends_actors_of_federations_that_do_not_train(root, cluster, caplog):
    training = ready(root, state=TRAINING, started=1.0)
    cluster.start(training)
    ended = [ready(root, state=TRAINED), ready(root)]
    for folder in ended:
        cluster.start(folder)
    stop(ended[1])
    cluster.start(ended[1])
    own = actors_of(training.name, "party-0")
    foreign = ["party:tiny:a", "other", *actors_of("tiny", "a"), *actors_of("e" * 32)]
    orphans = actors_of(ended[0].name, "party-1")
    cluster.others = [*own, *foreign, *orphans]
    swept(root)
    assert cluster.actors == {training.name}
    assert cluster.others == own + foreign
    assert caplog.text.count("ended, since its federation does not train") == 4


def test_the_sweep_ends_the_actor_of_a_folder_that_was_deleted(root, cluster):
    folder = ready(root, state=TRAINING, started=1.0)
    cluster.start(folder)
    one = Sweep(Settings(root=str(root)))
    asyncio.run(one.sweep())
    shutil.rmtree(folder)
    asyncio.run(one.sweep())
    assert cluster.actors == set()


def test_one_process_sweeps_at_a_time(root, cluster):
    folder = create(root)
    litter = upload(root)
    path = litter.files["data"].path
    litter.holds.clear()
    with file_locks.holding(root / sweep.LOCK) as is_first:
        assert is_first
        swept(root)
    assert path.exists()
    assert folder.exists()


def test_damaged_folders_break_nothing_else(root, cluster, caplog):
    good = ready(root)
    texts = {"1": "{", "2": "[]", "3": '{"id": 5}', "4": "\0", "5": None}
    texts["8"] = "[" * 100_000
    for name, text in (texts | {"6": '{"id": "x", "owner": 1, "parties": 3}'}).items():
        folder = root / (name * 32)
        (folder / store.UPLOADS).mkdir(parents=True)
        (folder / store.UPLOADS / "file").write_bytes(DATA)
        if text is not None:
            (folder / store.FILE).write_text(text)
    (root / ("7" * 32)).write_text("a file")
    (root / "notes").mkdir()
    one = Sweep(Settings(root=str(root)))
    for _ in range(2):
        asyncio.run(one.sweep())
        assert [state.id for state in store.list_states(root)] == [good.name]
    assert caplog.text.count("is damaged") == 6  # once each
    assert uploads(root / ("5" * 32)) == []  # nobody's
    assert uploads(root / ("1" * 32)) == [DATA]  # its operator may mend it
    assert join_fails(root / ("9" * 32)) == 404
    stop(good)


def join_fails(folder: Path) -> int:
    with pytest.raises(CallRefused) as refused:
        join(folder)
    return refused.value.status


def test_stopped_federations_are_deleted_after_the_days_that_are_set(root, cluster):
    old, new, idle = ready(root), ready(root), ready(root)
    stop(old)
    stop(new)
    two_days_ago = time.time() - 2 * sweep.DAY_S
    os.utime(old / store.STOP_RECORD, (two_days_ago, two_days_ago))
    swept(root)
    assert old.exists()  # never, unless set
    swept(root, keep_stopped_days=1.0)
    assert not old.exists()
    assert (state_of(new), state_of(idle)) == (STOPPED, WAITING)
    assert list((root / store.INCOMING).iterdir()) == []


def test_a_deletion_killed_at_any_stage_is_completed(root, cluster):
    folder = ready(root)
    stop(folder)
    for point in killed_at_each_call(lambda: sweep.remove(folder), root):
        swept(root)
        assert list((root / store.INCOMING).iterdir()) == [], point
        if folder.exists():
            assert state_of(folder) == STOPPED, point


def test_federations_that_nobody_called_for_days_are_stopped(root, cluster, caplog):
    states = (WAITING, TRAINED, FAILED, QUEUED, TRAINING, STOPPED)
    folders = {state: ready(root, state=state) for state in states}
    called = ready(root)
    cluster.start(folders[TRAINING])
    long_ago = time.time() - 3 * sweep.DAY_S
    for folder in (*folders.values(), called):
        for name in (store.FILE, store.LOCK):
            os.utime(folder / name, (long_ago, long_ago))
    store.note_call(called)
    swept(root)
    assert {state: state_of(folder) for state, folder in folders.items()} == {
        state: state for state in states
    }
    swept(root, end_idle_days=2.0)
    ended = {WAITING: STOPPED, TRAINED: STOPPED, FAILED: STOPPED}
    assert {state: state_of(folder) for state, folder in folders.items()} == {
        state: ended.get(state, state) for state in states
    }
    assert state_of(called) == WAITING
    assert caplog.text.count("stopped, since nobody called for days") == 3


# before a training's turn has come


def test_parties_join_and_leave_while_a_training_waits_for_its_turn(root, cluster):
    folder = ready(root, state=QUEUED)
    change(folder, settings={"rounds": "1", "loss": "mse_loss"})
    assert join(folder) == ("party-2", 0)
    assert store.read(folder).num_parties == 3
    for name in ("party-0", "party-2"):
        assert asyncio.run(lifecycle.leave(folder, name)) == (0, 0)
    with pytest.raises(ConfigError, match="let another one join first"):
        asyncio.run(lifecycle.leave(folder, "party-1"))
    state = store.read(folder)
    assert (state.num_parties, len(state.parties), state.state) == (1, 1, QUEUED)
    assert uploads(folder).count(DATA) == 1


def test_a_training_that_was_stopped_in_the_queue_does_not_start(root, cluster):
    folder = ready(root, state=QUEUED)
    stop(folder)
    lifecycle.start_training(folder, SETTINGS)
    assert (state_of(folder), cluster.actors) == (STOPPED, set())


def test_who_waits_for_a_training_hears_of_its_end_by_the_folder(root, cluster):
    folder = ready(root, state=TRAINING)

    async def play(end):
        waiting = asyncio.ensure_future(lifecycle.wait_until_ended(folder))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await asyncio.to_thread(end)
        await asyncio.wait_for(waiting, 60)

    for metrics in range(5):  # times of two writes may be the same
        change(folder, metrics={"round": metrics})
        asyncio.run(play(lambda: change(folder, state=TRAINED)))
        change(folder, state=TRAINING)
    asyncio.run(play(lambda: shutil.rmtree(folder)))
    wait_for(lambda: not folder.exists())
