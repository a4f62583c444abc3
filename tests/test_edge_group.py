"""Groups of edges as plain objects: tasks, commits, spool, folding; without Ray."""

import asyncio
import dataclasses
import hashlib
import json
import math
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from support.local_edge import LocalEdge

from fedray import fusion, models, policy
from fedray.config import parse
from fedray.config.edges import POPULATION
from fedray.edges import answers, tensor_file
from fedray.edges.contacts import Contacts
from fedray.edges.group import ABSENT, MAX_REPORT, EdgeGroupPlan
from fedray.edges.named import NamedEdges
from fedray.edges.plan import (
    EdgeParty,
    EdgePlanError,
    describe_plan,
    read_plan,
    write_plan,
)
from fedray.edges.population import EdgePopulation
from fedray.ensemble import workflow_of
from fedray.errors import ConfigError, ModelFileError, PartyError
from fedray.fusion import RoundContext
from fedray.messages import ActorLocation, Report
from fedray.party import GroupPlan, PartyGroup
from fedray.privacy.sample_budget import Spending
from fedray.weights import digest, encoding, schema

RUN_ID = "tiny-" + "0" * 32
PLACE = 1  # of b, the edge


def locate():
    return ActorLocation("node", "cpu", "process")


def plan_of(settings, place=PLACE):
    config, mistakes = parse(settings)
    assert mistakes == []
    initial = workflow_of(config).read()
    parties = range(place, place + 1)
    name, handler = config.party_name(place), "mnist_pytorch"
    blueprint = initial.blueprints[None]
    plan = GroupPlan(name, parties, initial.config, blueprint, handler, "tiny")
    return plan, initial.weights[None]


class Scene:
    """One named edge and its group, beside the same party in the cluster."""

    def __init__(self, settings, folder, group=NamedEdges):
        self.settings, self.folder = settings, folder
        data = settings["parties"][PLACE]["data"]
        plan, self.weights = plan_of(settings)
        self.local = PartyGroup(plan, locate)
        parties = [settings["parties"][0], {"name": "b", "edge": True}]
        self.plan, _ = plan_of(settings | {"parties": parties})
        self.party = EdgeParty(
            "b", data, "mnist_pytorch", code=settings["architecture"],
            folder=str(folder / "edge"),
        )  # fmt: skip
        self.edge = LocalEdge(folder / "run", self.party)
        self.start()

    def start(self):
        plan = EdgeGroupPlan(self.plan, RUN_ID, str(self.folder / "run"))
        self.group = NamedEdges(plan, locate)

    def call(self, method, *values):
        return self.group.for_edge(PLACE, "b", method, *values)

    def train(self, *rest):
        return self.call("train", 1, np.array([PLACE]), self.weights, *rest)

    async def task(self):
        """The task that is open next."""
        while not self.group.board.tasks:
            await asyncio.sleep(0.01)
        return next(iter(self.group.board.tasks.values())).task

    async def do(self, call, change=lambda submission: submission):
        """Let the edge answer a call; what the call gives, and the verdict."""
        waiting = asyncio.create_task(call)
        task = await self.task()
        submission = change(await asyncio.to_thread(self.edge.answer, task))
        verdict = await self.group.commit(submission)
        return await waiting, verdict, submission


@pytest.fixture
def scene(settings, tmp_path):
    return Scene(settings, tmp_path)


def test_an_edge_answers_what_the_party_would_in_the_cluster(scene):
    async def play():
        info, _, _ = await scene.do(scene.call("join", scene.weights))
        (report, update), verdict, submission = await scene.do(scene.train())
        score, _, _ = await scene.do(
            scene.call("evaluate", scene.weights, (0, 1), None, 1)
        )
        again = await scene.group.commit(submission)
        return info, report, update, verdict, score, again

    info, report, update, verdict, score, again = asyncio.run(play())
    own_info = scene.local.join(scene.weights)
    own_report, own = scene.local.train(1, np.array([PLACE]), scene.weights)
    own_digest = digest(own.weights)  # the next call overwrites them
    own_score = scene.local.evaluate(scene.weights, round=1)
    assert (info.n_train, info.n_test) == (own_info.n_train, own_info.n_test)
    assert digest(update.weights) == own_digest
    assert (update.origin, update.n_samples) == (own.origin, own.n_samples)
    assert (report.loss, report.drift) == (own_report.loss, own_report.drift)
    assert score.scores.means == own_score.scores.means
    assert verdict.verdict == "taken"
    assert again == verdict  # sent twice counts once


