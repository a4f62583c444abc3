"""Connecting to Ray: addresses, tokens, slow starts; address files of runs."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import yaml
from support.processes import FEDRAY, ray_folder
from support.waiting import wait_for

import fedray
from fedray.checkpoint import lock_folder
from fedray.cli import main
from fedray.errors import ClusterError, Stopped
from fedray.federation import (
    actors,
    cluster_address,
    connection,
    run_addresses,
)
from fedray.federation.cluster_address import ClusterAddress, check_cluster
from fedray.federation.run_addresses import announce_run, find_runs


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A home folder of this test alone; no cluster is named or connected."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("address", "needed"),
    [
        ("ray://127.0.0.1:10001", "is for Ray Client, which fedray does not use"),
        ("http://127.0.0.1:8265", "is for `ray job`"),
        ("127.0.0.1", "RAY_ADDRESS=127.0.0.1 is no address of a Ray cluster"),
        ("127.0.0.1:0", "is no address"),
        ("127.0.0.1:65536", "is no address"),
        ("127.0.0.1:port", "is no address"),
        (":6379", "is no address"),
        ("a b:6379", "is no address"),
        ("fe80::1:6379", "is no address"),
        ("127.0.0.1:1", "nobody listens at 127.0.0.1:1 (RAY_ADDRESS)"),
        ("[::1]:1", "nobody listens at [::1]:1"),
        ("no-such-host.invalid:6379", "nobody listens at no-such-host.invalid"),
    ],
)
@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("words", [["runs"], ["stop", "x"], ["leave", "x", "--name=a"]])
def test_an_address_that_cannot_be_is_told(monkeypatch, capsys, address, needed, words):
    monkeypatch.setenv("RAY_ADDRESS", f" {address}\n")
    assert main(words) == 1
    assert needed in capsys.readouterr().err


@pytest.fixture
def listener():
    """A server that takes connections and answers with what its `reply` has."""
    server = socket.create_server(("127.0.0.1", 0))
    made = SimpleNamespace(address=f"127.0.0.1:{server.getsockname()[1]}", reply=b"")

    def serve() -> None:
        held = []
        with contextlib.suppress(OSError):
            while True:
                held.append(server.accept()[0])
                if made.reply:
                    held[-1].sendall(made.reply)

    threading.Thread(target=serve, daemon=True).start()
    yield made
    server.shutdown(socket.SHUT_RDWR)
    server.close()


@pytest.mark.parametrize(
    ("reply", "needed"),
    [
        (b"", "takes connections and does not answer in 0.5 s"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no head of a Ray cluster answers at"),
    ],
)
@pytest.mark.usefixtures("home")
def test_a_port_of_another_program_is_told(
    monkeypatch, capsys, listener, reply, needed
):
    listener.reply = reply
    monkeypatch.setattr(cluster_address, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setenv("RAY_ADDRESS", listener.address)
    assert main(["runs"]) == 1
    assert needed in capsys.readouterr().err


@pytest.mark.usefixtures("home")
def test_a_proxy_for_the_web_is_not_asked_for_a_cluster(monkeypatch, capsys, listener):
    monkeypatch.setattr(cluster_address, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setenv("RAY_ADDRESS", listener.address)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert main(["runs"]) == 1
    assert "takes connections and does not answer" in capsys.readouterr().err


@pytest.mark.usefixtures("home")
def test_a_name_that_nobody_looks_up_is_told_in_time(monkeypatch, capsys):
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(600))
    monkeypatch.setattr(cluster_address.connect_error, "__defaults__", (0.2,))
    monkeypatch.setenv("RAY_ADDRESS", "head.example:6379")
    assert main(["runs"]) == 1
    released.set()
    assert "nobody listens at head.example:6379" in capsys.readouterr().err


def test_all_addresses_of_a_name_share_one_timeout(monkeypatch):
    place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [place] * 100)
    tried = []

    def connect(self, place):
        tried.append(self.gettimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket.socket, "connect", connect)
    error = cluster_address.connect_error("head.example:6379", timeout_s=0.0)
    assert str(error) == "timed out"
    assert tried == [cluster_address.MIN_TIMEOUT_S]


def test_auto_without_a_cluster_is_told_whatever_an_old_file_says(
    monkeypatch, capsys, home, tmp_path
):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    monkeypatch.setattr(cluster_address.services, "find_gcs_addresses", set)
    assert main(["status"]) == 1
    assert "no Ray cluster runs on this machine" in capsys.readouterr().err
    both = {"127.0.0.1:1", "127.0.0.1:2"}
    monkeypatch.setattr(cluster_address.services, "find_gcs_addresses", lambda: both)
    assert main(["status"]) == 1
    assert "several Ray clusters run on this machine" in capsys.readouterr().err


def test_without_runs_commands_ask_no_cluster(capsys, home, monkeypatch):
    def connect(*arguments):
        raise AssertionError("a cluster was asked")

    monkeypatch.setattr(connection, "check_cluster", connect)
    assert main(["runs"]) == 0
    assert main(["status"]) == 0
    assert main(["stop", "x"]) == 1
    assert main(["leave", "x", "--name", "a"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("no run 'x' here; there are: none") == 2


def test_the_status_of_a_past_run_is_found_by_its_folder(capsys, home, tmp_path):
    folder, project = tmp_path / "first", tmp_path / "project"
    for path in (folder, project):
        path.mkdir()
        (path / "config.yaml").write_text("rounds: 2\n")
    with lock_folder(folder):
        pass
    assert main(["status", str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out
    assert main(["status", str(project)]) == 1  # no run has begun there
    assert "no run" in capsys.readouterr().err


# starting Ray: Ray's own `init` is replaced

SLOW = "The current node timed out during startup."  # a bare Exception of Ray's


@pytest.fixture
def starts(home, monkeypatch):
    """What `ray.init` does, call by call; the runtime environments it was given."""
    made = SimpleNamespace(results=[], environments=[])
    modify = ray._private.worker._maybe_modify_runtime_env

    def init(address, *, _skip_env_hook, **options):
        made.environments.append(modify(None, _skip_env_hook))
        result = made.results.pop(0) if made.results else None
        if isinstance(result, Exception):
            raise result
        return SimpleNamespace(dashboard_url=result)

    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(connection, "_cluster_folder", lambda: home / "ray")
    return made


@pytest.mark.parametrize(
    "error", [Exception(SLOW), ClusterError(connection.RAYLET_ENDED, "")]
)
def test_a_node_that_starts_slowly_is_started_once_more(starts, caplog, error):
    caplog.set_level("INFO", "fedray")
    starts.results = [error, None]
    with connection.cluster_connection() as may_join:
        assert not may_join
    assert len(starts.environments) == 2
    assert "starting Ray" in caplog.text
    assert "has not started, as on a busy machine: trying again" in caplog.text


def test_what_ray_tells_its_drivers_is_logged_and_not_printed(starts, capsys, caplog):
    many = "WARNING: 8 PYTHON worker processes have been started on node: 234b809 with"
    killed = "1 Workers (tasks / actors)\n killed due to memory pressure (OOM)"
    printed = ray._private.worker.print_to_stdstream
    with connection.cluster_connection():
        for text in (many, killed):
            message = {"lines": [text], "pid": "raylet", "is_err": False}
            ray._private.worker.print_to_stdstream(message, ignore_prefix=False)
    assert ray._private.worker.print_to_stdstream is printed
    assert capsys.readouterr().out == ""
    warnings = [record.getMessage() for record in caplog.records]
    needed = "Ray: 1 Workers (tasks / actors) killed due to memory pressure (OOM)"
    assert [text for text in warnings if text.startswith("Ray: ")] == [needed]


@pytest.mark.parametrize(
    ("errors", "needed"),
    [
        (
            [Exception(SLOW)] * 2,
            r"machine: The current node timed out during startup\. ",
        ),
        (
            [ValueError("some\n words")],
            r"Ray does not start on this machine: some words",
        ),
    ],
)
def test_a_cluster_that_does_not_start_is_an_error_in_words(starts, errors, needed):
    starts.results = list(errors)
    with (
        pytest.raises(ClusterError, match=needed),
        connection.cluster_connection(),
    ):
        pass
    assert not starts.results


@pytest.mark.parametrize(
    ("variable", "place"),
    [
        (None, "`ray get-auth-token` prints it"),
        ("RAY_AUTH_TOKEN", "that of RAY_AUTH_TOKEN"),
        ("RAY_AUTH_TOKEN_PATH", f"the text of {__file__}"),
    ],
)
def test_a_dashboard_says_how_to_get_its_token(
    starts, caplog, monkeypatch, variable, place
):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    if variable:
        monkeypatch.setenv(variable, __file__)
    caplog.set_level("INFO", "fedray")
    starts.results = ["127.0.0.1:8265"]
    with connection.cluster_connection(dashboard=True):
        pass
    assert "dashboard http://127.0.0.1:8265" in caplog.text
    assert f"it asks for a token: {place}" in caplog.text


@pytest.fixture
def uv_run(monkeypatch, tmp_path):
    """As under `uv run` in a folder with data."""
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        connection.uv_runtime_env_hook,
        "_get_uv_run_cmdline",
        lambda: ["uv", "run", "fedray", "run", "config.yaml"],
    )
    monkeypatch.setattr(connection, "check_cluster", lambda cluster: False)
    return tmp_path


def test_rays_copy_of_the_folder_under_uv_run_is_as_this_test_says(uv_run):
    made = ray._private.worker._maybe_modify_runtime_env(None, False)
    assert made["working_dir"] == str(uv_run)  # what must not be


@pytest.mark.parametrize(
    "variable", ["", "ray._private.runtime_env.uv_runtime_env_hook.hook"]
)
def test_a_cluster_of_our_own_gets_no_copy_of_the_folder(
    starts, uv_run, monkeypatch, variable
):
    if variable:
        monkeypatch.setenv("RAY_RUNTIME_ENV_HOOK", variable)
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "1")
    with connection.cluster_connection():
        pass
    assert starts.environments == [None]


def test_another_cluster_gets_a_copy_only_if_the_user_says_so(
    starts, uv_run, monkeypatch, caplog
):
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with connection.cluster_connection():
        pass
    assert starts.environments.pop() is None
    assert f"Ray would copy the folder {uv_run} to all nodes" in caplog.text
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "1")
    with connection.cluster_connection():
        pass
    assert starts.environments.pop()["working_dir"] == str(uv_run)
    assert f"is set: Ray copies the folder {uv_run} to all nodes" in caplog.text


# address files


def test_a_run_is_found_while_its_folder_is_locked(home, tmp_path):
    folder = tmp_path / "a" / "run"
    folder.parent.mkdir()
    with lock_folder(folder), announce_run("run", folder) as announce:
        assert [entry.cluster for entry in find_runs()] == [""]
        announce("1.2.3.4:5")
        (entry,) = find_runs("run")
        assert (entry.folder, entry.cluster) == (str(folder), "1.2.3.4:5")
        assert find_runs(str(folder)) == [entry]
        assert find_runs("other") == []
        (file,) = (home / ".fedray" / "running").iterdir()
        assert file.stat().st_mode & 0o077 == 0
        left_behind = file.read_text()
    assert list(file.parent.iterdir()) == []
    file.write_text(left_behind)  # as by a run that was killed
    assert find_runs() == []
    assert file.exists()
    for path in (folder / ".lock", folder):
        path.unlink() if path.is_file() else path.rmdir()
    assert find_runs() == []
    assert not file.exists()  # its folder is gone


NUMBERS = '{"run": 1, "folder": "/x", "cluster": "", "host": "elsewhere"}'


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"run": 1}', "\0", "null", "[" * 100_000, NUMBERS],
    ids=range(9),
)
def test_an_address_file_that_cannot_be_read_counts_as_none(home, text):
    folder = home / ".fedray" / "running"
    folder.mkdir(parents=True)
    (folder / "0.json").write_text(text)
    assert find_runs() == []


def test_a_run_without_a_place_for_its_address_goes_on(monkeypatch, tmp_path, caplog):
    def no_folder():
        raise PermissionError(13, "Permission denied", "/x")

    monkeypatch.setattr(run_addresses, "state_folder", no_folder)
    with announce_run("run", tmp_path) as announce:
        announce("1.2.3.4:5")
    assert "will not find this run: /x: Permission denied" in caplog.text
    assert find_runs() == []


def test_a_run_of_another_machine_or_of_a_lost_cluster_is_listed_at_once(
    home, tmp_path, capsys, caplog
):
    here, there = tmp_path / "here", tmp_path / "there"
    with lock_folder(here), announce_run("here", here) as announce:
        assert main(["runs"]) == 0
        assert "here                     starting" in capsys.readouterr().out
        assert main(["stop", "here"]) == 1
        assert "here is connecting to its Ray cluster" in capsys.readouterr().err
        announce("127.0.0.1:1")
        entry = {"run": "there", "folder": str(there), "cluster": "10.0.0.1:1"}
        file = home / ".fedray" / "running" / "1.json"
        file.write_text(json.dumps({**entry, "host": "another-host"}))
        assert main(["runs"]) == 0
        captured = capsys.readouterr()
        assert "there                    on another-host" in captured.out
        assert "here                     silent" in captured.out
        assert "nobody listens at 127.0.0.1:1 (run here)" in caplog.text
        assert "RAY_ADDRESS" not in caplog.text
        assert main(["stop", "there"]) == 1
        assert (
            "there runs on another-host. Give this command" in capsys.readouterr().err
        )


def test_two_runs_of_one_name_are_told_apart_by_their_folders(home, tmp_path, capsys):
    one, two = tmp_path / "1" / "run", tmp_path / "2" / "run"
    with (
        lock_folder(one), announce_run("run", one),
        lock_folder(two), announce_run("run", two),
    ):  # fmt: skip
        assert main(["stop", "run"]) == 1
        text = capsys.readouterr().err
        assert f"2 runs are named run: {one}, {two}. Give the folder" in text
        assert main(["stop", str(two)]) == 1
        assert "is connecting" in capsys.readouterr().err


@pytest.mark.parametrize(("lost", "name"), [(0, "head at 127"), (1, "node here")])
def test_a_lost_cluster_is_said_once_with_what_to_do(caplog, lost, name):
    with ray_folder() as folder:
        head = socket.create_server(("127.0.0.1", 0))
        node = socket.create_server(f"{folder}/raylet", family=socket.AF_UNIX)
        address = f"127.0.0.1:{head.getsockname()[1]}"
        watch = actors.ClusterWatch(address, f"{folder}/raylet")
        watch.check(0)
        assert caplog.text == ""
        (head, node)[lost].close()
        watch.check()  # it was asked just now
        assert caplog.text == ""
        watch.check(0)
        watch.check(0)
        assert caplog.text.count("does not listen any more") == 1
        assert f"Ray's {name}" in caplog.text
        assert "go on with --resume" in caplog.text
        (node, head)[lost].close()


# on living clusters


def own_address() -> str:
    return ray.get_runtime_context().gcs_address


def environment(home: Path, **more) -> dict[str, str]:
    """Of a command in another home, with the token of this one."""
    token = str(Path.home() / ".ray" / "auth_token")
    plain = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return plain | {"HOME": str(home), "RAY_AUTH_TOKEN_PATH": token} | more


@pytest.mark.usefixtures("cluster")
def test_a_wrong_token_is_one_line_and_not_rays_log(tmp_path):
    more = {"RAY_ADDRESS": own_address(), "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "wrong"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "fedray", "runs"],
        capture_output=True, text=True, check=False, env=environment(tmp_path, **more),
    )  # fmt: skip
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert "does not take the token from here. RAY_AUTH_TOKEN has another" in lines[-1]
    assert lines[:-1] == [f"connecting to Ray at {own_address()}"]


@pytest.mark.usefixtures("cluster")
def test_a_cluster_that_this_machine_is_no_node_of_is_told(monkeypatch):
    cluster = ClusterAddress(own_address())
    check_cluster(cluster)
    monkeypatch.setattr(cluster_address.services, "find_node_ids", lambda: {"ab12"})
    with pytest.raises(ClusterError, match="this machine is not a node of the Ray cl"):
        check_cluster(cluster)
    monkeypatch.setattr(ray, "__version__", "2.9.1")
    with pytest.raises(ClusterError, match=r"is 2.*, here 2\.9\.1"):
        check_cluster(cluster)


@pytest.mark.usefixtures("cluster")
def test_runs_of_two_clusters_are_listed_and_stopped_without_an_address(
    settings, tmp_path, monkeypatch
):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(settings | {"rounds": 100_000}))
    variables = environment(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    ended = []

    def run_here() -> None:
        try:
            fedray.run(settings, run_dir=tmp_path / "first", rounds=100_000)
        except Stopped as stopped:
            ended.append(stopped)

    def command(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "fedray", *words],
            capture_output=True, text=True, check=True, env=variables,
        )  # fmt: skip
        return done.stdout

    def stages() -> dict[str, str]:
        listed = json.loads(command("runs", "--json"))
        return {state["run"]: state["stage"] for state in listed if state["last"]}

    thread = threading.Thread(target=run_here)
    thread.start()
    with ray_folder() as folder:
        words = [*FEDRAY, "run", str(config), "--run-dir", str(tmp_path / "second")]
        variables["RAY_TMPDIR"] = str(folder)
        process = subprocess.Popen(words, env=variables)
        try:
            wait_for(lambda: len(stages()) == 2 or process.poll() is not None)
            assert set(stages()) == {"first", "second"}
            command("stop", "second")
            assert process.wait(60) == 130
            assert set(stages()) == {"first"}
            command("stop", str(tmp_path / "first"))
        finally:
            process.kill()
            process.wait(60)
    thread.join(60)
    assert len(ended) == 1
    assert find_runs() == []
    jobs = ray._private.worker.global_worker.gcs_client.get_all_job_info().values()
    names = {job.config.metadata["job_name"] for job in jobs if job.config.metadata}
    assert {"fedray:status", "fedray:stop"} <= names
