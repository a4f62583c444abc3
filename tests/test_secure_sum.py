"""Secure aggregation: sums with drop-outs, attempts, restarts of either side."""

import fcntl
import functools
import itertools
import json
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from fedray.errors import SecureSumError, SecureSumFailed
from fedray.secure_sum import (
    FolderStorage,
    Identity,
    PartySide,
    ServerSide,
    Step,
    bundle,
    choose_parameters,
    grid_parameters,
    keys,
    route,
)
from fedray.secure_sum.codec import Kind, decode
from fedray.secure_sum.party_state import PartyState
from tests.support.secure_parties import RUN, WEIGHTS, Scene

STEPS = [Step.KEYS, Step.SHARES, Step.MASKED, Step.ALIVE, Step.REVEAL]


def in_sum(scene, absent, step):
    """Who is in the sum if these are absent from a step on."""
    return [n for n in scene.parties if step > Step.MASKED or n not in absent]


def assert_sum(scene, result, names):
    assert result.names == list(names)
    assert result.total.tolist() == scene.plain_sum(names).tolist()
    assert result.weight == sum(scene.weight[n] for n in names)


def branches(scene):
    """The scene before each of the five steps."""
    scene.begin()
    for step in STEPS:
        assert scene.server.step == step
        yield step, scene.copy()
        scene.step()


@pytest.mark.parametrize("n_parties", [2, 3])
def test_few_parties_get_the_plain_sum(n_parties):
    scene = Scene(n_parties)
    scene.begin()
    assert_sum(scene, scene.finish(), scene.parties)


def test_ten_parties_get_the_plain_sum_of_those_who_sent_a_vector():
    for step, before in branches(Scene(10)):
        for n_absent in (0, 1, 3):
            scene = before.copy()
            absent = [f"p{3 * i}" for i in range(n_absent)]
            assert_sum(scene, scene.finish(absent), in_sum(scene, absent, step))


def test_a_hundred_parties_get_the_plain_sum_of_those_who_sent_a_vector(monkeypatch):
    # 24 neighbours verify each signature: here the first of them, for time
    monkeypatch.setattr(keys, "is_signed", functools.cache(keys.is_signed))
    for step, before in branches(Scene(100)):
        for n_absent in (0, 1, 5) if step == Step.KEYS else (1, 5):
            scene = before.copy()
            absent = [f"p{17 * i}" for i in range(n_absent)]
            assert_sum(scene, scene.finish(absent), in_sum(scene, absent, step))


def test_one_party_too_few_ends_the_attempt_and_nothing_is_opened():
    for step, scene in branches(Scene(10)):  # t = 7 and min_sum = 7: 3 may be absent
        absent = [f"p{i}" for i in range(4)]
        with pytest.raises(
            SecureSumFailed, match=f"6 of 7.* in the step {step.name.lower()}"
        ):
            scene.finish(absent)
        assert scene.server.failure
        assert scene.server.requests() == {}
        assert scene.server.is_opened == (step == Step.REVEAL)
        with pytest.raises(SecureSumError, match="no sum yet"):
            scene.server.result()
        scene.restart_server()
        assert scene.server.failure


def test_drop_outs_of_different_steps_add_up():
    scene = Scene(10)
    scene.begin()
    scene.step()
    scene.step()
    scene.step(["p1"])  # no vector
    scene.step(["p1", "p2"])  # in the sum, does not sign
    scene.step(["p1", "p2", "p3"])  # signs, reveals nothing
    names = [n for n in scene.parties if n != "p1"]
    assert_sum(scene, scene.server.result(), names)