def test_a_group_that_was_killed_goes_on_with_what_is_on_disk(scene):
    async def before():
        return await scene.do(scene.train())

    async def after():
        scene.start()  # the call is repeated by Ray
        return await scene.train()

    (_, first), _, submission = asyncio.run(before())
    _, second = asyncio.run(after())
    assert digest(first.weights) == digest(second.weights)
    assert len(scene.edge.tasks) == 1  # the edge was not asked again

    async def lost():
        scene.start()
        scene.group.spool.remove_file(submission.task_id)  # fused, and what of it lost
        return await scene.do(scene.train())

    (_, third), _, again = asyncio.run(lost())
    assert digest(first.weights) == digest(third.weights)
    assert (scene.edge.tasks[1].attempt, again.task_id != submission.task_id) == (
        1,
        True,
    )


def test_who_does_not_answer_in_time_is_absent_and_its_update_late(scene, monkeypatch):
    monkeypatch.setattr(NamedEdges, "_round_s", lambda self, kind: 0.2)

    async def play():
        waiting = asyncio.create_task(scene.train())
        task = await scene.task()
        report, update = await waiting
        submission = await asyncio.to_thread(scene.edge.answer, task)
        return report, update, await scene.group.commit(submission)

    report, update, verdict = asyncio.run(play())
    assert report.absent[PLACE].kind == "late"
    assert update is None
    assert verdict.verdict == "late"
    assert list((scene.group.spool.path / "commits").iterdir()) == []


def rewrite(submission, weights=lambda w: w, **metadata):
    """The same submission with another file."""
    path = Path(submission.path)
    arrays, own = tensor_file.read(path)
    arrays = {name: np.array(array) for name, array in arrays.items()}
    sha, size = tensor_file.write(path, weights(arrays), {**own, **metadata})
    return dataclasses.replace(submission, sha256=sha, size=size)


def with_nan(arrays):
    next(iter(arrays.values())).reshape(-1)[0] = math.nan
    return arrays


def without_one(arrays):
    arrays.popitem()
    return arrays


def more_samples(submission):
    report = submission.report | {"n_samples": 10**6}
    new = rewrite(submission, n_samples=str(10**6))
    return dataclasses.replace(new, report=report)


def other_report(**values):
    return lambda s: dataclasses.replace(s, report=s.report | values)


def cut_short(submission):
    path = Path(submission.path)
    path.write_bytes(path.read_bytes()[:-4])
    return submission


