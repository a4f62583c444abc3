"""The command line as a person uses it: split, fuse, and mistakes. No Ray."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fedray.cli import _parser, main
from fedray.messages import PartyLine, Progress, RoundReport
from fedray.progress_display import ProgressDisplay, round_line


def module(value: float, bias: bool = True) -> torch.nn.Module:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=bias), torch.nn.ReLU())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
    return net


@pytest.fixture
def saved(tmp_path):
    def save(name: str, *args) -> str:
        torch.save(module(*args), tmp_path / name)
        return str(tmp_path / name)

    return save


def fuse(*words) -> int:
    return main(["fuse", *map(str, words)])


def test_fuse_weights_by_samples_and_writes_a_module_again(saved, tmp_path, capsys):
    out = tmp_path / "c.pt"
    files = [saved("a.pt", 1.0), saved("b.pt", 5.0)]
    assert fuse(*files, "--algorithm", "fedavg", "--samples", "1,3", "--out", out) == 0
    fused = torch.load(out, weights_only=False)
    assert isinstance(fused, torch.nn.Sequential)
    assert (fused[0].weight == 4).all()  # by hand: (1·1 + 3·5) / 4
    assert "weighed by samples 1, 3" in capsys.readouterr().out


def test_without_sample_counts_models_weigh_equally_with_a_warning(
    saved, tmp_path, capsys
):
    out = tmp_path / "c.safetensors"
    assert fuse(saved("a.pt", 1.0), saved("b.pt", 5.0), "--out", out) == 0
    from safetensors.numpy import load_file

    assert (load_file(out)["0.weight"] == 3).all()
    assert "each counts alike" in capsys.readouterr().out


def test_iter_avg_of_state_dicts_is_a_state_dict(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        torch.save(module(value).state_dict(), tmp_path / f"{name}.pt")
    out = tmp_path / "c.pt"
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    assert fuse(*files, "--algorithm", "iter_avg", "--out", out) == 0
    assert (torch.load(out)["0.weight"] == 1.5).all()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--samples", "1"], "--samples has 1 number for 2 models"),
        (["--samples", "1,x"], "--samples must be whole numbers above 0"),
        (["--samples", "0,1"], "--samples must be whole numbers above 0"),
        (["--algorithm", "fedadam"], "fedadam needs rounds"),
        (["--algorithm", "mean"], "unknown fusion_algorithm 'mean'"),
    ],
)
def test_fuse_reports_mistakes_and_writes_nothing(saved, tmp_path, capsys, words, text):
    files = [saved("a.pt", 1.0), saved("b.pt", 2.0)]
    assert fuse(*files, *words, "--out", tmp_path / "c.pt") == 1
    assert text in capsys.readouterr().err
    assert not (tmp_path / "c.pt").exists()


def test_models_of_different_shapes_do_not_fuse(saved, tmp_path, capsys):
    files = [saved("a.pt", 1.0), saved("b.pt", 2.0, False)]
    assert fuse(*files, "--out", tmp_path / "c.pt") == 1
    text = capsys.readouterr().err
    assert "b.pt: tensors missing: ['0.bias']" in text
    assert "Only models of one kind can fuse" in text


def test_split_writes_one_file_per_party_and_prints_its_labels(tmp_path, capsys):
    words = ["split", "--parties", "3", "--samples", "50", "--out", str(tmp_path)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert text.count("nb_x_train:  (50, 28, 28)") == 3
    files = [np.load(tmp_path / f"data_party{i}.npz") for i in range(3)]
    assert [len(file["x_train"]) for file in files] == [50, 50, 50]
    assert sum(len(file["x_test"]) for file in files) == 1000
    assert main(words) == 1  # never over a party's data
    assert "data_party0.npz" in capsys.readouterr().err


def test_split_reports_every_mistake(tmp_path, capsys):
    words = ["split", "--parties", "0", "--scheme", "iidd", "--out", str(tmp_path)]
    assert main(words) == 1
    text = capsys.readouterr().err
    assert "num_parties must be between 1" in text
    assert "unknown partition scheme 'iidd'" in text


def test_run_reports_mistakes_before_ray_starts(tmp_path):
    config = tmp_path / "bad.yaml"
    config.write_text(yaml.safe_dump({"epocs": 3, "rounds": 0, "optimizer": "Addam"}))
    done = subprocess.run(
        [sys.executable, "-m", "fedray", "run", str(config), "seed=x"],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "6 mistakes in the config" in done.stderr
    for text in ("'epocs'; did you mean 'epochs'", "rounds must be", "'Addam'; did you",
                 "seed must be a whole number, got 'x'"):  # fmt: skip
        assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert "Started a local Ray" not in done.stderr


def test_help_explains_every_command_and_every_argument():
    (commands,) = _parser()._subparsers._group_actions
    assert {"run", "split", "fuse"} <= set(commands.choices)
    for name, command in commands.choices.items():
        assert len(command.description) > 10, name
        for argument in command._actions:
            assert argument.help, (name, argument.dest)


class Screen(list):
    """A stream that remembers; a terminal or not."""

    def __init__(self, is_terminal: bool):
        super().__init__()
        self.isatty = lambda: is_terminal
        self.write, self.flush = self.append, lambda: None


def progress(stage: str, reports=(), troubled=None) -> Progress:
    return Progress(list(reports), 2, stage, 2, 1, troubled or {}, ["going on"])


REPORT = RoundReport(
    round=1, chosen=2, reported=2, fused=1, aggregated=True, refused=1, loss=0.5,
    accuracy=None, bytes_moved=14_400_000, seconds=2.5, train_seconds=2.0,
    evaluate_seconds=0.1, evaluated=10,
    parties=[PartyLine("a", outcome="fused"), PartyLine("b", outcome="refused: nan")],
)  # fmt: skip


def test_a_round_is_one_line_of_the_table():
    text = round_line(REPORT, 5).split()
    assert text == ["1", "of", "5", "1", "of", "2", "0.5000", "-", "14.4", "MB",
                    "2.00", "s", "2.50", "s"]  # fmt: skip


def test_a_progress_line_names_its_member_or_group():
    out = Screen(False)
    line = dataclasses.replace(REPORT, group="cnn")
    ProgressDisplay(5, out, group_title="member")(progress("done", [line]))
    head, text = "".join(out).splitlines()[-2:]
    assert (head.split()[-1], text.split()[-1]) == ("member", "cnn")
    assert head.index("member") == text.index("cnn")


def test_without_a_terminal_there_are_plain_lines_only():
    out = Screen(False)
    board = ProgressDisplay(5, out)
    for stage in ("training", "training", "done"):
        board(progress(stage, [REPORT] if stage == "done" else [], {"a": "late"}))
    text = "".join(out)
    assert "\x1b" not in text
    assert "\r" not in text
    assert text.count("going on\n") == 1
    assert text.count("round 2: party a late\n") == 1
    assert "round 1: party b refused: nan\n" in text


def test_on_a_terminal_the_last_line_is_overwritten():
    out = Screen(True)
    ProgressDisplay(5, out)(progress("training"))
    bar, rest = out[-1].split("] ")
    assert bar.endswith("[####................")  # one of five rounds is done
    assert rest.startswith("round 2 of 5, training, 1 of 2 parties reported")


def test_a_terminal_sees_how_far_the_slowest_parties_are(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out, seen = Screen(True), progress("training")
    seen = dataclasses.replace(seen, working={"far-away": 0.25, "b": 0.5})
    ProgressDisplay(5, out)(seen)
    assert out[-1].endswith("1 of 2 parties reported, 0 s, far-away 25%, b 50%")
    monkeypatch.setenv("COLUMNS", "40")  # a second line would not be overwritten
    ProgressDisplay(5, out)(seen)
    assert len(out[-1].removeprefix("\r\x1b[K")) == 39


@pytest.mark.parametrize("is_live", [False, True])
def test_what_is_waited_for_before_round_1_is_shown(is_live):
    out = Screen(is_live)
    display = ProgressDisplay(5, out)
    label = "party a waits for a node with fedray-party: x"
    for waited_s in (0, 12):
        display(Progress([], 0, label, 0, 0, {}, [], waited_s=waited_s, timeout_s=60))
    display(Progress([], 0, "joining", 0, 0, {}, []))
    for stage in ("training", "done"):
        display(Progress([], 0, stage, 0, 0, {}, []))
    text = "".join(out)
    if is_live:
        assert f"{label}, 12 of 60 s" in text
        assert "parties load their data, 0 s" in text
    else:
        assert text == f"  {label}\n  parties load their data\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--rounds", "3"], "write rounds=3"),
        (["--lr=0.1", "--num-rounds", "2"], "write learning_rate=0.1 rounds=2"),
        (["--device", "cuda"], "a party takes a GPU wherever its node has one"),
        (["--run_dir", "x"], "write --run-dir FOLDER after the command"),
    ],
)
def test_a_config_key_as_an_option_is_told_how_it_is_written(words, hint, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "c.yaml", *words])
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


# paths that cannot be: one line, and the exit code of other mistakes

LONG = "a" * 300
COMMANDS = [
    ["run", "tiny.yaml", "--run-dir", "PATH"],
    ["run", "PATH"],
    ["check", "PATH"],
    ["check", "tiny.yaml", "model_file=PATH", "architecture=null"],
    ["init", "PATH"],
    ["split", "--source", "PATH", "--out", "out"],
    ["fuse", "PATH", "--out", "o.pt"],
    ["query", "PATH", "words"],
    ["evaluate", "PATH", "--data", "d.npz"],
    ["keys", "add", "PATH"],
    ["keys", "list", "PATH"],
    ["stop", "PATH"],
]


@pytest.fixture
def project(settings, tmp_path, monkeypatch):
    """The working folder, with a config; no cluster is there to connect to."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    return tmp_path


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:3]))
@pytest.mark.parametrize("path", [LONG, "a/" * 3000, "file/x", "loop/x", "~nowho/y"])
def test_a_path_that_cannot_be_is_one_line(project, capsys, words, path):
    assert main([word.replace("PATH", path) for word in words]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(("fedray: ", "  - "))
    assert "Traceback" not in lines


def test_a_run_folder_with_too_long_a_name_is_named(project, capsys):
    for more in ([], ["--resume"]):
        assert main(["run", "tiny.yaml", "--run-dir", LONG, *more]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "cannot be written: File name too long" in line
        assert "Name a folder with --run-dir" in line
        assert len(line) < 700


@pytest.mark.parametrize("path", [LONG, "a/" * 3000, "file/x", "loop/x"])
def test_a_folder_for_party_files_that_cannot_be_is_one_line(project, capsys, path):
    assert main(["split", "--samples", "10", "--out", path]) == 1
    assert capsys.readouterr().err.startswith("fedray: ")


def test_check_says_in_json_what_the_system_refuses(project, capsys):
    words = ["check", "tiny.yaml", f"model_file={LONG}", "architecture=null", "--json"]
    assert main(words) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert "File name too long" in said["problems"][0]


def test_a_config_without_an_end_is_not_read_for_ever(project, capsys):
    assert main(["check", "/dev/zero"]) == 1
    assert "/dev/zero" in capsys.readouterr().err


def test_a_new_run_leaves_hidden_files_of_others_alone(project, capsys):
    other = project / "run" / "below" / ".model.pt.12345678.part"
    other.parent.mkdir(parents=True)
    other.write_text("another program's")
    main(["run", "tiny.yaml", "--run-dir", "run"])  # trains where there is a cluster
    assert other.exists()
