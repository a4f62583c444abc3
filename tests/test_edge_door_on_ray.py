"""The edges' door as an actor: it is killed, starts again, and goes on."""

import os
import signal

import pytest
import ray
from support.edge_scene import actor_pid
from support.simulated_edge import Connection, SimulatedEdge
from support.waiting import wait_for

from fedray.edge_door import DoorSettings
from fedray.edges.protocol import (
    DOOR_ACTOR,
    NAMESPACE,
    SPOOL,
    BoardChanges,
    Task,
    Verdict,
)
from fedray.edges.registry import Registry
from fedray.errors import ClusterError
from fedray.service.settings import Settings

pytestmark = pytest.mark.ray
TASK = Task(
    id="a" * 32, run="clinics", round=1, party=0, name="hospital-a", kind="train",
    plan="b" * 64, plan_bytes=2, max_bytes=1 << 22, lease_s=600.0,
)  # fmt: skip


def make_group():
    """An actor whose class travels by value: workers do not have this file."""

    class OneTask:
        """A group with one task; it counts the commits that it takes."""

        def __init__(self):
            self.taken = []

        async def changes(self, since):
            import asyncio

            if since == 1:
                await asyncio.sleep(1)  # a long call in which nothing changes
            return BoardChanges(1, is_whole=True, opened=(TASK,))

        async def commit(self, submission):
            if submission.path is None and not self.taken:
                return None
            if submission.path is not None:
                with open(submission.path, "rb") as file:
                    self.taken.append(file.read())
                os.unlink(submission.path)
            return Verdict(verdict="taken", sha256=submission.sha256)

        async def contents(self):
            return self.taken

    options = {"name": "edges:clinics", "namespace": NAMESPACE}
    return ray.remote(OneTask).options(**options).remote()


@pytest.fixture
def door(cluster, tmp_path):
    settings, where = Settings(root=str(tmp_path / "root")), DoorSettings(port=0)
    with where.listening() as listener:
        service = where.start(settings, listener)
        try:
            yield listener.port
        finally:
            service.stop()


def test_a_door_that_is_killed_goes_on_with_its_runs_and_half_uploads(door, tmp_path):
    registry = Registry(tmp_path / "run")
    run_id = registry.begin()
    actor = make_group()
    handle = ray.get_actor(DOOR_ACTOR, namespace=NAMESPACE)
    folder = str(tmp_path / "run")
    ray.get(handle.open_run.remote(run_id, folder, ["edges:clinics"]))
    edge, update = SimulatedEdge("hospital-a"), os.urandom(3 << 20)
    with Connection(door) as line:
        (invitation,) = registry.invite("hospital-a")
        edge.enrolled(line.send(edge.enrol(invitation)))
        wait_for(lambda: line.send(edge.checkin()).status == 200, "the task")
        assert line.send(edge.upload(TASK.id, 0, update[: 1 << 20])).status == 204
        os.kill(actor_pid("EdgeDoor"), signal.SIGKILL)
        # whoever calls meanwhile waits: the socket is open in this process, too
        offset = wait_for(lambda: at(line.send(edge.offset(TASK.id))), "the tasks")
        assert offset == 1 << 20
        line.send(edge.upload(TASK.id, offset, update[offset:]))
        answers = [line.send(edge.commit(TASK.id, update, {})) for _ in range(2)]
    assert [answer.json()["verdict"] for answer in answers] == ["taken", "taken"]
    assert ray.get(actor.contents.remote()) == [update]
    assert not any((tmp_path / "run" / SPOOL / "uploads").iterdir())
    ray.kill(actor)


def at(answer):
    return int(answer.headers.get("upload-offset", 0))


def test_a_second_door_on_one_cluster_is_refused(door, tmp_path):
    other = DoorSettings(port=0)
    with (
        other.listening() as listener,
        pytest.raises(ClusterError, match="is open on this cluster already"),
    ):
        other.start(Settings(root=str(tmp_path / "other")), listener)
