"""Parties come and go at random while processes are killed and runs are resumed.

Whatever happens in whichever order: the config that a run leaves behind gives the same
rounds and the same bits. `make test` plays a few turns, `make chaos` more.
"""

import random
import time
from contextlib import suppress

import pytest
from ray.exceptions import RayError
from support.cluster_runs import BackgroundRun, assert_repeats, kill
from support.waiting import PATIENCE_S

from fedray.errors import ClusterError, ConfigError, UnknownRun
from fedray.federation import join, leave

pytestmark = pytest.mark.usefixtures("cluster")
MODES = {
    "plain": {},
    "adaptive": {"aggregation": "adaptive", "drift_threshold": 1e9,
                 "max_rounds_apart": 5},
    "grouped": {"groups": {"by": "region"}},
    "some": {"party_fraction": 0.5},
    "fedadam": {"fusion_algorithm": "fedadam"},
    "median": {"fusion_algorithm": "median"},
    "best": {"fusion_algorithm": "best_model"},
}  # fmt: skip
QUICK = ("plain", "adaptive", "grouped", "fedadam")  # of which `make test` plays one
ALL = [
    pytest.param(mode, n, marks=() if not n and mode in QUICK else pytest.mark.chaos)
    for n in range(4)
    for mode in MODES
]


class Turns:
    """A run to which something happens again and again, drawn from a seed."""

    def __init__(self, settings, digits, folder, seed):
        self.settings, self.digits, self.folder = settings, digits, folder
        self.draw = random.Random(seed)
        self.n_parties, self.log = 0, []
        self.changed = 1  # the last round in which somebody came or went
        self.settings["parties"] = [self._party() for _ in range(4)]
        self.there = [party["name"] for party in self.settings["parties"]]
        self.run = BackgroundRun(self.settings, folder, keep_checkpoints=3)

    def _party(self):
        i, self.n_parties = self.n_parties, self.n_parties + 1
        data = self.digits(f"p{i}", 24 + 8 * (i % 4), skip=60 * i)
        fields = {"region": ["eu", "us"][i % 2]}
        return {"name": f"p{i}", "data": data, "fields": fields}

    def join(self):
        party = self._party()
        self.changed = join("run", party).round
        self.log.append(f"{party['name']} joins: {self.changed}")
        self.there.append(party["name"])

    def leave(self):
        name = self.draw.choice(self.there)
        self.changed = leave("run", name)
        self.log.append(f"{name} leaves: {self.changed}")
        self.there.remove(name)

    def kill_aggregator(self):
        kill("aggregator:run", concurrency_group="control")
        self.log.append("the aggregator is killed")

    def kill_party(self):
        name = self.draw.choice(self.there)
        kill(f"party:run:{name}")
        self.log.append(f"{name} is killed")

    def resume(self):
        self.log.append(f"stopped: {len(self.run.stop())} lines")
        self.run = BackgroundRun(
            self.settings, self.folder, keep_checkpoints=3, resume=True
        )

    def wait(self):
        self.run.wait_for_round(self.run.round + self.draw.randint(1, 4))

    def play(self, n_turns):
        """Do that many of these at random moments."""
        weighted = {
            self.join: 1, self.leave: 2, self.kill_aggregator: 2,
            self.kill_party: 1, self.resume: 1, self.wait: 1,
        }  # fmt: skip
        turns = self.draw.choices([*weighted], [*weighted.values()], k=n_turns)
        for turn in turns:
            time.sleep(self.draw.choice([0, 0, 0.01, 0.05, 0.3]))
            # the last one may not leave; nobody who is dead or starting answers
            with suppress(ConfigError, ClusterError, UnknownRun, ValueError, RayError):
                turn()
            assert self.run.thread.is_alive(), (self.run.error, self.log)


def seen(report, is_adaptive):
    """Who was there in a round, and what became of them."""
    # parties apart are apart but in the last round, which always fuses
    who = [(line.name, is_adaptive or line.outcome) for line in report.parties]
    return report.round, report.group, report.joined, report.left, who


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "seed"), ALL)
def test_the_config_of_a_run_with_joins_leaves_and_kills_gives_the_same_bits(
    settings, digits, tmp_path, mode, seed
):
    turns = Turns(settings | MODES[mode], digits, tmp_path / "run", f"{mode} {seed}")
    try:
        turns.run.wait_for_round(1)
        turns.play(7)
        turns.run.wait_for_round(max(turns.run.round, turns.changed) + 8)
        history = turns.run.stop()
    finally:
        turns.run.is_enough.set()
        turns.run.thread.join(PATIENCE_S)
    print(turns.log)
    repeated = assert_repeats(tmp_path / "run", tmp_path / "again")
    kept = [report for report in history if report.round <= repeated[-1].round]
    mine, theirs = (
        [seen(report, mode == "adaptive") for report in each]
        for each in (repeated, kept)
    )
    assert mine == theirs
