"""One party under secure aggregation, as a plain object: what it refuses and says."""

import dataclasses

import numpy as np
import pytest

from fedray import data, models
from fedray.config import parse
from fedray.errors import PartyError, SecureSumError
from fedray.messages import ActorLocation
from fedray.party import GroupPlan
from fedray.party.secure import SecurePartyGroup
from fedray.privacy.grid import n_coordinates
from fedray.secure_sum import Attempt, FolderStorage, Member, ServerSide, Step
from fedray.secure_sum.vectors import MASKED, describe_sums, plan_sum
from fedray.weights import digest

RUN, SIZES = "run-7", {"a": 40, "b": 64, "c": 21}


@pytest.fixture
def scene(settings, digits, tmp_path):
    """Three parties of a run, the weights they are sent, and an attempt of round 1."""
    return Scene(settings, digits, tmp_path)


class Scene:
    """An aggregator of one attempt, played by hand."""

    def __init__(self, settings, digits, tmp_path, **more):
        names = [{"name": n, "data": digits(n, k)} for n, k in SIZES.items()]
        own = {"parties": names, "secure_aggregation": True, "clip_norm": 2.0}
        self.config, found = parse(settings | own | more)
        assert found == []
        blueprint, self.weights = models.named("pytorch").read(self.config)
        handler, self.folder = data.named(self.config.data_handler), tmp_path
        self.parties = {
            name: SecurePartyGroup(
                GroupPlan(
                    name, range(i, i + 1), self.config, blueprint, handler,
                    own_folder=str(tmp_path / "parties" / RUN),
                ),
                lambda: ActorLocation("here"),
            )
            for i, name in enumerate(SIZES)
        }  # fmt: skip
        roster = tuple(
            Member(name, party.join(self.weights).identity)
            for name, party in self.parties.items()
        )
        size = n_coordinates(self.weights)
        sums = plan_sum(self.config, size, 3, 3, 1.0)
        self.attempt = Attempt(RUN, "", 1, 1, roster, sums)

    def begin(self, attempt: Attempt) -> ServerSide:
        storage = FolderStorage(self.folder / f"server-{attempt.context.hex()[:8]}")
        return ServerSide.begin(attempt, storage)

    def play(self, side: ServerSide, until: Step) -> None:
        """Go on with all parties until a step."""
        while side.step < until:
            for name, request in side.requests().items():
                (answer,), _ = self.parties[name].secure_answers([request])
                side.accept(name, answer)
            side.close()


def refusal_of(scene: Scene, attempt: Attempt) -> str:
    side = scene.begin(attempt)
    (answer,), _ = scene.parties["a"].secure_answers([side.requests()["a"]])
    with pytest.raises(SecureSumError) as error:
        side.accept("a", answer)
    return str(error.value)


def test_a_party_joins_sums_of_its_own_run_and_config_alone(scene):
    attempt, change = scene.attempt, dataclasses.replace
    sums, alone = attempt.parameters, {"max_weight": 1}
    changes = [
        ({"run": "run-8"}, "needed run run-7"),
        ({"parameters": change(sums, bound=1 << 10)}, "by its own config"),
        ({"parameters": change(sums, **alone)}, "by its own config"),
        ({"parameters": change(sums, ring_bits=64)}, "by its own config"),
        ({"parameters": change(sums, noise_variance=9, **alone)}, "by its own config"),
    ]
    for i, (changed, why) in enumerate(changes):
        assert why in refusal_of(scene, change(attempt, number=i + 2, **changed))
    scene.play(scene.begin(change(attempt, number=20)), Step.MASKED)


def test_a_party_masks_for_the_weights_alone_that_it_was_sent(scene):
    side = scene.begin(scene.attempt)
    scene.play(side, Step.MASKED)
    others = {name: array + 1 for name, array in scene.weights.items()}
    side.use_weights(digest(others))
    request, places = side.requests()["a"], np.array([0])
    with pytest.raises(PartyError, match="weights with another hash"):
        scene.parties["a"].train_masked(1, places, scene.weights, request, 64)
    with pytest.raises(PartyError, match="in round 2"):
        scene.parties["a"].train_masked(2, places, scene.weights, request, 64)


