"""`fedray compare`: several runs by their folders. No Ray, no training."""

import csv
import math

import pytest
from support.run_folders import line, write_run

import fedray
from fedray.cli import main
from fedray.errors import ConfigError, RunFolderError
from fedray.experiments import Question, compare, find_runs
from fedray.experiments.statistics import compare_pairs, summarize, t_quantile
from fedray.experiments.tables import cells, record_row

# final accuracy by algorithm and seed: fedprox is 0.02, 0.04, 0.03 better, fedavgm
# sometimes better and sometimes worse than fedprox
FINAL = {
    "fedavg": (0.80, 0.82, 0.81),
    "fedprox": (0.82, 0.86, 0.84),
    "fedavgm": (0.84, 0.81, 0.85),
}


@pytest.fixture
def runs(tmp_path):
    """Three algorithms with three seeds each; accuracies 0.5, 0.7 and the final one."""
    for algorithm, finals in FINAL.items():
        for seed, final in enumerate(finals):
            spread = {"accuracy": {"min": final - 0.1, "max": final + 0.05}}
            lines = [
                line(1, accuracy=0.5),
                line(2, accuracy=0.7),
                line(3, accuracy=final, spread=spread),
            ]
            folder = tmp_path / "runs" / f"{algorithm}-{seed}"
            write_run(folder, lines, fusion_algorithm=algorithm, seed=seed)
    return tmp_path / "runs"


def test_quantiles_are_those_of_tables():
    # Student's t, two-sided 95 %: as printed in any table, and scipy's where it is
    for degrees, t in ((1, 12.706205), (2, 4.302653), (4, 2.776445), (30, 2.042272)):
        assert t_quantile(0.975, degrees) == pytest.approx(t, abs=1e-6)
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 3, 7, 19, 100, 5000):
        for p in (0.5, 0.9, 0.975, 0.995, 0.9999):
            assert t_quantile(p, degrees) == pytest.approx(
                stats.t.ppf(p, degrees), rel=1e-9, abs=1e-12
            )


def test_means_deviations_and_intervals_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    first, second = (0.91, 0.93, 0.88, 0.9), (0.9, 0.95, 0.86, 0.85)
    summary = summarize(first)
    assert summary.mean == pytest.approx(0.905, abs=1e-15)
    assert summary.deviation == pytest.approx(stats.tstd(first), rel=1e-12)
    difference = compare_pairs([*zip(first, second, strict=True)])
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert difference.low == pytest.approx(interval.low, rel=1e-9)
    assert difference.high == pytest.approx(interval.high, rel=1e-9)


def test_seeds_become_means_and_differences_are_paired(runs):
    comparison = compare(find_runs([runs]), Question())
    assert comparison.columns == ["fusion_algorithm"]
    best, *others = comparison.variants
    assert best.settings == {"fusion_algorithm": "fedprox"}
    assert best.final.mean == pytest.approx(0.84)
    assert best.final.deviation == pytest.approx(0.02)
    avgm, avg = others
    # paired: −0.02, −0.04, −0.03: clear, though the means are 1.5 deviations apart
    assert avg.difference.mean == pytest.approx(-0.03)
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert avg.difference.low == pytest.approx(-0.03 - half, abs=1e-6)
    assert comparison.verdict(avg) == "worse"
    assert comparison.verdict(avgm) == "not clear of the noise"
    assert best.worst.mean == pytest.approx(0.74)
    assert best.spread.mean == pytest.approx(0.15)


def test_rounds_time_and_bytes_to_a_target(runs):
    comparison = compare(find_runs([runs]), Question(target=0.825))
    prox = comparison.variants[0]
    assert prox.n_reached == 2  # 0.82 does not
    assert [prox.to_target[name].mean for name in prox.to_target] == [3, 6.0, 3000]
    low = compare(find_runs([runs]), Question(target=0.6)).variants[0]
    assert low.n_reached == 3
    assert low.to_target["rounds"].mean == 2
    assert low.to_target["bytes"].mean == 2000
    loss = compare(find_runs([runs]), Question(metric="loss", target=0.5))
    assert loss.variants[0].n_reached == 3  # less is better


