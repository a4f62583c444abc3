"""Progress reports of a long training: rate limit, and shares of a whole call."""

import numpy as np
import pytest

from fedray import data, models
from fedray.config import parse
from fedray.messages import ActorLocation
from fedray.party import GroupPlan, PartyGroup, progress

PARTITION = {"samples_per_party": 32, "scheme": "iid"}


@pytest.mark.parametrize("clock", [[0.5] * 40, [1.5] * 40])
def test_progress_is_reported_at_most_once_a_second(clock):
    now_s, shares = [0.0], []
    reporter = progress.ProgressReporter(shares.append, 2, lambda: now_s[0])
    reporter.begin(4)
    for step in clock[:4]:
        now_s[0] += step
        reporter.advance(0.5)
        reporter.finish(1)
    # every half second: each second call; later than every second: each step's first
    each = [(k + 0.5) / 4 for k in range(4)]
    assert shares == (each[1::2] if clock[0] == 0.5 else each)


def test_the_more_parties_the_less_often_each_reports():
    assert progress.ProgressReporter(models.no_progress, 1000).interval_s == 10.0


def test_a_party_reports_its_run_its_name_and_rising_progress(settings, monkeypatch):
    monkeypatch.setattr(progress, "PROGRESS_INTERVAL_S", 0.0)
    monkeypatch.setattr(progress, "MAX_REPORTS_PER_S", 1e9)
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
