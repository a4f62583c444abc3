"""Nothing leaves a party but weights and reports."""

import io
import pickle
import sys

import numpy as np
import pytest
import ray

from fedray import data, models
from fedray.config import parse
from fedray.messages import PartyInfo, Report, Score, Update
from fedray.party import GroupPlan, PartyGroup
from fedray.placement import locate_actor
from fedray.weights import mismatch


class Watched(PartyGroup):
    """A party that keeps a list of everything that leaves its process."""

    def __init__(self, plan, here):
        super().__init__(plan, here)
        self.left = []
        put = ray.put

        def watched_put(value, **options):
            self.left.append(("put", value))
            return put(value, **options)

        ray.put = watched_put

    def called(self, method, *arguments):
        try:
            answer = getattr(super(), method)(*arguments)
        except Exception as error:
            self.left.append((method, error))
            raise
        self.left.append((method, answer))
        return answer

    def join(self):
        return self.called("join")

    def train(self, round, parties, sent):
        return self.called("train", round, parties, sent)

    def evaluate(self, sent):
        return self.called("evaluate", sent)

    def everything_that_left(self):
        x_train = self.local_data.train.x.numpy()
        return [pickle.dumps(item) for item in self.left], x_train.tobytes()


@pytest.mark.usefixtures("cluster")
def test_no_array_of_samples_leaves_a_party_actor(settings):
    config, found = parse(settings)
    assert found == []
    blueprint, weights = models.named("pytorch").read(config)
    plan = GroupPlan("a", range(1), config, blueprint, data.named(config.data_handler))
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    actor = ray.remote(Watched).remote(plan, locate_actor)
    ray.get(actor.join.remote())
    for round in (1, 2):
        ray.get(actor.train.options(num_returns=2).remote(*asked(round, weights)))
    ray.get(actor.evaluate.remote(ray.put(weights)))
    with pytest.raises(ray.exceptions.RayTaskError):
        ray.get(actor.train.remote(3, np.arange(1), {"other": np.zeros(3)}))
    left, x_train = ray.get(actor.everything_that_left.remote())
    ray.kill(actor)
    row = x_train[: 784 * 4]
    kinds = []
    for item in left:
        assert row not in item
        method, answer = pickle.load(io.BytesIO(item))
        kinds.append((method, type(answer).__name__))
        for part in answer if isinstance(answer, tuple) else (answer,):
            assert_only_reports_and_weights(part, blueprint.schema)
    assert kinds == [
        ("join", "PartyInfo"),
        ("train", "tuple"),
        ("train", "tuple"),
        ("evaluate", "Score"),
        ("train", "PartyError"),
    ]


def asked(round, weights):
    return round, np.arange(1), ray.put(weights)


def assert_only_reports_and_weights(part, schema):
    if isinstance(part, Update):
        assert mismatch(part.weights, schema) is None
    elif isinstance(part, PartyInfo | Report | Score):
        values = vars(part)
        if isinstance(part, Score):
            numbers = part.scores._asdict()
            columns = numbers.pop("by_party")._asdict()
            values = {**values, "scores": None, **numbers, **columns}
        for value in values.values():
            small = isinstance(value, np.ndarray) and value.shape == (1,)  # one party
            small |= isinstance(value, tuple) and all(type(n) is int for n in value)
            small |= isinstance(value, bytes) and len(value) <= 32  # a public key
            assert small or value == {} or isinstance(value, str | int | float | None)
    else:
        assert "other" in str(part)  # an error: names and shapes, no values
        assert len(str(part)) < 500