def test_the_values_of_one_setting_are_compared_over_all_others(tmp_path):
    for rate, gain in ((0.1, 0.01), (0.01, 0.0)):
        for algorithm, start in (("fedavg", 0.5), ("fedprox", 0.8)):
            for seed in (0, 1):
                value = start + gain + 0.002 * seed * (gain > 0)
                folder = tmp_path / f"{rate}-{algorithm}-{seed}"
                write_run(folder, [line(1, accuracy=value)], rounds=1, seed=seed,
                          learning_rate=rate, fusion_algorithm=algorithm)  # fmt: skip
    comparison = compare(find_runs([tmp_path]), Question(by="learning_rate"))
    best, other = comparison.variants
    assert best.settings == {"learning_rate": "0.1"}
    assert other.difference.n == 4
    assert other.difference.mean == pytest.approx(-0.011)
    assert comparison.verdict(other) == "worse"  # by its pairs, though means overlap


def test_the_command_prints_and_writes_all_forms(runs, tmp_path, capsys):
    files = {form: tmp_path / f"out.{form}" for form in ("html", "csv", "latex")}
    words = ["compare", str(runs), "--target", "0.7"]
    words += [w for form, file in files.items() for w in (f"--{form}", str(file))]
    assert main(words) == 0
    out = capsys.readouterr().out
    head, first, second, third = out.splitlines()[:4]
    assert "fusion_algorithm" in head
    assert "to the best" in head
    assert first.split()[:5] == ["fedprox", "3", "0.840", "±", "0.020"]
    assert "not clear of the noise" in second
    assert "worse" in third
    rows = [*csv.DictReader(files["csv"].open())]
    assert len(rows) == 9
    assert {row["fusion_algorithm"] for row in rows} == FINAL.keys()
    assert float(rows[0]["accuracy"]) == FINAL["fedavg"][0]
    assert float(rows[0]["rounds_to_target"]) == 2
    html = files["html"].read_text()
    assert "9 runs, 3 variants" in html
    assert "not clear of the noise" in html
    assert "http" not in html.replace("http-equiv", "")  # nothing is loaded
    latex = files["latex"].read_text()
    assert r"fusion\_algorithm & runs" in latex
    assert latex.count(r"\\") == 4


def test_in_python_runs_are_records_a_table_and_a_figure(runs):
    found = fedray.results(runs)
    assert len(found.records) == 9
    assert found.records[3]["fusion_algorithm"] == "fedavgm"
    assert "fedprox" in found.table(metric="accuracy")
    assert "<table>" in found._repr_html_()
    pytest.importorskip("matplotlib")
    axes = found.plot().axes[0]
    assert [one.get_label() for one in axes.get_lines()] == [
        "fusion_algorithm=fedprox", "fusion_algorithm=fedavgm",
        "fusion_algorithm=fedavg",
    ]  # fmt: skip


def test_names_that_only_hurt_the_table_are_harmless(tmp_path):
    write_run(tmp_path / "a", [line(1)], loss="<b>&\x1b[31m", rounds=1)
    write_run(tmp_path / "b", [line(1)], loss="x_y", rounds=1)
    comparison = compare(find_runs([tmp_path]), Question())
    from fedray.experiments import to_html, to_latex, to_text

    assert "\x1b" not in to_text(comparison)
    assert "<b>&" not in to_html(comparison)
    assert r"x\_y" in to_latex(comparison)