def test_weights_multiply_vectors_and_their_sum_is_known():
    scene = Scene(4, choose_parameters(3, 4, max_weight=256))
    scene.weight = {"p0": 1, "p1": 256, "p2": 17, "p3": 100}
    scene.begin()
    result = scene.finish()
    assert result.weight == 374
    assert_sum(scene, result, scene.parties)


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_the_largest_sums_fit_and_blocks_join(ring_bits):
    n = 2**18 // (ring_bits // 8) + 1000  # two blocks of masks
    max_weight = 1 if ring_bits == 32 else 2**20
    parameters = choose_parameters(n, 3, max_weight=max_weight)
    assert parameters.ring_bits == ring_bits
    scene = Scene(3, parameters)
    scene.weight = dict.fromkeys(scene.parties, max_weight)
    for vector in scene.vectors.values():
        vector[:500], vector[-500:] = parameters.bound, -parameters.bound
    scene.begin()
    total = scene.finish().total
    assert int(total[0]) == 3 * max_weight * parameters.bound == -int(total[-1])
    assert total.tolist() == scene.plain_sum(scene.parties).tolist()


def test_partial_sums_of_several_parties_may_be_added():
    scene = Scene(4)
    scene.begin()
    scene.go_to(Step.MASKED)
    scene.server.use_weights(WEIGHTS)
    vectors = {n: scene.mask(n, r) for n, r in scene.server.requests().items()}
    scene.server.add(["p0", "p2"], vectors["p0"] + vectors["p2"])  # wraps around
    scene.server.add(["p1"], vectors["p1"])
    scene.server.add(["p3"], vectors["p3"])
    scene.server.close()
    assert_sum(scene, scene.finish(), scene.parties)


def test_a_masked_vector_tells_nothing_that_its_masks_do_not():
    """Each bit of a zero vector's masked coordinates is as often 0 as 1."""
    parameters = grid_parameters(20_000, 3, bound=10)
    scene = Scene(3, parameters)
    scene.vectors = {n: np.zeros(20_000, np.int64) for n in scene.parties}
    scene.begin()
    scene.go_to(Step.MASKED)
    scene.server.use_weights(WEIGHTS)
    masked = scene.mask("p0", scene.server.requests()["p0"])[:20_000]
    ones = [(masked >> np.uint32(bit) & 1).mean() for bit in range(32)]
    assert max(abs(share - 0.5) for share in ones) < 6 * 0.5 / 20_000**0.5


def test_three_trips_a_round_when_steps_ride_on_each_other():
    scene, n_trips = Scene(4), 0
    scene.begin(round=1)
    current, totals = scene.server, []
    for round in (1, 2, 3):
        following = None
        while current.step != Step.DONE:
            if current.step == Step.MASKED:
                current.use_weights(WEIGHTS)
            if current.step == Step.ALIVE:
                following = ServerSide.begin(scene.attempt(round + 1), scene.at_server)
            rides = following if current.step in (Step.ALIVE, Step.REVEAL) else None
            sides = [current, *([rides] if rides else [])]
            n_trips += 1
            for name, requests in bundle(*sides).items():
                if current.step == Step.MASKED:
                    current.add([name], scene.mask(name, requests[0]))
                else:
                    answers = scene.parties[name].answer_all(requests)
                    assert route(name, answers, *sides) == []
            for side in sides:
                side.close()
        totals.append(current.result().total.tolist())
        current = following
        assert current.step == Step.MASKED
    assert totals == [scene.plain_sum(scene.parties).tolist()] * 3
    assert n_trips == 5 + 3 + 3


def test_a_party_that_was_absent_joins_by_steps_that_ride():
    """It is asked for keys in the trip in which the others sign."""
    scene = Scene(4)
    scene.begin(1)
    scene.go_to(Step.MASKED)
    scene.step(["p3"])
    following = ServerSide.begin(scene.attempt(2), scene.at_server)
    for _ in range(2):
        for name, requests in bundle(scene.server, following).items():
            assert len(requests) == (1 if name == "p3" else 2)
            answers = scene.parties[name].answer_all(requests)
            assert route(name, answers, scene.server, following) == []
        scene.server.close()
        following.close()
    assert scene.server.result().names == ["p0", "p1", "p2"]
    scene.server = following
    assert_sum(scene, scene.finish(), scene.parties)