MANY_STEPS = dict.fromkeys((*answers.SPENT, "delta"), 0.1) | {"n_steps": 1e300}
HOSTILE = {
    "nan": (lambda s: rewrite(s, with_nan), "not finite"),
    "schema": (lambda s: rewrite(s, without_one), "tensors missing"),
    "round": (lambda s: rewrite(s, round="2"), "another task"),
    "run": (lambda s: rewrite(s, run="other"), "another task"),
    "place": (lambda s: rewrite(s, party="0"), "another task"),
    "samples": (more_samples, "n_samples must be"),
    "differs": (lambda s: rewrite(s, n_samples="3"), "differs"),
    "report": (other_report(n_samples="many"), "cannot be read"),
    "seconds": (other_report(seconds=-1.0), "cannot be read"),
    "nothing": (other_report(loss=True), "cannot be read"),
    "cut": (cut_short, "file is refused"),
    "long": (other_report(more="x" * MAX_REPORT), "more than 65536 bytes"),
    "steps": (other_report(spending=MANY_STEPS), "n_steps is above"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_the_aggregator_would_refuse_is_refused_at_once(scene, kind):
    change, why = HOSTILE[kind]

    async def play():
        await scene.do(scene.call("join", scene.weights))
        return await scene.do(scene.train(), change)

    (report, update), verdict, _ = asyncio.run(play())
    assert verdict.verdict == "refused"
    assert why in verdict.why
    assert update is None
    assert why in report.refused[PLACE].detail


def test_another_edge_cannot_commit_or_fail_a_task(scene):
    async def play():
        waiting = asyncio.create_task(scene.train())
        task = await scene.task()
        submission = await asyncio.to_thread(scene.edge.answer, task)
        theirs = dataclasses.replace(submission, name="a")
        verdict = await scene.group.commit(theirs)
        await scene.group.fail(task.id, "a", "other", "no")
        asked = dataclasses.replace(submission, path=None)
        assert await scene.group.commit(asked) is None  # its file has not arrived
        own = await scene.group.commit(submission)
        again = await scene.group.commit(theirs)  # whose verdict is not theirs to know
        return verdict, own, again, await waiting

    verdict, own, again, (report, _) = asyncio.run(play())
    assert verdict.verdict == "refused"
    assert own.verdict == "taken"
    assert again == verdict
    assert again.sha256 is None
    assert not report.refused


def test_what_is_written_while_its_round_is_closed_is_late_and_not_kept(scene):
    keep, spool = scene.group.spool.keep_commit, scene.group.spool

    def keep_slowly(record, path):
        keep(record, path)
        scene.group.board.tasks.pop(record.task_id)

    async def play():
        waiting = asyncio.create_task(scene.train())
        task = await scene.task()
        submission = await asyncio.to_thread(scene.edge.answer, task)
        spool.keep_commit = keep_slowly
        verdict = await scene.group.commit(submission)
        again = await scene.group.commit(submission)
        waiting.cancel()
        return task.id, verdict, again

    task_id, verdict, again = asyncio.run(play())
    assert (verdict.verdict, again.verdict) == ("late", "late")
    assert spool.commit(task_id) is None
    assert not spool.file(task_id).exists()


def test_an_edge_that_gives_a_task_back_or_leaves_fails_its_call(scene):
    async def play(end):
        waiting = asyncio.create_task(scene.train())
        await end(await scene.task())
        with pytest.raises(PartyError) as error:
            await waiting
        return error.value.why

    async def fail(task):
        await scene.group.fail(task.id, "b", "data", "no such file")

    async def leave(task):
        await scene.group.leave("b")

    assert "data: no such file" in asyncio.run(play(fail))
    assert "left" in asyncio.run(play(leave))


def test_the_door_hears_of_what_changed_alone(scene):
    async def play():
        board = scene.group.board
        first = await scene.group.changes(0)
        waiting = asyncio.create_task(scene.group.changes(first.sequence))
        call = asyncio.create_task(scene.train())
        opened = await waiting
        task = opened.opened[0]
        await board.close(task.id)
        closed = await scene.group.changes(opened.sequence)
        call.cancel()
        return first, opened, closed, task, await scene.group.changes(1)

    first, opened, closed, task, whole = asyncio.run(play())
    assert (first.is_whole, opened.is_whole, whole.is_whole) == (True, False, True)
    assert (task.name, task.kind, task.party) == ("b", "train", PLACE)
    assert closed.closed == (task.id,)


POPULATION_CASES = [
    ("float32", "fedavg"),
    ("bfloat16", "fednova"),
    ("int8", "fedavg"),
    ("float32", "median"),
]


@pytest.mark.parametrize(("dtype", "rule"), POPULATION_CASES)
def test_a_population_folds_in_order_from_disk(settings, tmp_path, digits, dtype, rule):
    settings |= {"wire_dtype": dtype, "fusion_algorithm": rule}
    own = [digits(f"e{i}", 20 + i, skip=30 * i) for i in range(4)]
    listed = [{"name": f"edge-{i}", "data": path} for i, path in enumerate(own)]
    plan, weights = plan_of(settings | {"parties": listed[:1]}, 0)
    payload = encoding.pack(weights, dtype)
    expected = []
    for party in (listed[0], listed[1], listed[3]):
        group = PartyGroup(plan_of(settings | {"parties": [party]}, 0)[0], locate)
        expected.append(group.train(1, np.array([0]), payload)[1])
    del settings["parties"]
    settings |= {"edges": {"min": 1}, "test_data": own[0]}
    plan = EdgeGroupPlan(plan_of(settings, 0)[0], RUN_ID, str(tmp_path / "run"))
    group = EdgePopulation(plan, locate)
    group.spool_bytes = 1  # one update at a time
    group._round_s = lambda kind: 4.0  # edge-2 never comes, and is given up
    edges = {
        f"edge-{i}": LocalEdge(tmp_path / "run", EdgeParty(
            f"edge-{i}", path, "mnist_pytorch", code=settings["architecture"],
            folder=str(tmp_path / f"edge-{i}"),
        ))
        for i, path in enumerate(own) if i != 2
    }  # fmt: skip

    async def serve():
        since = 0
        while True:
            changes = await group.changes(since)
            since = changes.sequence
            for task in changes.opened:
                if task.name in edges:
                    edge = edges[task.name]
                    submission = await asyncio.to_thread(edge.answer, task)
                    await group.commit(submission)

    async def play():
        server = asyncio.create_task(serve())
        places = POPULATION + np.arange(4)
        call = group.for_edge(POPULATION, "edges/1", "train", 1, places, payload, {})
        answer = await call
        for i in (0, 3):  # heard of a short time ago, unlike edge-1
            Contacts(tmp_path / "run" / "edges").row(i)["last_seen"] = time.time()
        score = await group.for_edge(
            POPULATION, "edges/1", "evaluate", payload, (0, 1), places, 1
        )
        server.cancel()
        return answer, score

    (report, *updates), score = asyncio.run(play())
    assert score.scores.n_samples == 40
    assert score.scores.by_party.parties.tolist() == [POPULATION, POPULATION + 3]
    assert report.n_samples.tolist() == [20, 21, 0, 23]
    assert report.absent == {POPULATION + 2: ABSENT}
    if rule == "median":
        assert [update and update.origin.party for update in updates] == [
            POPULATION, POPULATION + 1, None, POPULATION + 3,
        ]  # fmt: skip
        there = [update for update in updates if update]
        pairs = zip(there, expected, strict=True)
        assert all(digest(a.weights) == digest(b.weights) for a, b in pairs)
        return
    assert (updates[0].n_samples, updates[0].n_parties) == (64, 3)
    assert digest(updates[0].weights) == digest(combine(plan.plan, payload, expected))
    assert list((group.spool.path / "commits").glob("*[!n]")) == []  # files are gone


def combine(plan, payload, updates):
    """What an actor of the cluster sends that has these parties."""
    dtype, forms = plan.config.wire_dtype, plan.blueprint.schema
    base = encoding.unpack(payload, forms, dtype)
    rule = fusion.from_config(plan.config, plan.blueprint.shared_parameters)
    context = RoundContext(1, base)
    additive = (
        rule.to_additive(
            dataclasses.replace(
                update, weights=encoding.unpack(update.weights, forms, dtype, base)
            ),
            base,
            {},
        )
        for update in updates
    )
    whole = fusion.combine(rule, additive, context)
    sender = encoding.Sender(plan.config.seed, 1, "edge-0")
    return encoding.pack(whole.weights, dtype, base, sender)


def test_a_plan_has_no_code_no_path_and_nothing_of_other_parties(scene):
    content = write_plan(scene.plan, RUN_ID, "", 2)
    text = content.decode()
    assert scene.settings["parties"][0]["data"] not in text
    assert str(scene.folder) not in text
    assert "nn.Linear" not in text
    summary = describe_plan(content)
    assert (summary.model, summary.code, summary.run) == ("architecture", "mlp", "tiny")
    again = read_plan(content, scene.party)
    assert again.blueprint.schema == scene.plan.blueprint.schema
    assert again.config.learning_rate == 0.1


def change_plan(content, **changes):
    plain = json.loads(content)
    for key, value in changes.items():
        *outer, last = key.split("__")
        holder = plain
        for name in outer:
            holder = holder[name]
        holder[last] = value
    return json.dumps(plain).encode()


BAD_PLANS = {
    "no json": lambda c: b"{",
    "a list": lambda c: b"[]",
    "too new": lambda c: change_plan(c, format=2),
    "a path": lambda c: change_plan(c, run_id="../../etc"),
    "a class": lambda c: change_plan(c, model__type="/tmp/evil.py:X"),
    "its own folder": lambda c: change_plan(c, settings__party_dir="/"),
    "code": lambda c: change_plan(c, settings__data_handler="/tmp/evil.py:X"),
    "no tensors": lambda c: change_plan(c, model__tensors=[]),
    "objects": lambda c: change_plan(c, model__tensors=[["w", [2], "object"]]),
    "values": lambda c: change_plan(c, settings__epochs="many"),
}


@pytest.mark.parametrize("kind", BAD_PLANS)
def test_a_bad_plan_is_refused_before_anything_is_built(scene, kind):
    content = BAD_PLANS[kind](write_plan(scene.plan, RUN_ID, "", 2))
    with pytest.raises(EdgePlanError):
        read_plan(content, scene.party)


def test_a_model_that_is_code_must_lie_at_the_edge_and_be_the_same(scene, tmp_path):
    content = write_plan(scene.plan, RUN_ID, "", 2)
    with pytest.raises(ConfigError, match="must lie at this edge"):
        read_plan(content, dataclasses.replace(scene.party, code=""))
    other = tmp_path / "other.py"
    other.write_text(
        "from torch import nn\ndef mlp():\n    return nn.Linear(784, 10)\n"
    )
    party = dataclasses.replace(scene.party, code=f"{other}:mlp")
    with pytest.raises(ConfigError, match="another model"):
        read_plan(content, party)


def test_layers_travel_as_plain_data(settings, tmp_path):
    import torch
    from torch import nn

    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    torch.save(model, tmp_path / "model.pt")
    del settings["architecture"]
    settings["model_file"] = str(tmp_path / "model.pt")
    plan, weights = plan_of(settings)
    content = write_plan(plan, RUN_ID, "", 2)
    data = settings["parties"][PLACE]["data"]
    party = EdgeParty("b", data, "mnist_pytorch", folder=str(tmp_path / "edge"))
    read = read_plan(content, party)
    assert describe_plan(content).model == "layers"
    there, here = PartyGroup(plan, locate), PartyGroup(read, locate)
    _, ours = there.train(1, np.array([PLACE]), weights)
    _, theirs = here.train(1, np.array([0]), weights)
    assert digest(ours.weights) == digest(theirs.weights)
    evil = change_plan(content, model__plan={"layers": [
        {"kind": "LSTM", "args": {}, "children": []}], "tied": []})  # fmt: skip
    with pytest.raises(ModelFileError, match="LSTM"):
        PartyGroup(read_plan(evil, party), locate).local_data  # noqa: B018


ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "n": np.array(7),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float16),
    "half": np.arange(3, dtype=np.uint16),
}


