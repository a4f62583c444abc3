"""Failures of a party: what of an error travels, and where the rest lies."""

import json
import logging
import pickle
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import ray

import fedray
from fedray import data, models
from fedray.checkpoint import RunFolder
from fedray.config import parse
from fedray.errors import JoinFailed, PartyError
from fedray.messages import ActorLocation
from fedray.party import GroupPlan, PartyGroup

SECRET = "Jane Doe, born 1961"  # in the data, never in the code
HANDLER = """
    import logging
    import subprocess
    import sys
    import warnings
    from pathlib import Path
    import numpy as np
    from fedray.errors import DataError, PartyError


    class Shouting(Exception):
        def __str__(self):
            return f"no: {{self.args}}"


    class Broken(Exception):
        def __str__(self):
            raise ValueError(self.args[0])
        __repr__ = __str__


    class Own:
        def __init__(self, path):
            self.path = path
            self.row = Path(path).read_text()
            self.table = {{}}

        def get_data(self):
            row = self.row
            {body}


    def chained(row):
        try:
            raise ValueError(row)
        except ValueError as error:
            error.add_note(row)
            raise RuntimeError(f"of {{row}}") from error


    def make(name):
        return type(name, (ValueError,), {{}})
"""


@pytest.fixture
def failing(settings, tmp_path):
    """Settings with a party whose handler does something: ``failing("1 / 0")``."""

    def write(body, **more):
        (tmp_path / "own.py").write_text(
            textwrap.dedent(HANDLER.format(body=textwrap.dedent(body).strip()))
        )
        (tmp_path / "a.txt").write_text(SECRET)
        settings["parties"] = [{"name": "a", "data": str(tmp_path / "a.txt")}]
        settings["party_dir"] = str(tmp_path / "private")
        settings["data_handler"] = f"{tmp_path / 'own.py'}:Own"
        return settings | more

    return write


def join(settings):
    """The error of a party that joins, as it travels."""
    config, problems = parse(settings)
    assert problems == []
    blueprint, _ = models.named("pytorch").read(config)
    handler = data.named(config.data_handler)
    plan = GroupPlan("a", range(1), config, blueprint, handler, "tiny")
    with pytest.raises(PartyError) as caught:
        PartyGroup(plan, lambda: ActorLocation("1234567890")).join()
    return pickle.loads(pickle.dumps(caught.value))


HOSTILE = {  # what a handler does with a row of its data, and what is told of it
    "raise KeyError(row)": "KeyError (own.py:30: `raise KeyError(row)`)",
    "self.table[row]": "KeyError (own.py:30: `self.table[row]`)",
    "float(row)": "ValueError (own.py:30: `float(row)`)",
    "int(row, 16)": "ValueError (own.py:30: `int(row, 16)`)",
    "np.array([[row], [row, row]], float)": "ValueError",
    "raise ValueError(f'{row} is bad')": "ValueError (own.py:30: `raise ValueError('…",
    "raise ValueError('Jane Doe, born 1961')": "ValueError (own.py:30: `raise Val",
    "raise Shouting(row)": "Shouting (own.py:30: `raise Shouting(row)`)",
    "chained(row)": "RuntimeError (own.py:38: `raise RuntimeError('…') from error`)",
    "raise make(row)": "ValueError (own.py:30: `raise make(row)`)",
    "raise DataError(row, row, row)": "DataError (own.py:30: `raise DataError(row, r",
    "raise ImportError(row, name=row)": "ImportError (own.py:30: `raise ImportErr",
    "raise ImportError(row, name=5)": "ImportError (own.py:30",
    "raise Broken(row)": "Broken (own.py:30: `raise Broken(row)`)",
    "subprocess.run(['echo', row], stdout=sys.stdout); 1 / 0": "ZeroDivisionError: div",
    "raise FileNotFoundError(2, row, row)": "FileNotFoundError (own.py:30: `raise",
    "open(row)": "FileNotFoundError: No such file or directory: … (own.py:30: `open(r",
    "open(self.path + '/' + row)": "NotADirectoryError: Not a directory: {data}/… (",
    "row.nothing": "AttributeError: 'str' object has no attribute 'nothing' (own.py:30",
    "getattr(row, row)": "AttributeError (own.py:30: `getattr(row, row)`)",
    "chained(**{row: row})": "TypeError (own.py:30: `chained(**{row: row})`)",
    "chained(**{'Jane': row})": "TypeError: chained() got an unexpected keyword argu",
    "chained(row, row)": "TypeError: chained() takes 1 positional argument but 2 were ",
    "row + 1": "TypeError (own.py:30: `row + 1`)",
    "1 + row": "TypeError: unsupported operand type(s) for +: 'int' and 'str' (own.py",
    "np.zeros(3)[row]": "IndexError (own.py:30: `np.zeros(3)[row]`)",
    "sys.exit(row)": "SystemExit (own.py:30: `sys.exit(row)`)",
    "exec(row)": "SyntaxError",
    "eval(row.split()[0])": "NameError",
    "assert not row, row": "AssertionError (own.py:30: `assert not row, row`)",
    "raise BaseException(row)": "BaseException (own.py:30: `raise BaseException(row)`)",
    "raise PartyError('a', 'b', row, row, row)": "PartyError (own.py:30: `raise Part",
    "return row": "DataError: data {data}: got get_data() that gives something else",
    "import pydicom": "ModuleNotFoundError: no module 'pydicom' on node 12345678 (",
    "__import__(row.split()[0])": "ModuleNotFoundError (own.py:30: `__import__(row.sp",
    "__import__('importlib').import_module(row[:4])": "ModuleNotFoundError (own.py:30",
    "from numpy import nothing": "ImportError: cannot import name 'nothing' from 'n",
}


