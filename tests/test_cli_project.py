"""The command line's own commands: config, init, completion, version, exit codes."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedray.cli import main
from fedray.cli.exit_codes import ExitCode
from fedray.messages import RoundReport
from fedray.progress_display import round_line

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "command-line.md"


def out(capsys, *words: str) -> str:
    assert main(list(words)) == ExitCode.DONE
    return capsys.readouterr().out


def test_config_lists_every_key_under_its_topic(capsys):
    message = out(capsys, "config")
    assert message.index("Rounds:") < message.index("party_fraction")
    assert "round_timeout_s        default 600" in message


def test_config_is_not_cut_where_no_terminal_is(capsys):
    message = out(capsys, "config")
    assert "builds the model; of sklearn also an estimator's name\n" in message


def test_config_explains_one_key(capsys):
    message = out(capsys, "config", "server_tau")
    assert "type     number" in message
    assert "default  0.001" in message
    assert "allowed  above 0" in message
    assert "fusion_algorithm: fedadagrad, fedadam, fedyogi" in message


def test_config_explains_a_key_within_another(capsys):
    assert "scheme: dirichlet" in out(capsys, "config", "partition.alpha")


def test_config_names_the_nearest_key(capsys):
    assert main(["config", "epocs"]) == ExitCode.FAILED
    assert "did you mean 'epochs'" in capsys.readouterr().err


def test_config_is_plain_data_for_scripts(capsys):
    keys = {key["name"]: key for key in json.loads(out(capsys, "config", "--json"))}
    assert keys["rounds"]["resume"] is True
    assert [key["name"] for key in keys["groups"]["keys"]] == ["by", "k"]
    assert json.loads(out(capsys, "config", "seed", "--json"))["default"] == 0


def test_config_prints_a_schema_for_editors(capsys):
    schema = json.loads(out(capsys, "config", "--json-schema"))
    assert schema["properties"]["rounds"]["minimum"] == 1
    assert schema["properties"]["rounds"]["description"].startswith("rounds of")


def test_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == ExitCode.DONE
    assert re.fullmatch(r"fedray \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_wrong_command_line_ends_as_usage(capsys):
    for words in (["nope"], ["run"], ["runs", "--nope"], ["completion", "tcsh"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == ExitCode.USAGE


def test_run_needs_a_config_and_nothing_else(capsys):
    with pytest.raises(SystemExit):
        main(["run"])
    assert capsys.readouterr().err.endswith("arguments are required: CONFIG\n")


def test_keys_are_plain_data_for_scripts(tmp_path, capsys):
    file = str(tmp_path / "keys")
    added = json.loads(out(capsys, "keys", "add", file, "a", "--json"))
    assert added["client"] == "a"
    assert added["secret"] not in Path(file).read_text()
    assert json.loads(out(capsys, "keys", "list", file, "--json")) == ["a"]


def test_the_docs_page_lists_every_command_and_exit_code(capsys):
    page = PAGE.read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+)\s", capsys.readouterr().out, re.MULTILINE)
    assert {"run", "completion"} <= set(commands)
    for command in commands:
        assert f"`fedray {command}" in page, command
    for code in ExitCode:
        assert f"| {code.value} | " in page


def test_init_writes_a_project_and_never_over_another(tmp_path, capsys):
    folder = tmp_path / "new"
    message = out(capsys, "init", str(folder))
    assert f"fedray run {folder / 'config.yaml'}" in message
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.yaml", "data_handler.py", "architecture.py", "README.md"}
    before = (folder / "README.md").read_bytes()
    (folder / "config.yaml").unlink()
    assert main(["init", str(folder)]) == ExitCode.FAILED
    assert "already has" in capsys.readouterr().err
    assert not (folder / "config.yaml").exists()
    assert (folder / "README.md").read_bytes() == before
    assert len(before.splitlines()) == 5


def test_init_prints_a_command_that_can_be_pasted(tmp_path, capsys):
    folder = tmp_path / "my first project"
    command = out(capsys, "init", str(folder)).splitlines()[-1]
    words = shlex.split(command.removeprefix("run it: "))
    assert words == ["fedray", "run", str(folder / "config.yaml")]


def test_init_writes_through_no_broken_link(tmp_path, capsys):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.yaml").symlink_to(tmp_path / "elsewhere")
    assert main(["init", str(folder)]) == ExitCode.FAILED
    assert "already has config.yaml" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("n_rounds", "n_parties", "start"),
    [(9, 2, "   7 of 9    2 of 2  "), (40, 12, "  7 of 40  12 of 12  ")],
)
def test_a_round_s_line_has_a_space_before_numbers_of_any_length(
    n_rounds, n_parties, start
):
    report = RoundReport(
        round=7, chosen=n_parties, reported=n_parties, fused=n_parties, refused=0,
        aggregated=True, loss=None, accuracy=None, bytes_moved=0, seconds=0.0,
        train_seconds=0.0, evaluate_seconds=0.0, evaluated=0,
    )  # fmt: skip
    assert round_line(report, n_rounds).startswith(start)


def test_what_init_wrote_runs_as_it_is(tmp_path, capsys, cluster):
    out(capsys, "init", str(tmp_path))
    message = out(
        capsys, "run", f"{tmp_path}/config.yaml", "--run-dir", f"{tmp_path}/run"
    )
    assert "3 of 3    2 of 2" in message
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert json.loads(history[-1])["accuracy"] > 0.7
    assert (tmp_path / "run" / "report.html").exists()


COMPLETE = """
source /dev/stdin <<< "$SCRIPT"
COMP_WORDS=({words})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_fedray
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def bash_script():
    done = subprocess.run(
        [sys.executable, "-m", "fedray", "completion", "bash"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fedray ru", {"run", "runs"}),
        ("fedray run --re", {"--resume"}),
        ("fedray run c.yaml round", {"round_timeout_s=", "rounds="}),
        ("fedray run conf", {"config.yaml"}),
        ("fedray config partition.a", {"partition.alpha"}),
        ("fedray status fir", {"first"}),
        ("fedray keys re", {"remove"}),
        ("fedray completion b", {"bash"}),
        ("fedray nope x", set()),
    ],
)
def test_bash_completes(words, expected, bash_script, tmp_path):
    (tmp_path / ".fedray" / "runs" / "first").mkdir(parents=True)
    (tmp_path / "config.yaml").touch()
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE.format(words=words)],
        env={"SCRIPT": bash_script, "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(done.stdout.split()) == expected
    assert done.stderr == ""


def test_bash_completes_a_file_with_spaces_in_its_name(bash_script, tmp_path):
    (tmp_path / "my first project").mkdir()
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE.format(words="fedray run my")],
        env={"SCRIPT": bash_script, "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["my first project"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_their_script(shell, tmp_path, capsys):
    script = tmp_path / "script"
    script.write_text(out(capsys, "completion", shell))
    assert "round_timeout_s" in script.read_text()
    if not shutil.which(shell):
        pytest.skip(f"no {shell} here to read it")
    subprocess.run([shell, "-n", str(script)], check=True)