def test_tensor_files_are_those_of_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "f"
    sha, size = tensor_file.write(path, ARRAYS, {"run": "r"})
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha
    assert size == path.stat().st_size
    assert size == tensor_file.size_of_file(schema(ARRAYS), {"run": "r"})
    theirs = safetensors.load_file(path)
    ours, metadata = tensor_file.read(path, schema(ARRAYS))
    assert metadata == {"run": "r"}
    for name, array in ARRAYS.items():
        assert np.array_equal(theirs[name], array)
        assert np.array_equal(ours[name], array)
        assert not ours[name].flags.writeable


def header(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(first, last):
    return f'{{"dtype":"F32","shape":[2],"data_offsets":[{first},{last}]}}'


BAD_FILES = {
    "empty": b"",
    "a huge header": struct.pack("<Q", 1 << 62) + b"{}",
    "no json": header("{x"),
    "twice": header(f'{{"a":{entry(0, 8)},"a":{entry(0, 8)}}}') + b"0" * 8,
    "beyond the file": header(f'{{"a":{entry(0, 8)}}}'),
    "a gap": header(f'{{"a":{entry(4, 12)}}}') + b"0" * 12,
    "too much": header(f'{{"a":{entry(0, 8)}}}') + b"0" * 12,
    "negative": header('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}'),
    "objects": header('{"a":{"dtype":"O","shape":[1],"data_offsets":[0,8]}}'),
    "truth": header('{"a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}') + b"\7",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_tensor_file_is_refused(tmp_path, kind):
    path = tmp_path / "f"
    path.write_bytes(BAD_FILES[kind])
    with pytest.raises(tensor_file.TensorFileError):
        tensor_file.read(path)


def test_answers_survive_json(scene):
    info = scene.local.join(scene.weights)
    report, _ = scene.local.train(1, np.array([PLACE]), scene.weights)
    score = scene.local.evaluate(scene.weights)
    plain = json.loads(
        json.dumps(
            [answers.write_info(info), answers.write_report(report),
             answers.write_score(score)]
        )
    )  # fmt: skip
    assert answers.read_info(plain[0], "node").n_train == info.n_train
    again = answers.read_report(plain[1], 1, PLACE, locate())
    assert (again.loss, again.drift, again.seconds) == (
        report.loss, report.drift, report.seconds,
    )  # fmt: skip
    assert answers.read_score(plain[2], PLACE, locate()).scores.means == (
        score.scores.means
    )


def score_of(**changes):
    plain = {
        "n_samples": 4, "loss": 1.0, "accuracy": 0.5, "weights": None, "metrics": {},
        "by_party": None, "states": {}, "n_bytes": 0, "data": "same",
    }  # fmt: skip
    return answers.read_score(plain | changes, 0, locate()).scores


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": [-4.0, 4.0]},
        {"metrics": {"\ud800": 1.0}},
        {"states": {"classes/counts": [[0, 10**9], []]}},
        {"states": {"classes/counts": [[-1, -1], [1.0]]}},
        {"states": {"classes/counts": [[1] * 9, [1.0]]}},
        {"states": {"counts": [[1], [1.0]]}},
        {"states": {"classes/counts": [[1], 5]}},
    ],
)
def test_a_score_that_could_not_be_added_to_others_is_refused(changes):
    score_of()
    with pytest.raises(answers.AnswerError):
        score_of(**changes)