def test_either_side_may_be_killed_between_any_two_steps():
    plain = Scene(5)
    wanted = plain.plain_sum(plain.parties).tolist()
    for kills in itertools.product(["", "party", "server"], repeat=2):
        scene = Scene(5)
        scene.begin()
        while scene.server.step != Step.DONE:
            for when, kill in zip(("before", "after"), kills, strict=True):
                if when == "after":
                    scene.ask()
                if kill == "party":
                    scene.restart_parties()
                elif kill == "server":
                    scene.restart_server()
            scene.ask()  # what a killed server has forgotten
            scene.server.close()
        assert scene.server.result().total.tolist() == wanted
        scene.restart_server()
        assert scene.server.result().total.tolist() == wanted


class Killed(Exception):
    """The process ends within a call."""


def kill_at(storage, n_th, is_done):
    """Let the n-th change of a storage end the process, before or after it is made."""
    n_changes = itertools.count(1)

    def wrap(change):
        def changed(*arguments):
            is_last = next(n_changes) == n_th
            if is_last and not is_done:
                raise Killed
            change(*arguments)
            if is_last:
                raise Killed

        return changed

    for name in ("write", "append", "remove"):
        setattr(storage, name, wrap(getattr(storage, name)))


def play(scene, on_kill):
    """A whole attempt, in which killed processes start again; all vectors sent."""
    vectors = []
    while True:
        try:
            if scene.server.step == Step.DONE:
                return vectors, scene.server.result()
            if scene.server.step == Step.MASKED:
                scene.server.use_weights(WEIGHTS)
            for name, request in scene.server.requests().items():
                if scene.server.step == Step.MASKED:
                    vector = scene.mask(name, request)
                    vectors.append((name, vector.tobytes()))
                    scene.server.add([name], vector)
                else:
                    scene.server.accept(name, scene.parties[name].answer(request))
            scene.server.close()
        except Killed:
            on_kill()


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("victim", ["party", "server"])
def test_a_kill_at_any_change_on_disk_leads_to_one_vector_summed(victim, is_done):
    at_party = victim == "party"
    for n_th in itertools.count(1):
        scene = Scene(3)
        scene.begin()
        trained = [scene.vectors["p1"]]

        def restart(scene=scene, trained=trained):
            scene.restart_parties("p1") if at_party else scene.restart_server()
            trained.append(trained[-1] // 2)  # not the same again
            scene.vectors["p1"] = trained[-1]

        kill_at(scene.storages["p1"] if at_party else scene.at_server, n_th, is_done)
        vectors, result = play(scene, restart)
        assert len({*vectors}) == 3
        of_p1 = result.total - scene.plain_sum(["p0", "p2"])
        assert of_p1.tolist() in [vector.tolist() for vector in trained]
        if len(trained) == 1:  # nothing was left to kill it at
            assert n_th > (5 if at_party else 8)
            return


def test_a_server_killed_between_revealed_shares_finishes_the_same_attempt():
    scene = Scene(10)
    scene.begin()
    scene.go_to(Step.REVEAL)
    requests = scene.server.requests()
    wanted = scene.copy().finish()
    for killed_after in range(1, 8):  # each time one more party's shares are on disk
        name = f"p{killed_after}"
        scene.server.accept(name, scene.parties[name].answer(requests[name]))
        scene.restart_server()
        assert name not in scene.server.waits_for
    assert len(scene.server.waits_for) == 3
    scene.server.close()  # with seven; the others are gone
    assert scene.server.result().total.tolist() == wanted.total.tolist()


def test_a_party_sends_the_same_bytes_again():
    scene = Scene(3)
    scene.begin()
    while scene.server.step != Step.DONE:
        if scene.server.step == Step.MASKED:
            scene.server.use_weights(WEIGHTS)
        request = scene.server.requests()["p1"]
        if scene.server.step == Step.MASKED:
            assert scene.parties["p1"].masked(request) is None
            first = scene.mask("p1", request).tobytes()
            scene.restart_parties("p1")
            scene.vectors["p1"] = scene.vectors["p1"][::-1] // 2  # trained otherwise
            assert scene.parties["p1"].masked(request).tobytes() == first
            assert scene.mask("p1", request).tobytes() == first
        else:
            first = scene.parties["p1"].answer(request)
            scene.restart_parties("p1")
            assert scene.parties["p1"].answer(request) == first
        scene.step()


def test_a_masked_vector_that_is_lost_is_not_made_again():
    scene = Scene(3)
    scene.begin()
    scene.go_to(Step.MASKED)
    scene.server.use_weights(WEIGHTS)
    request = scene.server.requests()["p1"]
    scene.mask("p1", request)
    scene.storages["p1"].remove("masked.vector")
    with pytest.raises(SecureSumError, match=r"whose file is lost.*another attempt"):
        scene.mask("p1", request)


def test_nothing_leaves_before_it_is_on_disk():
    class Full(Exception):
        pass

    def refuse(*_):
        raise Full

    for step, scene in branches(Scene(3)):
        if step == Step.MASKED:
            scene.server.use_weights(WEIGHTS)
        request = scene.server.requests()["p1"]
        scene.storages["p1"].write = refuse
        with pytest.raises(Full):
            scene.answer("p1", request)
        del scene.storages["p1"].write
        scene.restart_parties("p1")
        assert_sum(scene, scene.finish(), scene.parties)


def test_another_attempt_has_fresh_keys_and_erases_those_of_the_one_before():
    scene = Scene(4)
    scene.begin(number=1)
    scene.go_to(Step.ALIVE)
    old = scene.server
    secrets = [state_of(scene, n)["slots"][0]["mask_secret"] for n in scene.parties]
    scene.begin(number=2)
    scene.ask()
    for name, secret in zip(scene.parties, secrets, strict=True):
        text = scene.storages[name].files["state.json"].decode()
        assert secret not in text
        with pytest.raises(SecureSumError, match="an attempt that it has not joined"):
            scene.parties[name].answer(old.requests()[name])
    scene.server.close()
    assert_sum(scene, scene.finish(), scene.parties)


def state_of(scene, name):
    return json.loads(scene.storages[name].files["state.json"])


def test_a_failed_attempt_is_followed_by_another_though_the_next_round_has_begun():
    scene = Scene(4)
    scene.begin(1)
    scene.go_to(Step.ALIVE)
    following = ServerSide.begin(scene.attempt(2), scene.at_server)
    for name, requests in bundle(scene.server, following).items():
        answers = scene.parties[name].answer_all(requests)
        if name in ("p0", "p1"):  # two of three signatures arrive
            route(name, answers, scene.server, following)
        else:
            route(name, answers[1:], following)
    with pytest.raises(SecureSumFailed, match="2 of 3 needed"):
        scene.server.close()
    scene.begin(round=1, number=2)
    assert_sum(scene, scene.finish(), scene.parties)
    following.close()
    scene.server = following
    assert_sum(scene, scene.finish(), scene.parties)


def test_an_opened_round_is_not_opened_again():
    scene = Scene(4)
    scene.begin()
    scene.go_to(Step.REVEAL)
    scene.ask()  # all have revealed
    with pytest.raises(SecureSumError, match="though round 1, attempt 1 was opened"):
        scene.begin(number=2)
    scene.at_server.files.clear()  # a server that has forgotten, or says so
    for number in (1, 2, 9):
        scene.begin(number=number)
        for name, request in scene.server.requests().items():
            if number == 1:  # the answer is an old one: keys that are gone
                scene.parties[name].answer(request)
                continue
            with pytest.raises(SecureSumError, match="though round 1 was opened"):
                scene.parties[name].answer(request)
        scene.at_server.files.clear()
    scene.begin(round=2)
    assert_sum(scene, scene.finish(), scene.parties)


def test_a_party_that_revealed_has_no_secret_of_the_attempt_left():
    scene = Scene(3)
    scene.begin()
    scene.finish()
    for name in scene.parties:
        (slot,) = state_of(scene, name)["slots"]
        secrets = ("box_secret", "mask_secret", "seed", "shares", "peers")
        assert not any(slot[k] for k in secrets)


def test_rounds_only_go_forward():
    scene = Scene(3)
    scene.begin(round=5)
    scene.go_to(Step.ALIVE)
    scene.begin(round=4)
    for name, request in scene.server.requests().items():
        with pytest.raises(SecureSumError, match="after one of round 5"):
            scene.parties[name].answer(request)


def test_the_server_takes_no_answer_twice_late_or_from_strangers():
    scene = Scene(4)
    scene.begin()
    scene.go_to(Step.MASKED)
    scene.server.use_weights(WEIGHTS)
    vector = scene.mask("p0", scene.server.requests()["p0"])
    scene.server.add(["p0"], vector)
    for names, wrong, why in [
        (["p0"], vector, "twice"),
        (["nobody"], vector, "one of a party that was asked"),
        (["p1"], vector[:-1], "uint32"),
        (["p1"], vector.astype(np.uint64), "uint64"),
        (["p1", "p0"], vector, "twice"),
    ]:
        with pytest.raises(SecureSumError, match=why):
            scene.server.add(names, wrong)
    scene.step(["p3"])
    with pytest.raises(
        SecureSumError, match=r"after the step was closed|in an open step"
    ):
        scene.server.add(["p3"], vector)


def test_other_weights_in_the_same_attempt_are_an_error():
    scene = Scene(3)
    scene.begin()
    scene.go_to(Step.MASKED)
    with pytest.raises(SecureSumError, match="no hash of the weights"):
        scene.server.requests()
    scene.server.use_weights(WEIGHTS)
    scene.restart_server()
    assert scene.server.weights == WEIGHTS
    scene.server.use_weights(WEIGHTS)
    with pytest.raises(SecureSumError, match="other weights than this attempt"):
        scene.server.use_weights(WEIGHTS[::-1])


def test_integers_of_any_type_in_any_number_of_arrays_are_masked():
    scene = Scene(3, choose_parameters(5, 3, max_weight=300))
    scene.weight = dict.fromkeys(scene.parties, 300)
    whole = np.array([100, -100, 0, 7, -128])
    scene.begin()
    scene.go_to(Step.MASKED)
    scene.server.use_weights(WEIGHTS)
    kinds = {"p0": [whole.astype(np.int8)], "p1": [whole[:2].astype("<i8"), whole[2:]]}
    kinds["p2"] = [np.empty(0, np.int32), whole.astype(">i4").reshape(5, 1)]
    for name, request in scene.server.requests().items():
        party = scene.parties[name]
        scene.server.add([name], party.mask(request, WEIGHTS, kinds[name], 300))
        with pytest.raises(SecureSumError, match="needed `mask` to answer it"):
            party.answer(request)
    scene.server.close()
    assert scene.finish().total.tolist() == (900 * whole).tolist()


def test_the_noise_of_the_parties_is_in_the_sum(monkeypatch):
    parameters = grid_parameters(4000, 4, bound=100, noise_variance=10_000)
    scene = Scene(4, parameters)
    scene.begin()
    noise = scene.finish().total - scene.plain_sum(scene.parties)
    # variance of 4 parties together 40,000; 4,000 samples: within 6 standard errors
    assert abs(noise.var() / 40_000 - 1) < 6 * (2 / 4000) ** 0.5
    again = Scene(4, parameters)
    again.begin()
    assert (again.finish().total - again.plain_sum(again.parties) != noise).any()


def test_masking_and_opening_take_no_second_copy_of_a_vector(tmp_path):
    """20 MB: masking goes to disk in blocks of 256 kB, opening has one copy."""
    n = 5_000_000
    scene = Scene(2, choose_parameters(5, 2))
    scene.parameters = choose_parameters(n, 2)
    scene.vectors = {name: np.ones(n, np.int32) for name in scene.parties}
    scene.storages = {name: FolderStorage(tmp_path / name) for name in scene.parties}
    scene.at_server = FolderStorage(tmp_path / "server")
    scene.restart_parties()
    scene.begin()
    scene.go_to(Step.MASKED)
    scene.server.use_weights(WEIGHTS)
    for name, request in scene.server.requests().items():
        tracemalloc.start()
        vector = scene.mask(name, request)
        assert tracemalloc.get_traced_memory()[1] < 1_500_000
        tracemalloc.stop()
        scene.server.add([name], vector)
    scene.server.close()
    scene.go_to(Step.DONE)
    tracemalloc.start()
    total = scene.server.result().total
    assert tracemalloc.get_traced_memory()[1] < 1.1 * 4 * n
    tracemalloc.stop()
    assert (total == 2).all()


def test_a_folder_keeps_secrets_for_its_owner(tmp_path):
    storage = FolderStorage(tmp_path / "party")
    party = PartySide("p0", storage)
    assert storage.view("a") is None
    storage.append("a", b"1")
    storage.append("a", b"2")
    assert storage.read("a") == storage.view("a") == b"12"
    assert storage.read("b") is None
    assert (tmp_path / "party").stat().st_mode & 0o777 == 0o700
    for file in (tmp_path / "party").iterdir():
        assert file.stat().st_mode & 0o777 == 0o600, file
    assert PartySide("p0", storage).public_key == party.public_key
    storage.remove("a", "b")
    assert storage.read("a") is None
    exclusive = fcntl.LOCK_EX | fcntl.LOCK_NB
    with (
        storage.lock(),
        open(tmp_path / "party" / "lock") as file,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(file, exclusive)


def test_a_torn_record_of_the_server_is_asked_again():
    scene = Scene(4)
    scene.begin()
    scene.step()
    whole = scene.at_server.files["round-00001.journal"]
    scene.step()
    longer = scene.at_server.files["round-00001.journal"]
    for size in range(len(whole), len(longer), 97):
        scene.at_server.files["round-00001.journal"] = longer[:size]
        scene.restart_server()
        assert scene.server.step in (Step.SHARES, Step.MASKED)
        twin = scene.copy()
        assert_sum(twin, twin.finish(), twin.parties)


def test_files_of_a_round_are_deleted_when_its_sum_is_kept_elsewhere():
    scene = Scene(3)
    scene.begin()
    scene.finish()
    scene.server.forget()
    assert scene.at_server.files == {}
    assert ServerSide.restore(scene.at_server, 1) is None


def test_no_secret_is_in_a_repr_or_an_error():
    scene = Scene(3)
    scene.begin()
    scene.go_to(Step.ALIVE)
    slot = state_of(scene, "p0")["slots"][0]
    shown = repr(PartyState.decode(scene.storages["p0"].files["state.json"]))
    identity = scene.storages["p0"].files["identity.key"]
    assert RUN in shown
    for secret in (slot["seed"], slot["mask_secret"], slot["box_secret"]):
        assert secret not in shown
        assert str(bytes.fromhex(secret))[2:-1] not in shown
    assert str(identity)[2:-1] not in repr(Identity(identity))
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(Identity(identity))


def test_two_of_two_are_summed_and_two_of_more_are_not():
    parameters = choose_parameters(3, 2)
    assert parameters.min_sum == 2
    scene = Scene(2, parameters)
    scene.begin()
    assert_sum(scene, scene.finish(), ["p0", "p1"])
    with pytest.raises(SecureSumError, match="min_sum 2 for 3 parties"):
        choose_parameters(3, 3, min_sum=2)


def test_requests_name_their_kind():
    scene = Scene(3)
    for kind, (_, before) in zip(
        [Kind.KEYS_REQUEST, Kind.SHARES_REQUEST], branches(scene), strict=False
    ):
        assert decode(before.server.requests()["p0"]).kind == kind


def test_the_package_cryptography_is_imported_only_where_it_is_used():
    code = (
        "import sys; import fedray.secure_sum as s\n"
        "from fedray.errors import MissingExtra\n"
        "assert 'cryptography' not in sys.modules\n"
        "sys.modules['cryptography'] = None\n"
        "try: s.Identity(bytes(32))\n"
        "except MissingExtra as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "secure_aggregation needs an extra" in done.stdout
    assert "pip install 'fedray[privacy]'" in done.stdout
