"""Layers that stay at their party, and models of its own, against torch by hand."""

import copy
import shutil
import textwrap

import numpy as np
import pytest
import torch
from support.comparison import assert_close
from torch import nn

from fedray import data, models
from fedray.config import parse
from fedray.errors import ConfigError
from fedray.messages import ActorLocation
from fedray.party import GroupPlan, PartyGroup
from fedray.policy import seed_for

pytestmark = pytest.mark.usefixtures("one_thread")
MODELS = """
    from torch import nn

    def plain():
        return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))

    def norm():
        return nn.Sequential(
            nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
        )

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.out(self.b(self.a(x)))
"""
HEAD = ["2.weight", "2.bias"]


@pytest.fixture
def tiny(tmp_path):
    """Three parties of unlike size, and a model of two layers."""
    draw = np.random.default_rng(7)
    (tmp_path / "models.py").write_text(textwrap.dedent(MODELS))
    parties = []
    for name, n in (("a", 12), ("b", 21), ("c", 9)):
        file = tmp_path / f"{name}.npz"
        x, y = draw.normal(size=(n, 6)).astype("f4"), draw.integers(0, 3, n)
        np.savez(file, x_train=x, y_train=y, x_test=x[:4] + 1, y_test=y[:4])
        parties.append({"name": name, "data": str(file)})
    return {
        "architecture": f"{tmp_path}/models.py:plain",
        "rounds": 3,
        "epochs": 2,
        "learning_rate": 0.1,
        "batch_size": 8,
        "loss": "cross_entropy",
        "data_handler": "npz",
        "party_dir": str(tmp_path / "keep"),
        "stacked": "false",
        "parties": parties,
    }


class Federation:
    """Parties as plain objects, and FedAvg's rounds as plain calls."""

    def __init__(self, settings):
        self.config, found = parse(settings)
        assert found == []
        self.blueprint, self.initial = models.named(self.config.model_type).read(
            self.config
        )
        names = self.blueprint.round_schema(())
        self.frozen = {name: self.initial[name] for name in self.blueprint.personal}
        self.shared = {name: self.initial[name] for name in names}
        self.notes: list[dict] = []
        self.start()

    def start(self):
        """Make new actors of the parties."""
        handler = data.named(self.config.data_handler)
        self.parties = [
            PartyGroup(
                GroupPlan(
                    party.name,
                    range(i, i + 1),
                    self.config,
                    self.blueprint,
                    handler,
                    own_folder=f"{self.config.party_dir}/run",
                ),
                lambda: ActorLocation("here"),
            )
            for i, party in enumerate(self.config.parties)
        ]

    def call(self, place, method, *arguments):
        frozen = self.frozen
        return self.parties[place].with_frozen(frozen, method, *arguments)

    def train(self, round):
        answers = []
        for i in range(len(self.parties)):
            report, update = self.call(i, "train", round, np.array([i]), self.shared)
            weights = {name: a.copy() for name, a in update.weights.items()}
            answers.append((report, update.n_samples, weights))
        self.notes.append({k: v for r, *_ in answers for k, v in r.notes.items()})
        return [(n_samples, weights) for _, n_samples, weights in answers]

    def round(self, number):
        self.shared = mean(self.train(number))

    def run(self):
        for number in range(1, self.config.rounds + 1):
            self.round(number)
        return self

    def own(self, name):
        """What a party keeps."""
        (state,) = self.parties[0].personal.store.recall([name], 10**6)
        return state.arrays


def mean(updates):
    n_all = sum(n for n, _ in updates)
    return {
        name: (sum(n * w[name].astype("f8") for n, w in updates) / n_all).astype("f4")
        for name in updates[0][1]
    }


