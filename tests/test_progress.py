"""Told how far a training is: seldom, and of all that a call trains."""

import numpy as np
import pytest

from fedray import data, models
from fedray.config import parse
from fedray.messages import ActorLocation
from fedray.party import GroupPlan, PartyGroup, progress

PARTITION = {"samples_per_party": 32, "scheme": "iid"}


@pytest.mark.parametrize("clock", [[0.5] * 40, [1.5] * 40])
def test_progress_is_reported_at_most_once_a_second(monkeypatch, clock):
    now, told = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    teller = progress.Pace(told.append, 2)
    teller.begin(4)
    for step in clock[:4]:
        now[0] += step
        teller.within(0.5)
        teller.finished(1)
    # every half second: each second call; later than every second: each step's first
    each = [(k + 0.5) / 4 for k in range(4)]
    assert told == (each[1::2] if clock[0] == 0.5 else each)


def test_of_many_parties_each_speaks_more_rarely():
    assert progress.Pace(models.no_progress, 1000).every_s == 10.0


def test_a_party_reports_its_run_its_name_and_rising_progress(settings, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    monkeypatch.setattr(progress, "MAX_TOLD", 1e9)
    del settings["parties"]
    settings |= {"partition": PARTITION, "num_parties": 2, "epochs": 2}
    config, _ = parse(settings | {"stacked": "false"})
    blueprint, weights = models.named("pytorch").read(config)
    handler, told = data.named(config.data_handler), []
    plan = GroupPlan("g", range(2), config, blueprint, handler, "r")
    tell = lambda *words: told.append(words)  # noqa: E731
    PartyGroup(plan, lambda: ActorLocation("n"), tell).train(1, np.arange(2), weights)
    assert {words[:2] for words in told} == {("r", "g")}
    shares = [share for *_, share in told]
    # 2 parties, 2 passes of 32 samples in batches of 16, and each party's end
    assert shares == [n / 8 for n in (1, 2, 3, 4, 4, 5, 6, 7, 8, 8)]
