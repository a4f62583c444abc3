"""Trials of Ray Tune: the example of docs/sweeps.md, and trials that go on."""

import pytest

tune = pytest.importorskip("ray.tune", reason="the extra tune is not installed")

from ray.tune.schedulers import ASHAScheduler  # noqa: E402

import fedray  # noqa: E402
from fedray.checkpoint import RunFolder  # noqa: E402
from fedray.errors import ConfigError  # noqa: E402
from fedray.tune import trainable  # noqa: E402


@pytest.fixture
def storage(tmp_path):
    return tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0)


def test_mistakes_are_told_before_a_trial_starts(settings):
    with pytest.raises(ConfigError, match="unknown key 'nope'"):
        trainable(settings, nope=1)
    by_party = [
        {**party, "tags": {"site": party["name"]}} for party in settings["parties"]
    ]
    with pytest.raises(ConfigError):
        trainable({**settings, "parties": by_party, "groups": {"by": "site"}})


def test_asha_ends_trials_early_and_the_best_one_is_found(cluster, settings, storage):
    tuner = tune.Tuner(
        trainable(settings, rounds=6),
        param_space={"learning_rate": tune.grid_search([0.2, 1e-6])},
        tune_config=tune.TuneConfig(
            metric="loss",
            mode="min",
            max_concurrent_trials=1,
            scheduler=ASHAScheduler(grace_period=1, max_t=6, reduction_factor=2),
        ),
        run_config=storage,
    )
    results = tuner.fit()
    assert not results.errors
    best = results.get_best_result()
    assert best.config["learning_rate"] == 0.2
    assert best.metrics["round"] == 6
    rounds = sorted(result.metrics["round"] for result in results)
    assert rounds[0] < 6  # the other was ended early
    whole = fedray.run({**settings, "rounds": 6, "learning_rate": 0.2, "party_cpus": 0},
                       run_dir=storage.storage_path + "-alone")  # fmt: skip
    assert best.metrics["accuracy"] == whole.accuracy
    assert best.metrics["loss"] == whole.loss


def test_a_killed_trial_goes_on_from_its_checkpoint(
    cluster, settings, storage, tmp_path
):
    whole = fedray.run(
        {**settings, "rounds": 5, "party_cpus": 0}, run_dir=tmp_path / "a"
    )
    train = trainable(settings, rounds=5)
    marker = tmp_path / "killed"

    def killed_once(config):
        import os

        from fedray import tune as own

        report = own.Reporter.report

        def report_and_die(self, reports):
            report(self, reports)
            if self.n_reported >= 2 and not marker.exists():
                marker.touch()
                os._exit(1)

        own.Reporter.report = report_and_die
        try:
            train(config)
        finally:
            own.Reporter.report = report

    tuner = tune.Tuner(
        killed_once,
        run_config=tune.RunConfig(
            storage_path=storage.storage_path,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    (result,) = tuner.fit()
    assert marker.exists()
    assert result.metrics["round"] == 5
    assert result.metrics["loss"] == whole.loss
    assert RunFolder(result.metrics["folder"]).last_saved_round() == 5
