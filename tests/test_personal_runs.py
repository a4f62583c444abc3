"""Runs with own layers and own models on Ray: kills, resumes, what parties keep."""

import json
import shutil
import textwrap

import numpy as np
import pytest
from safetensors import safe_open

import fedray
from fedray.ensemble import DataSource, evaluate_data
from fedray.errors import RunFolderError, Stopped
from fedray.federation.check import check
from fedray.federation.run import read_config
from fedray.party import STATE, PartyStateStore

pytestmark = pytest.mark.usefixtures("cluster")

MODELS = """
    import os
    import time

    from torch import nn

    FOLDER = {folder!r}

    class Killer(nn.Sequential):
        # dies, kills the aggregator, or trains for ever until the driver stops,
        # in the step of the file `victim`; once of all
        n_steps = 0

        def take_victim(self):
            try:
                victim, step = open(FOLDER + "/victim").read().split()
                if self.n_steps == int(step):
                    os.remove(FOLDER + "/victim")
                    return victim
            except FileNotFoundError:
                pass  # it is done, perhaps by the other party just now

        def forward(self, x):
            self.n_steps += self.training
            if self.training and (victim := self.take_victim()):
                if victim == "party":
                    os._exit(1)
                if victim == "driver":
                    open(FOLDER + "/hangs", "w").close()
                    time.sleep(1e6)
                import ray

                aggregator = ray.get_actor("aggregator:run", namespace="fedray")
                ray.kill(aggregator, no_restart=False)
            return super().forward(x)

    def net():
        return Killer(
            nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Linear(8, 10),
        )
"""
PERSONAL = {"personal": ["batch_norm", "4.*"]}
DITTO = {"ditto_lambda": 0.2}
ADAPTIVE = PERSONAL | {"aggregation": "adaptive", "max_rounds_apart": 2}


@pytest.fixture
def federation(settings, tmp_path):
    (tmp_path / "models.py").write_text(
        textwrap.dedent(MODELS.format(folder=str(tmp_path)))
    )
    return settings | {
        "architecture": f"{tmp_path}/models.py:net",
        "rounds": 4,
        "party_dir": str(tmp_path / "parties"),
    }


def run(config, tmp_path, **more):
    return fedray.run(config, run_dir=tmp_path / "run", **more)


def own_arrays(tmp_path):
    """What each party keeps of a run's last round."""
    (folder,) = (tmp_path / "parties").glob("run-*")
    states = PartyStateStore(folder / STATE, 3).recall(["a", "b"], 99)
    return [(state.round, state.arrays) for state in states]


def assert_same(ours, theirs):
    assert ours[0].keys() == theirs[0].keys()
    for name in ours[0]:
        assert np.array_equal(ours[0][name], theirs[0][name]), name
    for (round, arrays), (other_round, others) in zip(ours[1], theirs[1], strict=True):
        assert round == other_round == 4
        assert arrays.keys() == others.keys()
        for name in arrays:
            assert np.array_equal(arrays[name], others[name]), name
    assert ours[2] == theirs[2]


def outcome(config, tmp_path, **more):
    """Global weights, what parties keep, losses."""
    result = run(config, tmp_path, **more)
    return result.weights(), own_arrays(tmp_path), [r.loss for r in result.history]


def clear(tmp_path):
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "parties")


@pytest.mark.parametrize(
    ("more", "victims"),
    [
        (PERSONAL, ["party", "aggregator", "driver"]),
        (DITTO, ["party", "driver"]),
        (ADAPTIVE, ["party", "aggregator"]),
    ],
    ids=["personal", "ditto", "adaptive"],
)
def test_kills_and_resumes_give_the_same_bits(federation, tmp_path, more, victims):
    config = federation | more
    smooth = outcome(config, tmp_path)
    for victim in victims:
        clear(tmp_path)
        resume = victim == "driver"
        step = 10 if resume else 5  # of a round after the first, for there is a file
        (tmp_path / "victim").write_text(f"{victim} {step}")
        if resume:
            stop_in_training(config, tmp_path)
        assert_same(outcome(config, tmp_path, resume=resume), smooth)
        assert not (tmp_path / "victim").exists()


def stop_in_training(config, tmp_path):
    """Stop a run while a party is in the middle of a round."""

    def watch(progress):
        if (tmp_path / "hangs").exists():
            raise KeyboardInterrupt

    with pytest.raises(Stopped):
        run(config, tmp_path, watch=watch)