def test_what_leaves_a_party_is_masked_and_the_same_when_it_is_asked_again(scene):
    side = scene.begin(scene.attempt)
    scene.play(side, Step.MASKED)
    side.use_weights(digest(scene.weights))
    asked = 1, np.array([0]), scene.weights, side.requests()["a"], 64
    report, update = scene.parties["a"].train_masked(*asked)
    assert np.isnan(report.loss).all()
    assert np.isnan(report.drift).all()
    assert report.n_samples.tolist() == [64]  # the next power of two of 40
    assert (update.n_samples, update.weights.keys()) == (1, {MASKED})
    vector = update.weights[MASKED]
    # uniform: the mean of n bytes has a deviation of 73.9 / √n around 127.5
    octets = vector.view(np.uint8)
    assert abs(octets.mean() - 127.5) < 5 * 73.9 / len(octets) ** 0.5
    again = scene.parties["a"].train_masked(*asked)[1].weights[MASKED]
    assert again.tobytes() == vector.tobytes()


def test_an_update_that_is_not_finite_is_refused_by_the_party_itself(scene):
    side = scene.begin(scene.attempt)
    scene.play(side, Step.MASKED)
    nan = {name: np.full_like(array, np.nan) for name, array in scene.weights.items()}
    side.use_weights(digest(nan))
    asked = 1, np.array([0]), nan, side.requests()["a"], 64
    report, update = scene.parties["a"].train_masked(*asked)
    assert update is None
    assert report.refused[0].code == "non_finite"


def test_a_party_checks_noise_and_budget_of_sums_itself(settings, digits, tmp_path):
    noise = {"mechanism": "distributed", "clip_norm": 1.0, "delta": 1e-3}
    noise |= {"noise_multiplier": 1.0, "epsilon": 10.0}
    own = {"privacy": noise, "clip_norm": None, "fusion_algorithm": "iter_avg"}
    scene = Scene(settings, digits, tmp_path, rounds=50, **own)
    attempt, change = scene.attempt, dataclasses.replace
    less = change(attempt.parameters, noise_variance=1 << 20)
    assert "by its own config" in refusal_of(scene, change(attempt, parameters=less))
    late = refusal_of(scene, change(attempt, number=2, round=50))
    assert "epsilon 49.4" in late
    nan = {name: np.full_like(array, np.nan) for name, array in scene.weights.items()}
    side = scene.begin(change(attempt, number=3))
    scene.play(side, Step.MASKED)
    side.use_weights(digest(nan))
    asked = 1, np.array([0]), nan, side.requests()["a"], 1
    report, update = scene.parties["a"].train_masked(*asked)
    assert report.refused == {}  # that it is absent would tell of its data
    assert update is not None


def test_what_sums_of_a_config_are_like_is_said_before_a_run(settings):
    def notes_of(n_parties, **more):
        parties = [{"name": f"p{i}", "data": "/x.npz"} for i in range(n_parties)]
        own = {"parties": parties, "secure_aggregation": True, "clip_norm": 1.0}
        config, found = parse(settings | own | more)
        assert found == []
        return describe_sums(config)

    # by hand: (2^31 - 1) / (3 · 256) has 22 bits, / (10 · 256) 20, of 1,000 only 14
    (note,) = notes_of(3)
    assert "for 3 of 3 parties or more (min_sum)" in note
    assert "in 32 bits, and is as fine as clip_norm / 2^21" in note
    assert "7 of 10 parties" in notes_of(10)[0]
    assert "5 of 10 parties" in notes_of(10, min_sum=5)[0]
    assert "in 64 bits" in notes_of(1000)[0]
    assert "its own from the sum" in notes_of(2)[1]
