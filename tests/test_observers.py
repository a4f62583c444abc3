"""What only watches a run cannot end it: each observer fails alone, told once."""

import contextlib
import io
import logging
import os
import pty
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import fedray
from fedray import observers
from fedray.cli import main
from fedray.errors import OutputError
from fedray.messages import PartyLine, Progress, RoundReport
from fedray.observers import BackgroundObserver, Guard
from fedray.progress_display import ProgressDisplay
from fedray.untrusted_text import CLEAR_LINE, Terminal, cut_to_width


def failing(*arguments):
    raise ValueError("no")


def test_a_guard_says_once_that_its_observer_fails():
    said = []
    guard = Guard("a watcher", said.append)
    assert [guard.call(failing, 1), guard.call(failing), guard.call(len, "ab")] == [
        None, None, 2
    ]  # fmt: skip
    assert said == ["a watcher failed, and the run goes on without it: ValueError: no"]


def test_a_guard_lets_ctrl_c_pass():
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guard("a watcher").call(interrupt)


def background(observe, said, patience_s=0.2, open=None):
    guard = Guard("a watcher", said.append)
    context = open or (lambda: contextlib.nullcontext(observe))
    return BackgroundObserver(guard, context, patience_s)


def test_an_observer_gets_everything_in_order_before_the_run_ends():
    items = []
    with background(items.append, []) as observer:
        for item in range(100):
            observer(item)
    assert items == list(range(100))