@pytest.mark.parametrize("victim", ["party", "aggregator"])
def test_whoever_is_killed_while_models_are_trained_on_they_are_the_same(
    federation, tmp_path, victim
):
    config = federation | PERSONAL | {"rounds": 2, "finetune_epochs": 2}
    # a takes 3 steps in a pass, b 4: the twelfth is one of the last two passes of both
    config["party_dir"] = str(tmp_path / "whole")
    smooth = fedray.run(config, run_dir=tmp_path / "peace")
    (tmp_path / "victim").write_text(f"{victim} 12")
    config["party_dir"] = str(tmp_path / "parties")
    killed = run(config, tmp_path)
    assert not (tmp_path / "victim").exists()
    assert killed.comparison == smooth.comparison
    for party in "ab":
        ours, theirs = (
            r.load(party=party).members[0].weights for r in (killed, smooth)
        )
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_party_that_comes_back_without_its_folder_is_told_of(federation, tmp_path):
    config = federation | PERSONAL | {"rounds": 2}
    run(config, tmp_path)
    shutil.rmtree(tmp_path / "parties")
    result = run(config | {"rounds": 3}, tmp_path, resume=True)
    text = json.dumps(result.history[-1].to_json())
    assert "starts its own layers from the global ones in round 3" in text
    assert "none are in party_dir on its node" in text


def test_a_party_predicts_with_its_own_model(federation, tmp_path):
    result = run(federation | PERSONAL | {"rounds": 2}, tmp_path)
    shared = result.weights()
    kept = dict(zip("ab", own_arrays(tmp_path), strict=True))
    for party in "ab":
        weights = result.load(party=party).members[0].weights
        for name, array in weights.items():
            own = kept[party][1].get(name, shared[name])
            assert np.array_equal(array, own), name
    with pytest.raises(RunFolderError, match="has no party 'c', but a, b"):
        result.load(party="c")
    shutil.rmtree(tmp_path / "parties")
    with pytest.raises(RunFolderError, match=r"nothing of party a is in .*own node"):
        result.load(party="a")


def test_the_global_model_says_what_was_never_trained(federation, tmp_path):
    notes = []
    config = federation | PERSONAL | {"rounds": 1}
    result = run(config, tmp_path, watch=lambda p: notes.extend(p.notes))
    text = "stay at their party; global_model has them as they were before round 1"
    assert any(text in note for note in notes)
    assert text in result.report.read_text()
    with safe_open(result.folder / "global_model.safetensors", "np") as file:
        assert file.metadata()["never_trained"].startswith("2.weight, 2.bias, 2.run")
    initial = fedray.load(result.folder).members[0].weights
    assert int(initial["2.num_batches_tracked"]) == 0


def test_check_tells_the_bytes_that_parties_keep(federation):
    config = read_config(federation | PERSONAL)
    # by hand: scale, shift, mean, variance of 8, a counter, and a layer of 8 x 10
    own = 4 * (4 * 8 + 8 * 10 + 10) + 8
    kept = f"{4 * own / 1e3:.1f} kB"  # of four rounds
    text = f"each party keeps about {kept} of its own layers or model in party_dir"
    assert any(note.startswith(text) for note in check(config).notes)


@pytest.mark.parametrize(
    "more", [{"finetune_epochs": 2}, PERSONAL | {"finetune_epochs": 1}]
)
def test_models_trained_on_after_the_last_round_are_the_parties_own(
    federation, tmp_path, more
):
    config = federation | more | {"rounds": 2}
    result = run(config, tmp_path)
    columns = result.comparison["columns"]
    assert columns["party"] == ["a", "b"]
    kinds = ["own"] if "personal" in more else ["global", "own"]
    losses = [name for name in columns if name.endswith("_loss")]
    assert losses == [f"{kind}_loss" for kind in kinds]
    shared = result.weights()
    for i, party in enumerate("ab"):
        model = result.load(party=party)
        own = model.members[0].weights
        assert any(not np.array_equal(own[name], shared[name]) for name in own)
        source = DataSource(federation["parties"][i]["data"])
        loss = evaluate_data(model, source).loss
        assert columns["own_loss"][i] == pytest.approx(loss, rel=1e-5)


def test_own_models_stand_beside_the_global_one(federation, tmp_path):
    result = run(federation | DITTO | {"rounds": 2, "compare": "local"}, tmp_path)
    columns = result.comparison["columns"]
    losses = [name for name in columns if name.endswith("_loss")]
    assert losses == ["alone_loss", "global_loss", "own_loss"]
    source = DataSource(federation["parties"][1]["data"])
    own = evaluate_data(result.load(party="b"), source)
    assert columns["own_loss"][1] == pytest.approx(own.loss, rel=1e-5)
    assert columns["own_accuracy"][1] == pytest.approx(own.accuracy)