@pytest.mark.parametrize("shape", [[16], [], [1, 1, 16], [1, 16], [16, 1]])
def test_sums_of_another_form_neither_fill_memory_nor_end_a_run(shape):
    n_numbers, name = math.prod(shape), "classes/counts"
    own = score_of(states={name: [[4, 4], [1.0] * 16]})
    larger = score_of(states={name: [[4, 5], [1.0] * 20]})
    other = score_of(states={name: [shape, [1.0] * n_numbers]})
    states = policy.join_scores([own, other, larger]).states
    assert np.array_equal(states[name], policy.join_scores([own, larger]).states[name])
    values, notes = models.compute_metrics(["f1"], other.states)
    assert [*values] == ["f1"]
    assert shape or "sums of a party have another form" in notes[0]


def test_an_edge_adds_its_own_noise_and_says_what_it_cost(settings, tmp_path):
    pytest.importorskip("cryptography")
    noise = {"noise_multiplier": 1.0, "max_grad_norm": 1.0, "delta": 1e-3}
    scene = Scene(settings | {"dp_sgd": noise}, tmp_path)

    async def play(change):
        return await scene.do(scene.train(), change)

    (report, update), verdict, _ = asyncio.run(play(lambda submission: submission))
    assert verdict.verdict == "taken"
    assert report.spending.run_epsilon[0] > 0
    assert update is not None
    scene = Scene(settings | {"dp_sgd": noise}, tmp_path / "silent")
    (_, update), verdict, _ = asyncio.run(play(other_report(spending=None)))
    assert "what its privacy has cost" in verdict.why
    assert update is None