def test_one_bad_item_costs_no_other():
    items, said = [], []
    with background(lambda x: items.append(1 // x), said) as observer:
        for item in (0, 1, 0, 1):
            observer(item)
    assert (items, len(said)) == ([1, 1], 1)


@pytest.mark.parametrize("where", ["open", "call", "close"])
def test_an_observer_that_hangs_is_not_waited_for(where):
    said, released = [], []

    def hang(name):
        while where == name and not released:
            time.sleep(0.01)

    @contextlib.contextmanager
    def open():
        hang("open")
        yield lambda item: hang("call")
        hang("close")

    started = time.monotonic()
    with background(None, said, open=open) as observer:
        observer(1)
    assert 0.2 < time.monotonic() - started < 5
    assert said == [
        "a watcher failed, and the run goes on without it: no answer in 0.2 s"
    ]
    released.append(True)
    observer.thread.join(5)
    assert not observer.thread.is_alive()


def test_an_observer_that_does_not_open_is_told_while_the_run_goes_on():
    said = []
    with background(None, said, open=failing) as observer:
        observer.thread.join(5)
        assert len(said) == 1
        observer(1)
    assert len(said) == 1


def test_an_observer_sees_the_error_that_ends_the_run():
    errors, said = [], []

    @contextlib.contextmanager
    def open():
        try:
            yield print
        except KeyError as error:
            errors.append(error)
            raise

    with pytest.raises(KeyError), background(None, said, open=open):
        raise KeyError("x")
    assert ([str(error) for error in errors], said) == (["'x'"], [])


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_shows_names_of_any_script(encoding):
    out, text = io.TextIOWrapper(io.BytesIO(), encoding), "größe 病院\n"
    terminal = Terminal(out)
    terminal.write(text)
    terminal.flush()
    assert out.buffer.getvalue() == text.encode(encoding, "backslashreplace")


def test_a_terminal_obeys_nothing_that_comes_from_outside():
    out = io.StringIO()
    Terminal(out).write("a\x1b]0;x\x07 b\u202ec\x9b2J d\r\n\te\ud800 می\u200cخ\u202f")
    assert out.getvalue() == (
        r"a\u001b]0;x\u0007 b\u202ec\u009b2J d\u000d" "\n\te\\ud800 می\u200cخ\u202f"
    )


def test_a_terminal_that_is_closed_or_missing_takes_what_it_gets():
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed):
        terminal = Terminal(stream)
        assert stream or terminal.fileno() > 2
        assert terminal.write("x") == 1
        terminal.flush()
        assert not terminal.isatty()
        ProgressDisplay(3, terminal)(Progress([], 1, "done", 2, 1, {}, ["a note"]))


def test_a_full_disk_behind_the_output_is_told():
    with pytest.raises(OutputError, match="written: No space left on device"):
        Terminal(Full()).write("x")
    Terminal(Full(), may_fail=True).write("x")


def test_wide_letters_count_as_two_columns():
    assert cut_to_width("病院 a", 4) == "病院"
    assert cut_to_width("gru\u0308n", 4) == "gru\u0308n"
    assert cut_to_width("\x1b[2J", 9) == r"\u001b[2J"


def test_a_live_line_is_cleared_and_names_in_it_are_escaped(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = io.StringIO()
    out.isatty = lambda: True
    display = ProgressDisplay(3, out)
    display(Progress([], 2, "training", 2, 1, {}, [], working={"a\x1b[1mb": 0.5}))
    assert out.getvalue().startswith(CLEAR_LINE)
    assert out.getvalue().endswith(r"a\u001b[1mb 50%")


def report(number, outcome):
    line = PartyLine("b", outcome=outcome)
    return RoundReport(
        round=number, chosen=2, reported=1, fused=1, aggregated=True, refused=0,
        loss=None, accuracy=None, bytes_moved=0, seconds=0, train_seconds=0,
        evaluate_seconds=0, evaluated=0, parties=[line],
    )  # fmt: skip


def test_troubled_parties_are_printed_with_their_round_in_order():
    out = io.StringIO()
    reports = [report(1, "late"), report(2, "failed: a\nlie")]
    ProgressDisplay(3, out)(Progress(reports, 3, "training", 2, 1, {"a": "late"}, []))
    lines = [line.split()[:4] for line in out.getvalue().splitlines()]
    starts = [" ".join(words) for words in lines if words[0] != "round" or words[2:]]
    assert [line for line in starts if "fused" not in line] == [
        "round 1: party b", "1 of 3 1", "round 2: party b", "2 of 3 1",
        "round 3: party a",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["config", "config --json"])
def test_a_command_whose_output_is_lost_fails(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(command.split()) == 1
    assert "standard output cannot be written: No space left" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--help", "--version", "run --help"])
def test_help_that_cannot_be_written_is_one_line(words, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(words.split()) == 1
    needed = "fedray: standard output cannot be written: No space left on device\n"
    assert capsys.readouterr().err == needed


def silent_server() -> socket.socket:
    """A tracking server that takes connections and answers none."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


@pytest.fixture
def scripts(settings):
    """A federation whose names are of several scripts, with a group each."""
    names = "клиника", "病院\u202fa"
    for party, name in zip(settings["parties"], names, strict=True):
        party |= {"name": name, "fields": {"region": name}}
    return settings | {"groups": {"by": "region"}, "name": "größe"}


def test_a_run_outlives_all_that_watches_it(
    scripts, tmp_path, cluster, monkeypatch, caplog
):
    pytest.importorskip("mlflow")
    monkeypatch.setattr(observers, "PATIENCE_S", 0.5)
    calm = fedray.run(scripts, run_dir=tmp_path / "calm")
    server = silent_server()
    uri = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    folder = tmp_path / "größe 病院"
    (folder / "report.html").mkdir(parents=True)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, "fedray"):
        result = fedray.run(
            scripts, run_dir=folder, track="mlflow", watch=failing, rounds=1
        )
        result = fedray.run(
            scripts, run_dir=folder, track="mlflow", watch=failing, resume=True
        )
    assert time.monotonic() - started < 60
    said = [record.message for record in caplog.records]
    for name in ("track: mlflow", "watch", "report.html"):
        assert sum(line.startswith(f"{name} failed") for line in said) == 2, name
    assert result.report is None
    assert set(result.models) == {"клиника", "病院\u202fa"}
    for group, file in result.models.items():
        assert file.read_bytes() == calm.models[group].read_bytes()
    server.close()


def test_a_run_outlives_its_terminal(mlp, digits, tmp_path):
    """The terminal hangs up after the first line: SIGHUP, then errors at each write."""
    config = tmp_path / "федерация.yaml"
    settings = {
        "architecture": mlp, "data_handler": "mnist_pytorch", "rounds": 2,
        "parties": [{"name": "a", "data": digits("a", 40)}],
    }  # fmt: skip
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    # with workers of its own: a worker server's would be of this process's group, which
    # Ray kills at the end where it is not its own
    words = [sys.executable, "-m", "fedray", "run", str(config)]
    ours, theirs = pty.openpty()
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    run = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
        start_new_session=True, preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(theirs)
    first = b""
    while b"\n" not in first:
        first += os.read(ours, 1000)
    os.close(ours)
    assert run.wait(120) == 0
    title = "федерация: fedavg over 1 party, 2 rounds"
    assert (
        first.decode().splitlines()[0]
        == title.encode("ascii", "backslashreplace").decode()
    )
    assert (tmp_path / ".fedray/runs/федерация/global_model.pt").exists()


def take_terminal():
    """Make standard input the controlling terminal, so that it can hang up."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_metrics_that_ray_does_not_take_are_a_note_of_the_run(monkeypatch):
    from fedray import metrics
    from fedray.aggregator.aggregator import Aggregator
    from fedray.aggregator.disclosure import Disclosure
    from fedray.aggregator.round_record import Evaluation, RoundRecord
    from fedray.config import FederationConfig

    monkeypatch.setattr(metrics, "publish", failing)
    aggregator = object.__new__(Aggregator)
    aggregator.plan = SimpleNamespace(run="r", config=FederationConfig(), folder="f")
    aggregator.notes, aggregator.reports = [], []
    aggregator.metrics = Guard("metrics", lambda text: aggregator.notes.append(text))
    config = aggregator.plan.config
    aggregator.disclosure = Disclosure(config, Path("f"), aggregator.metrics)
    for number in (1, 2):
        record = RoundRecord(number, np.arange(1), config)
        aggregator.publish(report(number, "fused"), Evaluation(), record)
    assert len(aggregator.reports) == 2
    assert aggregator.notes == [
        "metrics failed, and the run goes on without it: ValueError: no"
    ]
