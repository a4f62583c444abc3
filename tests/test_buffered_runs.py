"""Asynchronous fusion through Ray: real and virtual arrivals, kills, resume, replay."""

import shutil

import numpy as np
import pytest
from support.comparison import assert_close
from support.kills import assert_kills_change_nothing
from support.local_rounds import federation, group_of, train
from support.slow_party import add_slow_party

import fedray
from fedray.checkpoint import RunFolder
from fedray.cli import main
from fedray.errors import RoundFailed, Stopped

pytestmark = pytest.mark.usefixtures("cluster")

N_PARTIES = 9
CLOCK = {"median_s": 1.0, "sigma": 0.8, "slow": [0.2, 4.0], "lost": 0.1}
SIMULATED = {
    "aggregation": "buffered",
    "buffer_size": 3,
    "concurrency": 6,
    "lease_s": 6.0,
    "virtual_clock": CLOCK,
    "rounds": 8,
}


@pytest.fixture
def simulated(settings):
    """Nine parties of 20 digits that share two actors, on a virtual clock."""
    del settings["parties"]
    settings |= {
        "partition": {"samples_per_party": 20},
        "num_parties": N_PARTIES,
        "parties_per_actor": 5,
    }
    return settings | SIMULATED


def orders(history) -> list[list[list[int]]]:
    return [report.order for report in history]


def by_hand(settings: dict, history, n_steps: int | None = None) -> dict:
    """The weights by the definition, from plain calls of the parties' own code.

    w ← w + Σ s n u / Σ s n, s = 1/√(1+τ), or ... / Σ n; float64.
    """
    group, start = group_of(settings, range(settings["num_parties"]))
    versions = [start]
    for version, order in enumerate(orders(history)[:n_steps]):
        now = versions[-1]
        total = {name: np.zeros(array.shape) for name, array in now.items()}
        weight = 0.0
        for place, base in order:
            _, update = group.train(base + 1, np.array([place]), versions[base])
            s = (1 + version - base) ** -0.5
            for name in total:
                step = update.weights[name].astype(np.float64) - versions[base][name]
                total[name] += s * update.n_samples * step
            by_count = settings.get("normalise") == "count"
            weight += update.n_samples * (1 if by_count else s)
        new = {name: now[name] + total[name] / weight for name in now}
        versions.append({name: a.astype(np.float32) for name, a in new.items()})
    return versions[-1]


def stop_after(n_rounds: int):
    def watch(progress):
        if progress.round > n_rounds:
            raise KeyboardInterrupt

    return watch


@pytest.mark.parametrize("normalise", ["weights", "count"])
def test_a_simulation_steps_as_the_definition_says(simulated, tmp_path, normalise):
    settings = simulated | {"normalise": normalise}
    result = fedray.run(settings, run_dir=tmp_path / "run")
    assert_close(result.weights(), by_hand(settings, result.history), 1e-5)
    ages = [report.staleness for report in result.history]
    assert ages[0] == 0 < max(ages)
    times = [report.virtual_s for report in result.history]
    assert times == sorted(times)
    assert [report.fused for report in result.history] == [3] * 8
    assert all(report.chosen >= report.reported == 3 for report in result.history)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "staleness" in page
    assert "virtual time" in page


def test_a_simulation_that_is_stopped_and_resumed_gives_the_same_bits_and_a_replay(
    simulated, tmp_path, capsys
):
    settings = simulated
    whole = fedray.run(settings, run_dir=tmp_path / "run")
    for stop in (1, 5):
        with pytest.raises(Stopped):
            fedray.run(settings, run_dir=tmp_path / "cut", watch=stop_after(stop),
                       resume=stop > 1)  # fmt: skip
    again = fedray.run(settings, run_dir=tmp_path / "cut", resume=True)
    assert orders(again.history) == orders(whole.history)
    assert_close(again.weights(), whole.weights(), 0)
    assert main(["replay", str(tmp_path / "cut")]) == 0
    assert "the same bits after round 8" in capsys.readouterr().out
    assert main(["replay", str(tmp_path / "cut")]) == 1  # there is one already
    assert "there is a run in it already" in capsys.readouterr().err