@pytest.mark.parametrize("body", HOSTILE)
def test_no_error_of_a_handler_carries_its_data(body, failing, capfd, caplog, tmp_path):
    caplog.set_level(logging.INFO, "fedray")
    error = join(failing(body))
    told = HOSTILE[body].replace("{data}", str(tmp_path / "a.txt"))
    assert error.why.startswith(told)
    assert error.log == str(tmp_path / "private" / "errors.log")
    channels = [repr(pickle.dumps(error)), str(error), *capfd.readouterr(), caplog.text]
    for text in channels:
        assert "Jane D" not in text
        assert "1961" not in text
    assert error.why in caplog.text


def test_the_whole_error_is_in_a_file_of_the_partys_own(failing, tmp_path):
    join(failing("chained(row)"))
    log = tmp_path / "private" / "errors.log"
    assert log.stat().st_mode & 0o777 == 0o600
    text = log.read_text()
    assert " run tiny, party a, reading\n" in text
    assert f"ValueError: {SECRET}\n{SECRET}" in text  # with its note
    assert f"RuntimeError: of {SECRET}" in text
    assert 'own.py", line 38, in chained' in text


def test_a_party_dir_that_cannot_be_written_hides_no_error(failing, tmp_path):
    (tmp_path / "private").write_text("a file")
    error = join(failing("float(row)"))
    assert error.why == "ValueError (own.py:30: `float(row)`)"
    assert (error.log, str(error)) == ("", f"party a, reading: {error.why}")


def test_a_party_logs_what_it_joined_with_and_a_line_per_round(settings, caplog):
    caplog.set_level(logging.INFO, "fedray")
    config, _ = parse(settings)
    blueprint, weights = models.named("pytorch").read(config)
    plan = GroupPlan("a", range(1), config, blueprint, data.named(config.data_handler))
    party = PartyGroup(plan, lambda: ActorLocation("n"))
    party.join()
    party.train(1, np.arange(1), weights)
    joined, trained = caplog.messages
    assert joined == "party:a joined: 40 samples, cpu"
    assert re.fullmatch(r"party:a round 1, loss 2\.\d{4}, \d+\.\d\d s", trained)


@pytest.mark.usefixtures("cluster")
def test_a_run_that_fails_before_round_1_keeps_the_reason(failing, tmp_path):
    folder = tmp_path / "run"
    body = "print(row); warnings.warn(row); logging.warning(row); self.table[row]"
    with pytest.raises(JoinFailed) as caught:
        fedray.run(failing(body), run_dir=folder)
    told = str(caught.value)
    log = tmp_path / "private" / "errors.log"
    assert told == (
        f"1 party cannot take part:\n  - a: KeyError (own.py:30: `{body}`)\n"
        f"Whole errors are in {log} on the parties' nodes."
    )
    assert str(log) not in caught.value.summary
    assert RunFolder(folder).failure() == told
    report = (folder / "report.html").read_text()
    assert "KeyError (own.py:30" in report
    assert str(log) not in report  # which REST serves
    assert SECRET in log.read_text()
    output = tmp_path / "private" / "output.log"
    assert output.read_text().count(f"{SECRET}\n") == 3  # printed, warned, logged
    assert output.stat().st_mode & 0o777 == 0o600
    rays_logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    for file in (*folder.rglob("*"), *rays_logs.rglob("*")):
        assert not file.is_file() or SECRET not in file.read_text(errors="replace")


def test_runs_and_status_tell_why_a_run_failed(tmp_path, monkeypatch, capsys):
    from fedray.cli import runs as commands
    from fedray.federation import runs

    folder = tmp_path / ".fedray" / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("rounds: 3\n")
    RunFolder(folder).write_failure("1 party cannot take part:\n  - a: no")
    monkeypatch.setenv("HOME", str(tmp_path))
    (state,) = runs.list_past()
    assert state.reason == "1 party cannot take part:\n  - a: no"
    assert commands._format_run(state).endswith(
        "\n  1 party cannot take part:\n    - a: no"
    )
    assert json.loads(json.dumps(state.to_json()))["reason"] == state.reason
    RunFolder(folder).write_failure("")
    assert runs.list_past()[0].reason == ""


TRAINING = {  # what a model does, and what is told of it
    "raise ValueError('no such thing as this')": "ValueError: no such thing as this (",
    "raise ValueError(f'{x}')": "ValueError (net.py:8: `raise ValueError('…')`)",
    "raise ValueError(str(x))": "ValueError (net.py:8: `raise ValueError(str(x))`)",
    "x.view(7, 5)": "RuntimeError: shape '[7, 5]' is invalid for input of size ",
    "x @ x.new_ones(3, 3)": "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    "return self.nothing(x)": "AttributeError: 'Net' object has no attribute 'nothing",
}
NET = """
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(784, 10)
        def forward(self, x):
            {body}
            return self.layer(x.flatten(1))
"""


@pytest.mark.parametrize("body", TRAINING)
def test_no_error_of_a_model_carries_samples(body, settings, tmp_path):
    (tmp_path / "net.py").write_text(textwrap.dedent(NET.format(body=body)))
    settings |= {
        "architecture": f"{tmp_path / 'net.py'}:Net",
        "party_dir": str(tmp_path / "private"),
    }
    del settings["data_handler"]
    why = join(settings).why.partition("what the model takes: ")[2]
    assert why.startswith(TRAINING[body])
