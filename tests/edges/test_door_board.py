"""Tasks that the door hands out, between what its groups say."""

from fedray.edge_door.board import Board
from fedray.edges.protocol import BoardChanges, Task

TASK = Task(
    id="d" * 32, run="clinics", round=1, party=0, name="a", kind="train",
    plan="c" * 64, plan_bytes=2, lease_s=600.0,
)  # fmt: skip


def test_a_task_that_has_its_commit_is_not_handed_out_again():
    board = Board()
    board.apply("group", BoardChanges(1, opened=(TASK,)))
    assert board.next_task("a") == TASK
    board.finish(TASK.id)
    assert board.next_task("a") is None
    assert board.apply("group", BoardChanges(2, closed=(TASK.id,))) == []
    board.finish(TASK.id)  # of one that is gone it does nothing
