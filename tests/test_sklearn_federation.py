"""Federations of scikit-learn models on the session's cluster, by the public door."""

import json
import textwrap

import numpy as np
import pytest
from support.cluster_runs import kill_once
from support.comparison import assert_close

pytest.importorskip("sklearn", reason="the extra sklearn is not installed")
pytest.importorskip("skops", reason="the extra sklearn is not installed")

import skops.io
from sklearn.naive_bayes import GaussianNB

import fedray
from fedray.errors import JoinFailed, RunFolderError
from fedray.federation import read_config
from fedray.federation.check import check

pytestmark = pytest.mark.usefixtures("cluster")

MINE = """
    import numpy as np
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import SGDClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def pipeline():
        return make_pipeline(
            SimpleImputer(), StandardScaler(), SGDClassifier(loss="log_loss")
        )

    class Rows:
        def __init__(self, path):
            file = np.load(path)
            self.x, self.y = file["x"], file["y"]

        def get_data(self):
            return (self.x[:-20], self.y[:-20]), (self.x[-20:], self.y[-20:])
"""


def rows(seed, n=80, n_columns=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, n_columns)) * [1, 10, 100, 1][:n_columns]
    return x, (x[:, 0] > 0).astype(int) + (x[:, 1] > 0) * (seed == 2)


@pytest.fixture
def settings(tmp_path):
    """Two parties; label 2 is at the second alone, and some numbers are missing."""
    (tmp_path / "mine.py").write_text(textwrap.dedent(MINE))
    parties = []
    for seed, name in ((1, "a"), (2, "b")):
        x, y = rows(seed)
        x[::7, 1] = np.nan
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
        parties.append({"name": name, "data": str(tmp_path / f"{name}.npz")})
    return {
        "model_type": "sklearn",
        "architecture": f"{tmp_path}/mine.py:pipeline",
        "data_handler": f"{tmp_path}/mine.py:Rows",
        "parties": parties,
        "rounds": 3,
    }


def test_a_name_alone_makes_a_federation_of_digits(tmp_path):
    settings = {
        "model_type": "sklearn",
        "architecture": "sklearn.linear_model.SGDClassifier",
        "partition": {"samples_per_party": 100},
        "num_parties": 3,
        "rounds": 2,
    }
    assert check(read_config(settings)).problems == []
    result = fedray.run(settings, run_dir=tmp_path / "run")
    assert result.model == tmp_path / "run/global_model.skops"
    assert result.accuracy > 0.6
    estimator = skops.io.load(result.model)
    assert estimator.predict(np.zeros((2, 784))).shape == (2,)


def test_a_pipeline_is_killed_and_resumed_to_the_same_bits(settings, tmp_path):
    settings["rounds"] = 40  # they are short: one of them is seen
    whole = fedray.run(settings, run_dir=tmp_path / "whole")
    kill = kill_once("party:killed:b", lambda p: 2 <= p.round < 40)
    killed = fedray.run(settings, run_dir=tmp_path / "killed", watch=kill)
    assert kill.done
    assert_close(killed.weights(), whole.weights(), 0)
    fedray.run(settings, run_dir=tmp_path / "resumed", rounds=7)
    resumed = fedray.run(settings, run_dir=tmp_path / "resumed", resume=True)
    assert_close(resumed.weights(), whole.weights(), 0)
    estimator = skops.io.load(whole.model, trusted=["numpy.dtype"])
    assert estimator.classes_.tolist() == [0, 1, 2]
    statistics = tmp_path / "resumed/statistics.json"
    statistics.write_text(statistics.read_text().replace("mean", "man"))
    with pytest.raises(RunFolderError, match=r"statistics\.json is lost or altered"):
        fedray.run(settings, run_dir=tmp_path / "resumed", resume=True, rounds=41)


@pytest.mark.parametrize(
    "more",
    [
        {"aggregation": "adaptive"},
        {"fusion_algorithm": "median"},
        {"late": "next_round"},
    ],
    ids=str,
)
def test_gaussian_naive_bayes_goes_with_any_way_of_rounds(settings, more, tmp_path):
    for seed, party in enumerate(settings["parties"], 1):
        x, y = rows(seed)
        np.savez(party["data"], x=x, y=y)
    settings |= {"architecture": "GaussianNB", **more}
    result = fedray.run(settings, run_dir=tmp_path / "run", rounds=2)
    ours = skops.io.load(result.model)
    parts = [rows(seed) for seed in (1, 2)]
    x, y = (np.concatenate([part[i][:-20] for part in parts]) for i in (0, 1))
    central = GaussianNB().fit(x, y)
    assert result.history[-1].loss is not None
    np.testing.assert_allclose(ours.theta_, central.theta_, rtol=1e-9)
    np.testing.assert_allclose(ours.var_, central.var_, rtol=1e-9)


def test_parties_of_other_columns_are_named_before_round_1(settings, tmp_path):
    x, y = rows(2, n_columns=4)
    np.savez(settings["parties"][1]["data"], x=x, y=y)
    with pytest.raises(JoinFailed, match=r"party [ab].*3 columns|x.*4 columns"):
        fedray.run(settings, run_dir=tmp_path / "run")
    assert any("columns" in one for one in check(read_config(settings)).problems)


def test_history_of_clusters_has_a_loss_and_no_accuracy(settings, tmp_path):
    for seed, party in enumerate(settings["parties"], 1):
        np.savez(party["data"], x=rows(seed)[0], y=rows(seed)[1])
    settings |= {
        "architecture": "MiniBatchKMeans", "architecture_args": {"n_clusters": 4},
    }  # fmt: skip
    fedray.run(settings, run_dir=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/history.jsonl").open()]
    assert lines[-1]["loss"] < lines[0]["loss"] * 1.01
    assert lines[-1]["accuracy"] is None
