"""The grid of a sweep: words, YAML, names of folders. No Ray, no training."""

import io
from pathlib import Path

import pytest
import yaml

from fedray.checkpoint import RunFolder
from fedray.errors import ConfigError, RunFolderError
from fedray.experiments.grid import (
    Grid,
    complete_grid,
    name_run,
    read_mapping,
    read_words,
    run_names,
    split_values,
    with_value,
)
from fedray.federation import read_config
from fedray.sweep import read_plan, sweep_folder
from fedray.sweep.display import SweepDisplay
from fedray.sweep.progress import RUNNING, SweepProgress
from fedray.sweep.record import DONE, FAILED, End, open_record
from fedray.untrusted_text import LINE_UP


def words(*texts):
    grid, problems = read_words(texts)
    assert problems == []
    return grid


def names_of(grid):
    names = run_names(grid.axes)
    return [name_run(point, names) for point in grid.points()]


def test_several_values_are_swept_over_and_one_is_for_all_runs():
    grid = words("learning_rate=0.01,0.1", "rounds=3", "partition.alpha=0.1,1")
    assert grid.axes == {"learning_rate": [0.01, 0.1], "partition.alpha": [0.1, 1]}
    assert grid.fixed == {"rounds": 3}
    assert grid.n_runs == 4


def test_commas_in_brackets_and_quotes_part_no_values():
    assert split_values("{a: 1, b: [2, 3]},{a: 4}") == ["{a: 1, b: [2, 3]}", "{a: 4}"]
    assert split_values("'a,b',c") == ["'a,b'", "c"]


def test_a_list_is_the_values_of_a_key_or_one_value_of_a_key_that_takes_lists():
    assert words("learning_rate=[0.01, 0.1]").axes == {"learning_rate": [0.01, 0.1]}
    assert words("metrics=[f1_macro]").fixed == {"metrics": ("f1_macro",)}
    assert words("metrics=[a],[b]").axes == {"metrics": [("a",), ("b",)]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metrics=a,b", "metrics takes a list: write each of its values as one"),
        ("learning_rate=0.1,,1", "a value between commas is empty"),
        ("learning_rate=0.1,0.10", "learning_rate has the value 0.1 twice"),
        ("learning_rate", "is not of the form key=value: write learning_rate=..."),
        ("learning_rate=", "has no value"),
        ("learning_rate=[]", "learning_rate has no values"),
        ("partition={alpha: 1", "cannot read the value"),
    ],
)
def test_a_wrong_word_is_told(text, message):
    assert message in " ".join(read_words([text])[1])


def test_a_setting_given_twice_is_told():
    assert "given twice" in read_words(["seed=1,2", "seed=3"])[1][0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["learning_rate"], "must be a mapping of settings to lists"),
        ({"learning_rate": 0.1}, "learning_rate must be a list of values, got 0.1"),
        ({"metrics": ["f1_macro"]}, "metrics takes a list"),
        ({"learning_rate": [1, 1.0]}, "learning_rate has the value 1.0 twice"),
    ],
)
def test_a_wrong_mapping_in_a_file_is_told(values, message):
    assert message in " ".join(read_mapping(values)[1])


def test_words_go_before_the_file_and_seeds_are_counted_from_the_configs():
    of_file, _ = read_mapping({"learning_rate": [0.1, 0.2], "epochs": [1, 2]})
    grid = complete_grid(of_file, words("epochs=3", "learning_rate=0.5,1"), 2, 7)
    assert grid.axes == {"learning_rate": [0.5, 1.0], "seed": [7, 8]}


@pytest.mark.parametrize(
    ("grid", "n_seeds", "message"),
    [
        (Grid(), None, "nothing to sweep over"),
        (Grid(), 0, "seeds must be 1 or more, got 0"),
        (Grid({"seed": [1, 2]}), 2, "seeds is given too"),
        (Grid({"seed": list(range(10_001))}), None, "10,001 runs: at most 10,000"),
    ],
)
def test_a_grid_of_no_use_is_refused(grid, n_seeds, message):
    with pytest.raises(ConfigError, match=message):
        complete_grid(Grid(), grid, n_seeds, 0)


def test_all_settings_of_a_seed_come_before_the_next_seed():
    grid = Grid({"learning_rate": [0.1, 1.0], "seed": [0, 1]})
    assert names_of(grid) == [
        "learning_rate=0.1,seed=0", "learning_rate=1,seed=0",
        "learning_rate=0.1,seed=1", "learning_rate=1,seed=1",
    ]  # fmt: skip


def test_names_are_short_plain_and_never_the_same():
    values = ["a/x.py:f", "b/x.py:f", "z" * 100, "z" * 99, None, True, "\u202e/../"]
    names = names_of(Grid({"architecture": values}))
    assert len({*names}) == len(values)
    assert max(map(len, names)) < 60
    assert "architecture=none" in names
    assert "architecture=true" in names
    assert not any("/" in name or ":" in name for name in names)
    long = names_of(Grid({f"data_args.{'k' * 40}{i}": ["v" * 40] for i in range(9)}))
    assert len(long[0]) <= 180


