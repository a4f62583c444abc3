"""Trainings over REST wait their turn, end with their time, and have memory bounds."""

import contextlib
import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray
from starlette.testclient import TestClient
from support.memory_group import small_cgroup
from support.rest import Client, json_of
from support.waiting import wait_for

from fedray.service import asgi, auth, federation_actor, store
from fedray.service.settings import Settings

ENDLESS = {"rounds": 10_000_000, "round_timeout_s": 1e9}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A key file and the headers of its two clients."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    own = [auth.add_key(file, name) for name in ("ann", "bob")]
    names = ("X-IBM-Client-Id", "X-IBM-Client-Secret")
    return file, [dict(zip(names, pair, strict=True)) for pair in own]


@pytest.fixture(scope="module")
def settings(keys, tmp_path_factory):
    """Of a service in which one client's training leaves room for one of another."""
    return Settings(
        root=str(tmp_path_factory.mktemp("root")),
        api_keys=str(keys[0]),
        max_trainings_per_client=2,
        max_trainings=3,
        max_party_processes_per_client=3,
        max_party_processes=4,
        max_memory_per_federation=4 << 30,
    )


@contextlib.contextmanager
def clients_of(settings, keys):
    """Ann and Bob as clients of a service in this process."""
    with TestClient(asgi.build(settings), raise_server_exceptions=False) as http:
        yield [Client(http=http, **headers) for headers in keys[1]]


@pytest.fixture(scope="module")
def clients(cluster, settings, keys):
    with clients_of(settings, keys) as both:
        yield both


def begin(client, **changes):
    """Start a federation of two parties and its training; id, what /train answers."""
    id = client.ready(**changes)
    answer = client.train(id, wait=False)
    assert answer.status_code == 202
    return id, json_of(answer)["status"]


def state_of(settings, id):
    return store.read(settings.folder / id)


def test_one_client_with_endless_trainings_does_not_keep_others_from_theirs(
    clients, settings
):
    ann, bob = clients
    first, status = begin(ann, **ENDLESS)
    assert status == "training"
    second, status = begin(ann, **ENDLESS)
    assert status == "queued"
    assert ann.state(second)["state"] == ann.state(second)["status"] == "queued"
    listed = json_of(ann.get("/aggregators"))["aggregators"]
    states = {one["aggregator_id"]: one["state"] for one in listed}
    assert states[second] == "queued"
    own = bob.ready()
    answer = bob.train(own)
    assert answer.status_code == 200, answer.text
    assert len(json_of(answer)["history"]) == 2
    assert ann.state(second)["state"] == "queued"
    others, status = begin(bob, **ENDLESS)
    assert status == "training"
    refused = ann.join(first)  # a fifth process
    assert refused.status_code == 429
    assert json_of(refused)["limit"] == "max_party_processes"
    assert refused.headers["retry-after"]
    assert bob.stop(others).status_code == 200
    assert ann.join(first).status_code == 200
    assert ann.stop(first).status_code == 200
    wait_for(lambda: ann.state(second)["state"] == "training")
    assert ann.stop(second).status_code == 200
    turns = [state_of(settings, id) for id in (first, own, second)]
    assert [one.started for one in turns] == sorted(one.started for one in turns)
    assert turns[2].started >= turns[0].ended


def test_a_training_ends_with_its_time_and_its_model_stays(clients, settings):
    ann, _ = clients
    id = ann.ready(**ENDLESS)
    begin_alone(settings.folder / id, max_training_s=1.0)
    wait_for(lambda: ann.state(id)["state"] == "trained")
    state = ann.state(id)
    reason = "its rounds took max_training_s, 1 s"
    assert state["stop_reason"] == state["history"][-1]["stop_reason"] == reason
    assert 0 < state["round"] < 10_000_000
    assert ann.get(f"/aggregators/{id}/weights").status_code == 200
    assert json_of(ann.stop(id))["global_model"]


def begin_alone(folder, **run_limits):
    """Begin a training as the scheduler does, with limits of its own."""
    with store.changing(folder) as state:
        state.state, state.started = store.TRAINING, time.time()
        state.run_limits = run_limits
    federation_actor.get_or_start(folder)