def test_without_staleness_the_bits_are_those_of_synchronous_rounds(settings, tmp_path):
    settings |= {"rounds": 3}
    plain = fedray.run(settings, run_dir=tmp_path / "plain")
    clock = {"median_s": 1.0, "sigma": 0}
    ours = fedray.run(settings, run_dir=tmp_path / "run", aggregation="buffered",
                      virtual_clock=clock)  # fmt: skip
    assert [report.staleness for report in ours.history] == [0, 0, 0]
    assert_close(ours.weights(), plain.weights(), 0)


def test_kills_of_a_party_the_aggregator_and_the_driver_change_no_bit(
    settings, digits, tmp_path
):
    settings["parties"].append({"name": "c", "data": digits("c", 32, skip=104)})
    settings |= SIMULATED | {"buffer_size": 2, "concurrency": 3, "rounds": 12}
    settings |= {"keep_checkpoints": 1, "party_cpus": 0.5}
    whole = assert_kills_change_nothing(settings, tmp_path)
    killed = RunFolder(tmp_path / "killed").history()
    assert orders(killed) == orders(whole.history)
    assert max(report.staleness for report in killed) > 0


def test_thousands_of_simulated_parties_train_in_stacks(simulated, tmp_path):
    settings = simulated | {"num_parties": 2000, "rounds": 3, "buffer_size": 300,
                            "concurrency": 900, "parties_per_actor": 1000,
                            "partition": {"samples_per_party": 2}}  # fmt: skip
    result = fedray.run(settings, run_dir=tmp_path / "run")
    assert [report.fused for report in result.history] == [300] * 3
    assert len({place for place, _ in result.history[-1].order}) == 300


# -- real times


@pytest.fixture
def real(settings, digits, tmp_path):
    """Three parties; c trains no further while the file `hold` is there."""
    hold = add_slow_party(settings, digits, tmp_path)
    settings |= {"aggregation": "buffered", "buffer_size": 2, "rounds": 1000}
    settings |= {
        "keep_checkpoints": 1000,
        "max_staleness": 1000,
        "test_data": str(tmp_path / "c.npz"),
    }
    return hold


def run_until(seen, settings, run_dir):
    """Run until a round's report is as wanted; the history until then."""

    def watch(progress):
        if any(map(seen, progress.reports)):
            raise KeyboardInterrupt

    with pytest.raises(Stopped):
        fedray.run(settings, run_dir=run_dir, watch=watch)
    return RunFolder(run_dir).history()


def test_others_go_on_and_a_slow_party_counts_by_its_age_when_it_comes(
    real, settings, tmp_path, capsys
):
    def seen(report):
        if report.round == 3:
            real.unlink(missing_ok=True)
        return any(place == 2 for place, _ in report.order)

    history = run_until(seen, settings, tmp_path / "run")
    first = next(r for r in history if any(place == 2 for place, _ in r.order))
    assert first.round > 3
    assert [version for place, version in first.order if place == 2] == [0]
    for report in history[: first.round - 1]:
        assert sorted(place for place, _ in report.order) == [0, 1]
    # by the definition, in the recorded order
    start, parties, _ = federation(settings | {"rounds": 1})
    versions = [start]
    for version, order in enumerate(orders(history[: first.round])):
        now, names, weight = versions[-1], "abc", 0.0
        total = {name: np.zeros(array.shape) for name, array in now.items()}
        for place, base in order:
            update = train(parties[names[place]], base + 1, versions[base])
            s = update.n_samples * (1 + version - base) ** -0.5
            weight += s
            for name in total:
                step = update.weights[name].astype(np.float64) - versions[base][name]
                total[name] += s * step
        new = {name: now[name] + total[name] / weight for name in now}
        versions.append({name: a.astype(np.float32) for name, a in new.items()})
    weights = RunFolder(tmp_path / "run").checkpoint_of(first.round).weights
    assert_close(weights, versions[first.round], 1e-5)
    # its order is recorded, so that it is made again to the bit
    assert (
        main(["replay", str(tmp_path / "run"), "--run-dir", str(tmp_path / "2")]) == 0
    )
    assert "the same bits" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "2")
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    swapped = lines[1].replace('"order": [[0, 1], [1, 1]]', '"order": [[1, 1], [1, 0]]')
    swapped = swapped.replace('"order": [[1, 1], [0, 1]]', '"order": [[1, 1], [1, 0]]')
    assert swapped != lines[1]
    lines[1] = swapped
    (tmp_path / "run" / "history.jsonl").write_text("\n".join(lines) + "\n")
    assert (
        main(["replay", str(tmp_path / "run"), "--run-dir", str(tmp_path / "2")]) == 1
    )
    assert "not the same bits: tensor" in capsys.readouterr().out


