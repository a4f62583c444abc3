"""ReduceLROnPlateau from the rounds' reports: equal to torch's own."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

from fedray import policy
from fedray.config.schedulers import ReduceLROnPlateau
from fedray.messages import RoundReport

VALUES = [1.0, 0.9, 0.8, 0.8, 0.81, 0.79, 0.8, 0.8, 0.8, 0.7, 0.7, 0.7, 0.9, 0.9]
CASES = [
    {"patience": 0},
    {"patience": 1, "factor": 0.5},
    {"patience": 1, "factor": 0.5, "cooldown": 2},
    {"patience": 2, "threshold": 0.05, "threshold_mode": "abs"},
    {"patience": 1, "threshold": 0.1, "mode": "min"},
    {"patience": 0, "min_lr": 0.004},
    {"patience": 0, "eps": 0.01},
]


def report(value, **fields):
    empty = dict.fromkeys(
        (field.name for field in dataclasses.fields(RoundReport) if _needed(field)), 0
    )
    return RoundReport(**{**empty, "loss": value, "accuracy": None, **fields})


def _needed(field):
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def rates_of(schedule, reports, state=None, rate=0.1):
    plateau, rates = policy.restore_plateau(state, rate), []
    for one in reports:
        plateau = policy.next_plateau(schedule, plateau, one)
        rates.append(plateau.learning_rate)
    return rates, plateau


@pytest.mark.parametrize("args", CASES)
@pytest.mark.parametrize("values", [VALUES, VALUES[::-1], [*VALUES, *VALUES]])
def test_the_rate_falls_as_with_torch(args, values):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    expected = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **args)
        for value in values:
            scheduler.step(value)
            expected.append(optimizer.param_groups[0]["lr"])
    reports = [report(value) for value in values]
    assert rates_of(ReduceLROnPlateau(**args), reports)[0] == expected


def test_a_share_falls_where_it_does_not_rise():
    schedule = ReduceLROnPlateau(metric="accuracy", patience=1, factor=0.5)
    shares = [0.5, 0.6, 0.6, 0.55, 0.7, 0.7]
    reports = [report(None, accuracy=share) for share in shares]
    assert rates_of(schedule, reports)[0] == [0.1, 0.1, 0.1, 0.05, 0.05, 0.05]


def test_rounds_that_were_not_evaluated_do_not_count():
    schedule = ReduceLROnPlateau(patience=1, factor=0.5)
    values = [1.0, None, 1.0, None, None, 1.0]
    rates, _ = rates_of(schedule, [report(value) for value in values])
    assert rates == [0.1, 0.1, 0.1, 0.1, 0.1, 0.05]


def test_nan_is_no_improvement():
    schedule = ReduceLROnPlateau(patience=0, factor=0.5)
    values = [np.nan, 1.0, np.nan]
    rates, _ = rates_of(schedule, [report(value) for value in values])
    assert rates == [0.05, 0.05, 0.025]


def test_a_resumed_run_decides_from_the_line_of_its_last_round():
    schedule = ReduceLROnPlateau(patience=1, factor=0.5, cooldown=1)
    reports = [report(value) for value in VALUES]
    whole, _ = rates_of(schedule, reports)
    for at in range(1, len(VALUES)):
        first, plateau = rates_of(schedule, reports[:at])
        last = dataclasses.replace(reports[at - 1], plateau=plateau._asdict())
        line = json.loads(json.dumps(last.to_json()))
        state = RoundReport.from_json(line).plateau
        assert first + rates_of(schedule, reports[at:], state)[0] == whole


def test_another_learning_rate_of_a_resumed_run_is_taken():
    state = policy.Plateau(0.1, 0.025, 0.7, 1, 0)._asdict()
    assert policy.restore_plateau(state, 0.1) == policy.Plateau(**state)
    assert policy.restore_plateau(state, 0.3) == policy.Plateau(0.3, 0.3, 0.7)


def test_rounds_of_constant_rates_say_nothing_of_them():
    assert not {"learning_rate", "plateau"} & report(1.0).to_json().keys()
    assert report(1.0, learning_rate=0.0).to_json()["learning_rate"] == 0.0


def test_the_rates_of_past_rounds_are_read_from_their_lines():
    schedule = ReduceLROnPlateau(patience=0, factor=0.5)
    reports, state = [report(1.0, round=1)], None  # before a scheduler was given
    for round, start in [(2, 0.1), (3, 0.1), (4, 0.1), (5, 0.4), (6, 0.4)]:
        plateau = policy.restore_plateau(state, start)  # changed at --resume in 5
        state = policy.next_plateau(schedule, plateau, report(1.0))._asdict()
        reports.append(report(1.0, round=round, plateau=state))
    # by hand: round 2 is the first that counts, 3 is no better, nor are 4, 5 and 6
    rates = {2: 0.1, 3: 0.1, 4: 0.05, 5: 0.4, 6: 0.2}
    assert policy.plateau_rates(reports) == rates