def test_a_nested_value_changes_nothing_else():
    before = {"partition": {"alpha": 1, "split": "dirichlet"}}
    after = with_value(before, "partition.alpha", 2)
    assert after == {"partition": {"alpha": 2, "split": "dirichlet"}}
    assert before["partition"]["alpha"] == 1
    with pytest.raises(ConfigError, match=r"seed.x: seed is 3, no mapping"):
        with_value({"seed": 3}, "seed.x", 1)


@pytest.fixture
def config(tmp_path, settings):
    """A config's file, with values to sweep over."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({**settings, "sweep": {"epochs": [1, 2]}}))
    return file


def test_every_mistake_of_every_run_is_told_at_once(config):
    grid, problems = read_words(
        ["learning_rate=0.1,-1", "leraning_rate=1,2", "rounds=0", "metrics=a,b"]
    )
    with pytest.raises(ConfigError) as raised:
        read_plan(config, grid, 2, problems)
    text = str(raised.value)
    assert "unknown key 'leraning_rate'; did you mean" in text
    assert "rounds must be" in text
    assert "metrics takes a list" in text
    assert text.count("learning_rate must be") == 1
    assert "learning_rate=-1" in text


def test_a_file_with_values_to_sweep_over_is_for_sweeps_alone(config):
    with pytest.raises(ConfigError, match="sweep is for `fedray sweep`"):
        read_config(config)


def test_paths_start_beside_the_file_and_it_names_the_sweep(config):
    plan = read_plan(config, Grid())
    assert plan.name == "tiny"
    assert plan.keys == ("epochs",)
    assert [run.name for run in plan.runs] == ["epochs=1", "epochs=2"]
    assert [run.config.epochs for run in plan.runs] == [1, 2]


def test_a_record_knows_how_runs_ended_and_a_line_cut_short_is_left_out(tmp_path):
    with open_record(tmp_path, ["seed"]) as record:
        record.add("seed=0", End(DONE))
        record.add("seed=1", End(FAILED, "no\nroom"))
    with record.file.open("a") as file:
        file.write('{"run": "seed=2", "st')
    with open_record(tmp_path, ["seed"]) as record:
        record.add("seed=3", End(DONE))
    with open_record(tmp_path, ["seed"]) as record:
        assert record.ends == {
            "seed=0": End(DONE), "seed=1": End(FAILED, "no\nroom"), "seed=3": End(DONE)
        }  # fmt: skip


def refused(folder, *keys):
    """Why the record in a folder cannot be opened."""
    with pytest.raises(RunFolderError) as raised, open_record(folder, keys):
        pass
    return str(raised.value)


def test_a_folder_of_another_sweep_of_other_things_or_in_use_is_refused(tmp_path):
    own, other = tmp_path / "a", tmp_path / "b"
    with open_record(own, ["seed"]):
        assert "another process" in refused(own, "seed")
    assert "a sweep over seed; this one is over epochs" in refused(own, "epochs")
    other.mkdir()
    (other / "thesis.tex").touch()
    assert "has thesis.tex in it, and holds no sweep" in refused(other, "seed")
    file = tmp_path / "file"
    file.touch()
    assert "Name a folder with --out that you can write" in refused(file, "seed")
    (own / "sweep.jsonl").write_text("garbage\n")
    assert "sweep.jsonl is damaged" in refused(own, "seed")


def test_the_folder_of_a_run_is_no_sweeps(config, tmp_path):
    plan = read_plan(config, Grid())
    run = tmp_path / "run"
    run.mkdir()
    RunFolder(run).history_file.touch()
    with pytest.raises(RunFolderError, match="is the folder of a run"):
        sweep_folder(plan, run)


VARIANTS = {
    "algorithm": {
        "fedavg": None,
        "fedprox": {"proximal_mu": 0.1},
        "fedadam": {"fusion_algorithm": "fedadam", "server_learning_rate": 0.01},
    }
}


def test_a_name_of_no_setting_has_variants_of_several_settings(config):
    of_file, problems = read_mapping(VARIANTS)
    assert problems == []
    grid = complete_grid(of_file, words(), 2, 0)
    assert names_of(grid)[:2] == [
        "algorithm=fedavg,seed=0", "algorithm=fedprox,seed=0"
    ]  # fmt: skip
    last = [grid.settings_of(point) for point in grid.points()][-1]
    assert last == {
        "fusion_algorithm": "fedadam", "server_learning_rate": 0.01, "seed": 1
    }  # fmt: skip
    settings = {**yaml.safe_load(config.read_text()), "sweep": VARIANTS}
    plan = read_plan(settings, words())
    assert [run.config.proximal_mu for run in plan.runs] == [0, 0.1, 0]
    one = read_plan(settings, words("algorithm=fedprox", "epochs=1,2"))
    assert [run.name for run in one.runs] == ["epochs=1", "epochs=2"]
    assert {run.config.proximal_mu for run in one.runs} == {0.1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algorithm": {}}, "algorithm has no variants"),
        ({"algorithm": {"a": 3}}, "algorithm a must be a mapping of settings, got 3"),
        ({"partition": {"alpha": 1}}, "partition must be a list of values"),
        ({"a": {"b": {"epochs": 1}}, "epochs": [1]}, "a sets epochs, which has values"),
    ],
)
def test_a_wrong_variant_is_told(values, message):
    assert message in " ".join(read_mapping(values)[1])


@pytest.mark.parametrize("word", ["proximal_mu=1", "proximal_mu=1,2"])
def test_a_setting_of_a_variant_is_not_given_beside_it(config, word):
    own = {"algorithm": {"a": {}, "prox": {"proximal_mu": 0.1}}}
    grid, problems = read_mapping(own)
    assert problems == []
    with pytest.raises(ConfigError, match="algorithm=prox sets proximal_mu, which is"):
        complete_grid(grid, words(word), None, 0)
    chosen = complete_grid(grid, words("algorithm=prox", word), 2, 0)
    assert "algorithm" not in chosen.axes


def test_the_name_is_no_value_to_sweep_over():
    assert "name is that of the sweep" in read_words(["name=a,b"])[1][0]


def test_a_wrong_value_alone_is_not_also_told_to_be_missing(config):
    grid, problems = read_words(["learning_rate=0.1,"])
    with pytest.raises(ConfigError) as caught:
        read_plan(config, grid, None, problems)
    assert caught.value.problems == [
        "learning_rate=0.1,: a value between commas is empty"
    ]


def test_a_variant_that_is_not_there_is_told():
    of_file, _ = read_mapping(VARIANTS)
    with pytest.raises(ConfigError, match=r"unknown algorithm 'fedpox'; did you mean"):
        complete_grid(of_file, words("algorithm=fedpox,fedavg"), None, 0)


EXPERIMENTS = Path(__file__).parents[1] / "benchmarks" / "experiments"


@pytest.mark.parametrize(
    ("name", "n_runs"),
    [("algorithms", 100), ("personal", 20), ("communication", 25), ("robust", 90)],
)
def test_every_run_of_the_reference_experiments_is_a_config(name, n_runs):
    assert len(read_plan(EXPERIMENTS / f"{name}.yaml", Grid()).runs) == n_runs


class Screen(io.StringIO):
    """A terminal: what stands on it after lines were drawn over."""

    def isatty(self):
        return True

    @property
    def lines(self):
        shown = []
        for line in self.getvalue().replace(LINE_UP, "\0").split("\n"):
            while line.startswith("\0"):
                shown.pop()
                line = line[1:]
            shown.append(line)
        return shown[:-1]


def progress_of(tmp_path):
    """A sweep of four runs: one done, one with two rounds over, one failed."""
    progress = SweepProgress("tiny", tmp_path, dict.fromkeys("abcd", 4))
    progress.runs["a"].values = {"accuracy": 0.9, "loss": 0.3}
    progress.runs["a"].seconds = 2.5
    progress.end("a", End(DONE))
    progress.runs["b"].state, progress.runs["b"].round = RUNNING, 2
    progress.runs["b"].values = {"accuracy": 0.8}
    progress.end("c", End(FAILED, "no room\non the disk"))
    return progress


def test_a_terminal_shows_one_table_that_is_drawn_anew(tmp_path):
    screen, progress = Screen(), progress_of(tmp_path)
    display = SweepDisplay(screen)
    display(progress)
    display.drawn_at = 0.0
    progress.is_ending = True
    display(progress)
    title, _, *rows = screen.lines
    assert title == f"tiny: 4 runs, 1 done before, 1 failed before, in {tmp_path}"
    assert rows == [
        "runs     1 done, 1 running, 1 waiting, 1 failed",
        "best     accuracy 0.9000  a",
        "running  b  round 2 of 4  accuracy 0.8000",
        "failed   c: no room on the disk",
        "ending   with the rounds under way; once more stops at once",
    ]


def test_elsewhere_each_run_that_ends_is_a_line(tmp_path):
    out, progress = io.StringIO(), SweepProgress("tiny", tmp_path, {"a": 4, "c": 4})
    display = SweepDisplay(out)
    display(progress)
    later = progress_of(tmp_path)
    progress.runs = {name: later.runs[name] for name in "ac"}
    display(progress)
    display(progress)
    assert out.getvalue().splitlines() == [
        f"tiny: 2 runs, in {tmp_path}",
        "2 of 2: a: accuracy 0.9000, 2.5 s",
        "2 of 2: c failed: no room on the disk",
    ]