class ByHand:
    """The same parties in plain torch."""

    def __init__(self, settings):
        self.config = parse(settings)[0]
        torch.manual_seed(self.config.seed)
        self.first = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        self.first.load_state_dict(
            {
                name: torch.from_numpy(array)
                for name, array in models.named("pytorch").read(self.config)[1].items()
            }
        )
        self.samples = {}
        for party in self.config.parties:
            with np.load(party.data) as file:
                x, y = file["x_train"], file["y_train"]
            self.samples[party.name] = torch.from_numpy(x), torch.from_numpy(y)

    def train(self, net, party, seed, **more):
        """Train in place; `pull` is (lambda, global tensors by name)."""
        epochs, names, pull = map(more.get, ("epochs", "names", "pull"))
        x, y = self.samples[party]
        named = dict(net.named_parameters())
        chosen = [named[name] for name in names or named]
        optimizer = torch.optim.SGD(chosen, lr=self.config.learning_rate)
        order = np.random.default_rng(seed)
        for _ in range(epochs or self.config.epochs):
            for rows in torch.from_numpy(order.permutation(len(x))).split(8):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                for name, parameter in named.items():
                    if pull:
                        strength, anchor = pull
                        gap = parameter.detach() - anchor[name]
                        parameter.grad.add_(gap, alpha=strength)
                optimizer.step()

    def load(self, arrays):
        net = copy.deepcopy(self.first)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        net.load_state_dict(tensors, strict=False)
        return net

    def seed(self, round, party):
        return seed_for(self.config.seed, round, party)


def arrays_of(net, names=None):
    state = net.state_dict()
    return {name: state[name].numpy().copy() for name in names or state}


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name


def test_fedper_by_hand(tiny):
    federation = Federation(tiny | {"personal": ["2.*"]}).run()
    hand = ByHand(tiny)
    shared, heads = arrays_of(hand.first, ["0.weight", "0.bias"]), {}
    for round in (1, 2, 3):
        updates = []
        for party, (x, _) in hand.samples.items():
            net = hand.load({**shared, **heads.get(party, {})})
            hand.train(net, party, hand.seed(round, party))
            heads[party] = arrays_of(net, HEAD)
            updates.append((len(x), arrays_of(net, shared)))
        shared = mean(updates)
    assert_same(federation.shared, shared)
    for party, head in heads.items():
        assert_same(federation.own(party), head)
    assert federation.notes == [{}, {}, {}]


def test_fedrep_trains_own_layers_first_and_then_the_shared_ones(tiny):
    federation = Federation(tiny | {"personal": ["2.*"], "personal_epochs": 3}).run()
    hand = ByHand(tiny)
    body = ["0.weight", "0.bias"]
    shared, heads = arrays_of(hand.first, body), {}
    for round in (1, 2, 3):
        updates = []
        for party, (x, _) in hand.samples.items():
            net = hand.load({**shared, **heads.get(party, {})})
            seed = hand.seed(round, party)
            first = np.random.SeedSequence([seed, 3]).generate_state(1, np.uint64)[0]
            hand.train(net, party, int(first >> 1), epochs=3, names=HEAD)
            heads[party] = arrays_of(net, HEAD)
            hand.train(net, party, seed, names=body)
            updates.append((len(x), arrays_of(net, body)))
        shared = mean(updates)
    assert_same(federation.shared, shared)
    for party, head in heads.items():
        assert_same(federation.own(party), head)


def test_ditto_by_hand(tiny):
    federation = Federation(tiny | {"ditto_lambda": 0.5}).run()
    hand = ByHand(tiny)
    shared, own = arrays_of(hand.first), {}
    for round in (1, 2, 3):
        updates, anchor = [], hand.load(shared).state_dict()
        for party, (x, _) in hand.samples.items():
            seed = hand.seed(round, party)
            net = hand.load(shared)
            hand.train(net, party, seed)
            updates.append((len(x), arrays_of(net)))
            net = hand.load(own.get(party, shared))
            hand.train(net, party, seed, pull=(0.5, anchor))
            own[party] = arrays_of(net)
        shared = mean(updates)
    assert_same(federation.shared, shared)
    for party, arrays in own.items():
        assert_same(federation.own(party), arrays)