DAMAGED = {
    "cut by a kill": ([line(1), line(2), '{"round": 3, "chos'], ""),
    "edited": ([line(1), "no json", line(3)], "history.jsonl: no round's: line 2"),
    "of no object": ([line(1), "[1]", line(3)], "history.jsonl: no round's: line 2"),
    "empty": ([], ""),
    "out of order": ([line(3), line(1), line(2)], "rounds twice or out of order"),
    "twice": ([line(1), line(2), line(2), line(3)], "rounds twice or out of order"),
    "no whole round": ([line(1.5), line(3)], "history.jsonl: no round's: line 1"),
    "NaN": ([line(1), line(2, accuracy=float("nan"), loss=float("inf"))], ""),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_run_is_told_and_the_others_are_compared(runs, case):
    lines, problem = DAMAGED[case]
    write_run(runs / "damaged", lines, fusion_algorithm="fedavg", seed=7)
    comparison = compare(find_runs([runs]), Question())
    assert len(comparison.records) == 10
    told = [note for note in comparison.notes if note.startswith("damaged: ")]
    assert told
    if problem:
        assert problem in told[0]
    else:
        assert "unfinished after" in told[0]
    assert comparison.leader.final.mean == pytest.approx(0.84)


def test_runs_without_a_config_or_of_another_version_are_compared(runs):
    (runs / "fedavg-0" / "config.yaml").unlink()
    file = runs / "fedavg-1" / "config.yaml"
    file.write_text(file.read_text() + "a_key_of_another_version: 3\n")
    (runs / "fedavg-2" / "config.yaml").write_text("{")
    comparison = compare(find_runs([runs]), Question())
    assert comparison.columns == ["config.yaml", "fusion_algorithm"]
    assert any("fedavg-0: config.yaml" in note for note in comparison.notes)
    # nobody knows what these two differ by: neither is pooled with any other
    sizes = sorted(len(one.records) for one in comparison.variants)
    assert sizes == [1, 1, 1, 3, 3]


def test_rounds_as_a_setting_and_rounds_that_were_run_are_two_columns(tmp_path):
    for rounds in (2, 7):
        write_run(tmp_path / f"r{rounds}", [line(1), line(2)], rounds=rounds, seed=0)
    comparison = compare(find_runs([tmp_path]), Question())
    rows = [dict(cells(comparison, one)) for one in comparison.variants]
    assert {row["rounds"] for row in rows} == {"2", "7"}
    assert {row["rounds done"] for row in rows} == {"2"}
    rows = [record_row(comparison, record) for record in comparison.records]
    assert [row["rounds done"] for row in rows] == [2, 2]


def test_repeated_runs_count_as_one_pair(runs):
    write_run(runs / "again", [line(3, accuracy=0.90)], fusion_algorithm="fedavg",
              seed=2)  # fmt: skip
    comparison = compare(find_runs([runs]), Question())
    (avg,) = (one for one in comparison.variants if "fedavg" in one.settings.values())
    assert len(avg.records) == 4
    assert avg.difference.n == 3
    assert any("same settings and seed" in note for note in comparison.notes)


def test_groups_are_runs_of_their_own(tmp_path):
    lines = [line(1, group="north", accuracy=0.9), line(1, group="south", accuracy=0.8)]
    write_run(tmp_path / "run", lines, rounds=1)
    comparison = compare(find_runs([tmp_path / "run"]), Question())
    assert comparison.columns == ["group"]
    assert [one.settings["group"] for one in comparison.variants] == ["north", "south"]


WRONG = {
    "no folder": (["nowhere"], "there is no such folder"),
    "no run": (["empty"], "holds no run: there is no history.jsonl"),
    "metric": (["runs", "--metric", "f2"], "no run has measured 'f2'; measured: acc"),
    "by": (["runs", "--by", "colour"], "--by colour: is a setting of no run"),
    "by the same": (["runs", "--by", "rounds"], "is the same in all runs"),
    "no number": (["runs", "--target", "nan"], "--target must be a finite number"),
    "a run's file": (["runs", "--csv", "runs/fedavg-0/history.jsonl"], "run's folder"),
    "target": (["runs", "--target", "much"], "invalid float value"),
    "file": (["runs", "--html", "empty"], "empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_clear_line(runs, case, capsys, monkeypatch):
    monkeypatch.chdir(runs.parent)
    (runs.parent / "empty").mkdir()
    words, message = WRONG[case]
    try:
        code = main(["compare", *words])
    except SystemExit as end:
        code = end.code
    assert code != 0
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_errors_in_python_are_fedrays(runs):
    with pytest.raises(RunFolderError):
        fedray.results(runs / "nothing")
    with pytest.raises(ConfigError):
        fedray.results(runs).compare(metric="f2")


def test_epsilon_that_was_spent_can_be_compared_and_less_is_better(tmp_path):
    for clip, spent in ((1.0, 2.5), (2.0, 1.5)):
        lines = [line(i, privacy={"epsilon": spent * i / 2}) for i in (1, 2)]
        write_run(tmp_path / f"clip-{clip}", lines, rounds=2, privacy={"clip": clip})
    comparison = compare(find_runs([tmp_path]), Question(metric="privacy.epsilon"))
    assert [one.final.mean for one in comparison.variants] == [1.5, 2.5]
    assert comparison.variants[0].settings == {"privacy.clip": "2.0"}
    assert not any("counts as better" in note for note in comparison.notes)
    lines = [line(1, privacy={"samples": {"epsilon": 0.5}})]
    write_run(tmp_path / "samples", lines, rounds=2)
    question = Question(metric="privacy.samples.epsilon")
    assert compare(find_runs([tmp_path]), question).leader.final.mean == 0.5


def test_runs_that_measured_nothing_are_told_in_words(tmp_path, capsys):
    for seed in (0, 1):
        lines = [line(i, loss=None, accuracy=None) for i in (1, 2, 3)]
        write_run(tmp_path / f"r{seed}", lines, seed=seed, epochs=seed + 1)
    assert main(["compare", str(tmp_path), "--html", str(tmp_path / "c.html")]) == 0
    out = capsys.readouterr().out
    head, first, second, *notes = out.splitlines()
    assert "no run has measured a number" in notes[0]
    assert "best mean" not in out
    assert "has no accuracy" not in out
    assert head.split() == ["epochs", "runs", "rounds", "time", "bytes"]
    assert [line.split()[:3] for line in (first, second)] == [
        ["1", "1", "3"], ["2", "1", "3"]
    ]  # fmt: skip
    assert "is better" not in (tmp_path / "c.html").read_text()


def test_who_reaches_a_target_with_the_fewest_bytes_is_said(tmp_path, capsys):
    # bytes a round by algorithm and seed: differences 2000, 2100, 1900 at round 2
    for algorithm, each in (("fedavg", (1000, 1000, 1000)), ("a", (2000, 2050, 1950))):
        for seed, n_bytes in enumerate(each):
            tests = {"party": ["x", "y"], "n_samples": [3, 3], "accuracy": [0.9, 0.5]}
            lines = [
                line(i, accuracy=0.4 * i, bytes_moved=n_bytes, tests=tests)
                for i in (1, 2, 3)
            ]
            write_run(tmp_path / f"{algorithm}-{seed}", lines, seed=seed,
                      fusion_algorithm=algorithm)  # fmt: skip
    assert main(["compare", str(tmp_path), "--target", "0.8"]) == 0
    results = [x for x in capsys.readouterr().out.splitlines() if x[:6] == "result"]
    half = 4.302653 * 100 / math.sqrt(3)  # 248
    assert (round(2000 - half), round(2000 + half)) == (1752, 2248)
    assert results == [
        "result   fewest bytes to accuracy 0.8: fusion_algorithm=fedavg, 2.0 kB (3 of "
        "3 runs reached it); fusion_algorithm=a needs 4.0 kB (3 of 3): clear, 95 % "
        "interval of the difference +1.8 kB to +2.2 kB",
        "result   worst accuracy: y, in 6 of 6 runs with tests of parties; 0.5 on "
        "average there",
    ]
    assert main(["compare", str(tmp_path), "--target", "2"]) == 0
    assert "accuracy 2 was reached in no run" in capsys.readouterr().out


def test_values_of_other_kinds_and_beyond_measure_are_told_or_left_out(runs):
    write_run(runs / "kinds", [line(1, spread=[1])], fusion_algorithm="fedavg")
    write_run(runs / "large", [line(1, accuracy=1e300), line(3)], seed=9)
    comparison = compare(find_runs([runs]), Question())
    assert any("kinds: history.jsonl: it has values" in x for x in comparison.notes)
    assert comparison.leader.final.mean == pytest.approx(0.84)
