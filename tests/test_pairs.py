"""Settings in pairs: what runs is resumed to the same bits, the rest is refused before.

`make test` plays a share of the rows, another one every day; `make pairs` plays all
rows of pairs, then of triples.
"""

import contextlib
import math
import os
import textwrap
import time

import numpy as np
import pytest
from support.local_rounds import group_of
from support.pairs import Settings, covering_rows, values_of

import fedray
from fedray.checkpoint import RunFolder
from fedray.config import AttackSpec, FederationConfig, keys_of
from fedray.data import MnistPytorch
from fedray.errors import JoinFailed, Stopped
from fedray.federation import read_config

N_PARTIES = 7  # as many as bulyan needs against one hostile party
STRENGTH = int(os.environ.get("FEDRAY_PAIRS", "0"))  # 2, 3: all rows; 0: a share
SEED = int(os.environ.get("FEDRAY_PAIRS_SEED", time.time() // 86400))
BUDGET_S = 45.0  # of the share; rows that have begun are ended
AT_A_PARTY = {  # keys that decide what a party learns in a round
    *("architecture", "num_parties", "partition", "seed", "epochs", "batch_size"),
    *("drop_last", "learning_rate", "optimizer", "optimizer_args", "loss"),
    "proximal_mu",
}
LINEAR = """
    from torch import nn

    def linear():
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> dict[str, list]:
    """Values of the keys that need files, or are the same in all rows."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "linear.py").write_text(textwrap.dedent(LINEAR))
    (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
    parties = []
    for i in range(N_PARTIES):
        rows = slice(20 * i, 20 * i + 12 + i)
        tests = slice(5 * i, 5 * i + 5)
        np.savez(folder / f"{i}.npz", x_train=x[rows], y_train=y[rows],
                 x_test=x_test[tests], y_test=y_test[tests])  # fmt: skip
        fields = {"region": "ab"[i % 2]}
        data = str(folder / f"{i}.npz")
        parties.append({"name": f"party-{i}", "data": data, "fields": fields})
    kinds = keys_of(AttackSpec)["kind"].choices
    attacks = [{"kind": kind, "parties": ["party-1"]} for kind in kinds]
    schemes = [{"scheme": "iid"}, {"scheme": "dirichlet"}, {"scheme": "shards"}]
    one = ["architecture", "num_parties", "rounds", "data_handler", "learning_rate"]
    same = [f"{folder}/linear.py:linear", N_PARTIES, 3, "mnist_pytorch", 0.05]
    others = ("model_file", "name", "party_dir", "distill", "distill_data", "doc2vec")
    others += ("data_args",)  # its handler takes none
    others += ("privacy", "dp_sgd")  # secret noise: two runs differ
    others += ("target",)  # early_stopping stops as it does
    others += ("edges",)  # each is a process of its own
    return dict(zip(one, ([value] for value in same), strict=True)) | {
        "model_type": ["pytorch"],
        "parties": [(), parties],
        "partition": [None, *({"samples_per_party": 12} | s for s in schemes)],
        "groups": [None, {"by": "region"}, {"by": "similarity"},
                   {"by": "similarity", "k": 2}],
        "attack": [None, *attacks],
        "test_data": [None, str(folder / "0.npz")],
        "early_stopping": [None, {"metric": "loss", "patience": 1}],
        "keep_best": [None, {"metric": "loss"}],
        "track": ["none"],
        "virtual_clock": [None, {"sigma": 1.0}],
        "secure_aggregation": [False],
        "batch_size": [4, 5],  # a party has 12 samples and more
        **{name: [None] for name in others},
    }  # fmt: skip


@pytest.mark.parametrize(
    "key", keys_of(FederationConfig).values(), ids=lambda k: k.name
)
def test_every_key_says_what_is_played_with_the_others(key, ground):
    if key.name not in ground:
        values = values_of(key)
        assert len(values) > (key.name != "selection")
        for value in values:
            FederationConfig(**({key.name: value} if value is not None else {}))


@pytest.mark.usefixtures("cluster")
def test_settings_in_pairs(ground, tmp_path, capsys):
    settings, refused, begun = Settings(ground), {}, time.monotonic()
    n_rows = 0
    for strength in range(2, max(2, STRENGTH) + 1):
        for row in covering_rows(settings, strength, SEED, refused):
            if not STRENGTH and time.monotonic() - begun > BUDGET_S:
                break
            n_rows += 1
            try:
                play(settings.build(row), tmp_path / f"{strength}-{n_rows}")
            except BaseException as error:
                error.add_note(f"seed {SEED}, row {n_rows}: {row}")
                raise
    with capsys.disabled():
        print(f" {n_rows} rows of settings, FEDRAY_PAIRS_SEED={SEED}", end="")
    assert all(refused.values())


def play(settings: dict, folder) -> None:
    """A run, and the same run stopped and resumed; what must hold of both."""
    config = read_config(settings)
    try:
        whole = fedray.run(settings, run_dir=folder / "whole")
    except JoinFailed:  # refused by a party, with its name and the reason
        assert not RunFolder(folder / "whole").history()
        return
    assert_sound(config, whole, folder / "whole")
    with contextlib.suppress(Stopped):
        fedray.run(settings, run_dir=folder / "cut", watch=stop_after_a_round)
    again = fedray.run(settings, run_dir=folder / "cut", resume=True)
    assert_sound(config, again, folder / "cut")
    is_timed = config.aggregation == "buffered" and config.virtual_clock is None
    if config.over_select == 1 and not is_timed:  # else it is a matter of time
        for group in whole.models:
            for best in {False, group in whole.best}:
                ours = whole.weights(group, best=best)
                same = again.weights(group, best=best)
                assert list(ours) == list(same)
                for name in ours:
                    np.testing.assert_array_equal(ours[name], same[name])
    if config.partition is not None and not config.has_member_models:
        assert_stacked_is_one_by_one(settings)


def stop_after_a_round(progress) -> None:
    if progress.reports:
        raise KeyboardInterrupt


def assert_sound(config: FederationConfig, result, folder) -> None:
    """The history is complete, its numbers add up, there is a model for each group."""
    groups = RunFolder(folder).groups()
    assert set(result.models) - {None} == set(groups) - {None}
    for group in groups:
        reports = [r for r in result.history if r.group == group]
        n_rounds = reports[-1].round if reports[-1].stop_reason else config.rounds
        assert [r.round for r in reports] == list(range(1, n_rounds + 1))
        assert (group in result.best) == (config.keep_best is not None)
        for report in reports:
            assert report.chosen >= report.reported >= report.fused >= 0
            assert report.refused <= report.reported
            assert len(report.parties) == min(report.chosen, config.history_parties)
            fused = [p for p in report.parties if p.outcome.startswith("fused")]
            assert len(fused) == report.fused
            assert report.loss is None or math.isfinite(report.loss)
        outcomes = {p.outcome for p in reports[-1].parties}
        if not any(outcome.startswith("late") for outcome in outcomes):
            assert reports[-1].loss is not None  # else who evaluates may still train
        assert all(np.isfinite(a).all() for a in result.weights(group).values())


def assert_stacked_is_one_by_one(settings: dict) -> None:
    """Parties that train together learn what they learn one after another."""
    own = {key: settings[key] for key in AT_A_PARTY & settings.keys()}
    parties, updates = np.arange(3), []
    for stacked in ("auto", "false"):
        group, weights = group_of(own | {"stacked": stacked}, range(N_PARTIES))
        updates.append(group.train(1, parties, weights)[1])
    together, alone = updates
    assert (together.n_samples, together.n_parties) == (alone.n_samples, 3)
    for name, array in together.weights.items():
        np.testing.assert_allclose(array, alone.weights[name], rtol=1e-4, atol=1e-6)