def test_ditto_without_pull_is_training_alone(tiny):
    federation = Federation(tiny | {"ditto_lambda": 0.0}).run()
    plain = Federation(tiny).run()
    assert_same(federation.shared, plain.shared)
    for party in tiny["parties"]:
        shutil.rmtree(tiny["party_dir"] + "/alone", ignore_errors=True)
        alone = Federation(tiny | {"parties": [party]}).run()
        assert_same(federation.own(party["name"]), alone.shared)


def test_personal_of_nothing_is_fedavg(tiny):
    assert parse(tiny | {"personal": []})[0] == parse(tiny)[0]
    assert_same(
        Federation(tiny | {"personal": []}).run().shared, Federation(tiny).run().shared
    )


@pytest.mark.parametrize("more", [{"personal": ["2.*"]}, {"ditto_lambda": 0.3}])
def test_stacked_parties_get_what_they_get_alone(tiny, more, tmp_path):
    source = tmp_path / "all.npz"
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(200, 6)).astype("f4"), draw.integers(0, 3, 200)
    np.savez(source, x_train=x, y_train=y, x_test=x[:40], y_test=y[:40])
    del tiny["parties"]
    tiny |= more | {"partition": {"source": str(source)}, "num_parties": 10}
    results = []
    for stacked in ("true", "false"):
        shutil.rmtree(tiny["party_dir"], ignore_errors=True)
        config, found = parse(tiny | {"stacked": stacked})
        assert found == []
        blueprint, initial = models.named("pytorch").read(config)
        plan = GroupPlan(
            "g", range(10), config, blueprint, data.named("npz"),
            own_folder=f"{config.party_dir}/run",
        )  # fmt: skip
        group = PartyGroup(plan, lambda: ActorLocation("here"))
        frozen = {name: initial[name] for name in blueprint.personal}
        shared = {name: initial[name] for name in blueprint.round_schema(())}
        for round in (1, 2):
            ask = "train", round, np.arange(10), shared
            _, update = group.with_frozen(frozen, *ask)
            shared = {name: array.copy() for name, array in update.weights.items()}
        names = [config.party_name(i) for i in range(10)]
        own = [state.arrays for state in group.personal.store.recall(names, 9)]
        results.append((shared, own, group.local_data.model._stack is not None))
    (stacked, own_stacked, is_stacked), (single, own_single, _) = results
    assert is_stacked
    assert_close(stacked, single, 1e-5)
    for a, b in zip(own_stacked, own_single, strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize(
    "more",
    [
        {"personal": ["2.*"]},
        {"personal": ["2.*"], "personal_epochs": 1},
        {"ditto_lambda": 0.5},
    ],
)
def test_a_repeated_round_has_the_same_bits(tiny, more):
    smooth = Federation(tiny | more).run()
    kept = {party: smooth.own(party) for party in "abc"}
    shutil.rmtree(tiny["party_dir"])
    again = Federation(tiny | more)
    again.round(1)
    again.train(2)  # whose updates are lost
    again.start()
    again.round(2)
    again.round(3)
    assert_same(again.shared, smooth.shared)
    for party in "abc":
        assert_same(again.own(party), kept[party])


def test_a_party_without_its_folder_starts_from_the_global_layers_and_says_so(tiny):
    federation = Federation(tiny | {"personal": ["2.*"]})
    federation.round(1)
    shutil.rmtree(tiny["party_dir"])
    federation.start()
    updates = federation.train(2)
    why = "none are in party_dir on its node"
    text = f"starts its own layers from the global ones in round 2: {why}"
    assert federation.notes[-1] == {0: text, 1: text, 2: text}
    hand = ByHand(tiny)
    net = hand.load(federation.shared)  # its head is the initial one
    hand.train(net, "b", hand.seed(2, "b"))
    assert_same(updates[1][1], arrays_of(net, ["0.weight", "0.bias"]))


def test_every_party_is_scored_with_its_own_layers(tiny):
    federation = Federation(tiny | {"personal": ["2.*"]}).run()
    hand = ByHand(tiny)
    for i, party in enumerate("abc"):
        with np.load(tiny["parties"][i]["data"]) as file:
            x, y = torch.from_numpy(file["x_test"]), torch.from_numpy(file["y_test"])
        net = hand.load({**federation.shared, **federation.own(party)})
        ask = "evaluate", federation.shared, (0, 1), None, 3
        score = federation.call(i, *ask)
        loss = nn.functional.cross_entropy(net(x), y)
        assert score.scores.loss == pytest.approx(float(loss), rel=1e-6)
        right = (net(x).argmax(1) == y).double().mean()
        assert score.scores.accuracy == float(right)


def test_batch_norm_names_parameters_and_buffers(tiny):
    tiny["architecture"] = tiny["architecture"].replace("plain", "norm")
    federation = Federation(tiny | {"personal": ["batch_norm"]}).run()
    own = ["1.weight", "1.bias", "1.running_mean", "1.running_var"]
    own.append("1.num_batches_tracked")
    assert list(federation.blueprint.personal) == own
    assert list(federation.shared) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    by_pattern = Federation(tiny | {"personal": ["1.*"]})
    assert by_pattern.blueprint.personal == federation.blueprint.personal
    means = [federation.own(party)["1.running_mean"] for party in "abc"]
    assert not np.array_equal(means[0], means[1])
    assert int(federation.own("a")["1.num_batches_tracked"]) == 3 * 2 * 2


def test_tied_layers_are_personal_under_all_their_names(tiny):
    tiny["architecture"] = tiny["architecture"].replace("plain", "Tied")
    federation = Federation(tiny | {"personal": ["b.*"]}).run()
    assert list(federation.blueprint.personal) == ["a.weight", "b.bias"]
    assert list(federation.shared) == ["a.bias", "out.weight", "out.bias"]


def test_proximal_mu_pulls_shared_layers_alone(tiny):
    more = {"personal": ["2.*"], "proximal_mu": 0.7, "rounds": 1}
    federation = Federation(tiny | more).run()
    hand, updates = ByHand(tiny), []
    for party, (x, _) in hand.samples.items():
        net = copy.deepcopy(hand.first)
        anchor = dict(copy.deepcopy(net).state_dict())
        body = {n: anchor[n] for n in ("0.weight", "0.bias")}
        live = dict(net.named_parameters())
        # the pull of a head toward itself is none
        anchor |= {name: live[name].detach() for name in HEAD}
        hand.train(net, party, hand.seed(1, party), pull=(0.7, anchor))
        updates.append((len(x), arrays_of(net, body)))
    assert_same(federation.shared, mean(updates))


def test_what_is_not_finite_does_not_replace_what_a_party_has(tiny):
    federation = Federation(tiny | {"personal": ["2.*"]})
    federation.round(1)
    before = federation.own("a")
    good = federation.shared
    federation.shared = {n: a * np.float32(1e38) for n, a in good.items()}
    federation.train(2)
    assert_same(federation.own("a"), before)
    assert "is not finite" in federation.notes[-1][0]


def test_a_model_that_finetuning_breaks_stays_what_the_last_round_left(tiny):
    # the factor is of the scheduler, which finetune_epochs leave out
    still = {"scheduler": "ConstantLR", "scheduler_args": {"factor": 1e-31}}
    more = {"personal": ["2.*"], "finetune_epochs": 3, "learning_rate": 1e30}
    federation = Federation(tiny | more | still).run()
    before = federation.own("a")
    group = federation.parties[0]
    arguments = np.array([0]), federation.shared, federation.shared, 3
    answer = federation.call(0, "compare", *arguments)
    (state,) = group.personal.finetuned.recall(["a"], 10**6)
    assert_same(state.arrays, {**federation.shared, **before})
    assert "what finetune_epochs made of it is not finite" in answer.notes["a"]


@pytest.mark.parametrize(
    ("more", "needed"),
    [
        ({"personal": ["*"]}, "matches all that trains, so nothing would be shared"),
        ({"personal": ["fc.*"]}, "'fc.*' matches no tensor of the model's 4, such as"),
        ({"personal": ["batch_norm"]}, "the model has no batch_norm"),
        (
            {"personal": ["0.*"], "trainable": ["2.*"]},
            "matches only tensors that are frozen",
        ),
    ],
)
def test_patterns_that_make_no_sense_are_refused(tiny, more, needed):
    with pytest.raises(ConfigError) as error:
        Federation(tiny | more)
    assert needed in str(error.value)


@pytest.mark.parametrize(
    ("more", "needed"),
    [
        ({"personal": ["2.*"], "test_data": "/x.npz"}, "test_data does not go with"),
        ({"personal_epochs": 2}, "personal_epochs has no effect without personal"),
        ({"personal": ["2.*"], "ditto_lambda": 1.0}, "ditto_lambda has no effect with"),
        ({"ditto_lambda": -1.0}, "ditto_lambda"),
        ({"ditto_lambda": float("nan")}, "ditto_lambda"),
        ({"ditto_lambda": 1.0, "fusion_algorithm": "ensemble"}, "other than ensemble"),
        ({"personal": ["2.*"], "fusion_algorithm": "ensemble"}, "other than ensemble"),
        ({"personal": ["2.*"], "fusion_algorithm": "best_model"}, "best_model"),
        ({"personal": ["2.*"], "model_type": "sklearn"}, "pytorch, keras"),
        ({"ditto_lambda": 1.0, "model_type": "sklearn"}, "pytorch, keras"),
        ({"personal": "2.*"}, "personal"),
        ({"personal": [3]}, "personal"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tiny, more, needed):
    config, mistakes = parse(tiny | more)
    assert any(needed in mistake for mistake in mistakes + config.problems())


KERAS = """
    import keras

    def net():
        return keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(5, activation="relu", name="body"),
                keras.layers.BatchNormalization(name="bn"),
                keras.layers.Dense(3, name="head"),
            ]
        )
"""


def test_keras_layers_stay_at_their_party_too(tiny, tmp_path):
    (tmp_path / "net.py").write_text(textwrap.dedent(KERAS))
    keras = {
        "model_type": "keras",
        "architecture": f"{tmp_path}/net.py:net",
        "loss": "sparse_categorical_crossentropy",
        "loss_args": {"from_logits": True},
        "rounds": 2,
    }
    del tiny["stacked"]
    only_a = {"parties": tiny["parties"][:1]}
    alone = Federation(tiny | keras | only_a).run().shared
    # of one party nothing but what travels differs
    layers = {"personal": ["head.*", "batch_norm"]}
    federation = Federation(tiny | keras | only_a | layers).run()
    assert list(federation.shared) == ["body.kernel", "body.bias"]
    together = {**federation.shared, **federation.own("a")}
    assert_same({name: together[name] for name in alone}, alone)
    shutil.rmtree(tiny["party_dir"])
    ditto = Federation(tiny | keras | {"ditto_lambda": 0.0}).run()
    assert_same(ditto.own("a"), alone)
    shutil.rmtree(tiny["party_dir"])
    rep = {"personal": ["head.*"], "personal_epochs": 2, "rounds": 1}
    federation = Federation(tiny | keras | only_a | rep).run()
    head, body = federation.own("a"), federation.shared
    assert not np.array_equal(head["head.kernel"], federation.initial["head.kernel"])
    assert not np.array_equal(body["body.kernel"], federation.initial["body.kernel"])