def test_a_party_whose_lease_is_over_is_given_up_and_asked_again_later(
    real, settings, tmp_path
):
    settings |= {"lease_s": 4.0}
    over = []

    def seen(report):
        for line in report.parties:
            if line.name == "c" and "no update within its lease of 4 s" in line.outcome:
                over.append(report.round)
                real.unlink(missing_ok=True)
        return bool(over) and any(place == 2 for place, _ in report.order)

    history = run_until(seen, settings, tmp_path / "run")
    assert history[over[0] - 1].expired == 1
    ended = next(r for r in history if any(place == 2 for place, _ in r.order))
    (version,) = (v for place, v in ended.order if place == 2)
    assert version >= over[0] - 1  # its first update was dropped


def test_a_party_that_fails_is_left_out_of_a_step_and_the_run_goes_on(
    trouble, settings, digits, tmp_path
):
    settings["parties"].append({"name": "c", "data": digits("c", 32, skip=104)})
    settings |= {"aggregation": "buffered", "buffer_size": 2, "rounds": 3}
    trouble("fail")
    history = fedray.run(settings, run_dir=tmp_path / "run").history
    assert [report.fused for report in history] == [2] * 3
    failed = [line for r in history for line in r.parties if "failed" in line.outcome]
    assert len(failed) == 1
    assert "trouble was asked for" in failed[0].outcome


def test_a_step_that_nobody_is_left_for_fails_and_says_what_to_do(
    trouble, settings, tmp_path
):
    settings |= {"aggregation": "buffered", "buffer_size": 2, "rounds": 3}
    trouble("fail")
    with pytest.raises(RoundFailed, match="1 of 2 updates came, and no party is left"):
        fedray.run(settings, run_dir=tmp_path / "run")


def test_an_update_that_is_refused_does_not_fill_the_buffer(
    trouble, settings, digits, tmp_path
):
    settings["parties"].append({"name": "c", "data": digits("c", 32, skip=104)})
    settings |= {"aggregation": "buffered", "buffer_size": 2, "rounds": 2}
    trouble("nan")
    history = fedray.run(settings, run_dir=tmp_path / "run").history
    assert [report.fused for report in history] == [2, 2]
    assert sum(report.refused for report in history) == 1


def test_a_run_of_another_kind_is_not_replayed(settings, tmp_path, capsys):
    fedray.run(settings | {"rounds": 1}, run_dir=tmp_path / "run")
    assert main(["replay", str(tmp_path / "run")]) == 1
    assert "which has no order of arrival" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "nothing")]) == 1
    assert "no run" in capsys.readouterr().err
    assert not (tmp_path / "run-replay").exists()


def test_leaving_and_joining_change_who_is_asked(real, settings, digits, tmp_path):
    real.unlink()
    settings["parties"][1] |= {"left": 3}
    settings["parties"][2] |= {"joined": 2}
    settings |= {"rounds": 5, "buffer_size": 2}
    history = fedray.run(settings, run_dir=tmp_path / "run").history
    places = [{place for place, _ in order} for order in orders(history)]
    assert places[0] == {0, 1}
    assert places[1] <= {0, 1, 2}
    assert places[2:] == [{0, 2}] * 3
    assert (history[1].joined, history[2].left) == (["c"], ["b"])