def test_a_training_can_be_stopped_while_it_waits(clients):
    ann, _ = clients
    first, _ = begin(ann, **ENDLESS)
    second = ann.ready()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ann.train, second)
        wait_for(lambda: ann.state(second)["state"] == "queued")
        again = ann.train(second)
        assert again.status_code == 409
        assert "queued already" in json_of(again)["detail"]
        assert json_of(ann.stop(second))["global_model"] is None
        assert waiting.result().status_code == 409
    assert ann.state(second)["state"] == "stopped"
    assert ann.stop(first).status_code == 200


def test_a_party_that_leaves_while_the_training_waits_is_not_waited_for(clients):
    ann, _ = clients
    first, _ = begin(ann, **ENDLESS)
    second, status = begin(ann, rounds=1)
    assert status == "queued"
    leave = {"aggregator_id": second, "party_id": "party-0"}
    assert ann.post("/stop-party", json=leave).status_code == 200
    wait_for(lambda: ann.state(second)["state"] == "trained")  # beside the first
    parties = ann.state(second)["history"][0]["parties"]
    assert [party["name"] for party in parties] == ["party-1"]
    for id in (first, second):
        assert ann.stop(id).status_code == 200


def test_what_can_never_have_its_turn_is_refused_before_it_waits(clients):
    ann, _ = clients
    answer = ann.start(num_parties=4)
    assert answer.status_code == 422
    text = json_of(answer)["detail"]
    assert "max_party_processes_per_client" in text
    assert "4 parties" in text
    assert "3 run" in text


def test_a_vocabulary_that_no_memory_holds_is_refused_where_it_joins(clients):
    ann, _ = clients
    form = {"model_type": "doc2vec", "fusion_algorithm": "doc2vec", "num_parties": 2}
    form |= {"doc2vec": '{"vector_size": 10000, "min_count": 1}'}
    made = ann.post("/start-aggregator", data=form)
    id = json_of(made)["aggregator_id"]
    answer = ann.join(
        id, newsgroup_file(50_000), data_handler_class_name="20_newsgroup"
    )
    assert answer.status_code == 413, answer.text
    assert "max_memory_per_federation" in json_of(answer)["detail"]
    assert ann.state(id)["parties"] == []
    assert ann.stop(id).status_code == 200


def newsgroup_file(n_words: int) -> bytes:
    """A file of documents in which each word is another."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = map("".join, itertools.product(letters, repeat=4))
    text = " ".join(itertools.islice(words, n_words))
    documents = [{"text": text, "group": "a", "tag": str(tag)} for tag in range(2)]
    return "\n".join(map(json.dumps, documents)).encode()


def test_a_restarted_service_goes_on_with_its_queue(cluster, settings, keys, clients):
    ann, _ = clients
    first, _ = begin(ann, **ENDLESS)
    second, status = begin(ann, rounds=1)
    assert status == "queued"
    with clients_of(settings, keys) as (again, _):  # its scheduler waits for the other
        assert again.state(second)["state"] == "queued"
        third = again.ready()
        answer = again.train(third, wait=False)
        assert json_of(answer)["status"] == "queued"
        assert again.stop(third).status_code == 200
    assert ann.stop(first).status_code == 200
    wait_for(lambda: ann.state(second)["state"] == "trained")


def test_an_actor_that_is_killed_twice_for_its_memory_fails_its_federation(
    clients, settings
):
    ann, _ = clients
    id = ann.ready(**ENDLESS)
    folder = settings.folder / id
    begin_alone(folder)
    with small_cgroup(1 << 20) as group:  # any more is too much
        for n_deaths in (1, 2):
            wait_for((folder / "history.jsonl").exists)
            (group / "cgroup.procs").write_text(str(pid_of(folder)))
            wait_for(lambda n=n_deaths: state_of(settings, id).memory_deaths >= n)
    wait_for(lambda: ann.state(id)["state"] == "failed")
    error = ann.state(id)["error"]
    assert error["status"] == 413
    assert "killed 2 times for the memory" in error["detail"]
    assert ann.stop(id).status_code == 200


def pid_of(folder):
    actor = wait_for(lambda: federation_actor.find(folder))
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