def test_who_of_a_group_is_absent_is_late_and_the_others_report_counts():
    from fedray.aggregator.collector import UpdateCollector
    from fedray.aggregator.party_actors import WorkItem
    from fedray.aggregator.validation import check_report

    settled = {}

    class Record:
        @staticmethod
        def settle(parties, outcome, refused=None):
            settled.update(dict.fromkeys(parties.tolist(), str(outcome)))

    parties, numbers = POPULATION + np.arange(3), np.array([0.5, 0.0, 0.7])
    spending = Spending(*[numbers] * 4, np.array([3, 0, 3]), 1e-3)
    report = Report(
        1, "node", parties, np.array([4, 0, 6]), numbers, numbers, 1.0, 10,
        spending=spending, absent={POPULATION + 1: ABSENT},
    )  # fmt: skip
    collector = object.__new__(UpdateCollector)
    collector._absent, collector.record = {}, Record
    item = WorkItem("edges/1", "node", parties, is_single=False)
    own, answered = collector._without_absent(item, report)
    assert own.parties.tolist() == [POPULATION, POPULATION + 2]
    assert answered.n_samples.tolist() == [4, 6]
    assert answered.spending.n_steps.tolist() == [3, 3]
    assert settled == {POPULATION + 1: str(ABSENT)}
    assert check_report(answered, own, 1, np.zeros(2, int)) is None
