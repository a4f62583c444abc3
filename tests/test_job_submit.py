"""`ray job submit` on a real head with token authentication, as the README says."""

import json
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml
from support.processes import ray_folder, remaining_pids, running_process

from fedray.messages import RoundReport
from fedray.metrics import COUNTER, TABLE, dashboard

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow


class Head:
    """A head node started from the command line, and what a person does with it."""

    def __init__(self, home: Path, ray_tmp: Path):
        self.home, self.ray_tmp = home, ray_tmp
        self.token = secrets.token_hex(32)
        (home / ".ray").mkdir()
        (home / ".ray" / "auth_token").write_text(self.token)
        self.dashboard = f"http://127.0.0.1:{free_port()}"
        self.env = {
            "HOME": str(home),
            "PATH": f"{BIN}:/usr/bin:/bin",  # where the raylet finds `python`
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": str(ray_tmp),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # or SIGTERM takes 30 s
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_JOB_STOP_WAIT_TIME_S": "10",  # 3 s before SIGKILL is short here
        }
        dashboard_port = self.dashboard.rpartition(":")[2]
        self.command = [
            *[str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2"],
            *["--node-ip-address=127.0.0.1", f"--temp-dir={ray_tmp}"],
            *[f"--port={free_port()}", f"--dashboard-port={dashboard_port}"],
            *[f"--ray-client-server-port={free_port()}"],
            *[f"--dashboard-agent-listen-port={free_port()}"],
            *["--min-worker-port=0", "--max-worker-port=0"],
            f"--object-store-memory={200 << 20}",
            '--system-config={"metrics_report_interval_ms": 1000}',
        ]

    def ask(self, path: str, token: str | None, body: dict | None = None) -> tuple:
        """(status, answer) of the jobs API."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.dashboard + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, None
        except OSError:
            return 0, None

    def job(self, *words: str, **env: str) -> subprocess.CompletedProcess:
        command = [str(BIN / "ray"), "job", words[0], "--address", self.dashboard]
        return subprocess.run(
            [*command, *words[1:]],
            cwd=ROOT,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=600,
        )

    def submit(self, name: str, folder: Path, *words: str) -> None:
        """Submit the shipped job file with settings laid over it."""
        fuse = ["--", "python", "jobs/fuse.py", "jobs/mnist_fedavg.yaml", "epochs=1"]
        samples = "partition={source: mnist, samples_per_party: 50, scheme: iid}"
        options = ["--submission-id", name, "--working-dir", ".", "--no-wait"]
        words = (samples, *words, "--run-dir", str(folder))
        done = self.job("submit", *options, *fuse, *words)
        assert done.returncode == 0, done.stdout + done.stderr

    def ended(self, name: str) -> str:
        """The job's last status."""
        return self.wait(
            lambda: self.ask(f"/api/jobs/{name}", self.token)[1]["status"],
            {"SUCCEEDED", "FAILED", "STOPPED"},
        )

    def log(self, name: str) -> str:
        return self.ask(f"/api/jobs/{name}/logs", self.token)[1]["logs"]

    def wait(self, ask, wanted, timeout_s: float = 600):
        until = time.monotonic() + timeout_s
        while (found := ask()) not in wanted:
            assert time.monotonic() < until, f"{found}, not {wanted}"
            time.sleep(0.2)
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with ray_folder() as ray_tmp:
        head = Head(home, ray_tmp)
        log = home / "head.log"
        with running_process(head.command, log, env=head.env, cwd=home) as process:
            head.wait(lambda: head.ask("/api/jobs/", head.token)[0], {200})
            assert process.poll() is None, log.read_text()
            yield head
        assert remaining_pids(ray_tmp) == set(), "processes outlived the head"


@pytest.fixture(scope="module")
def prometheus(head, tmp_path_factory):
    """Ask a real Prometheus that finds the nodes in the file Ray writes for it."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("there is no prometheus here")
    folder = tmp_path_factory.mktemp("prometheus")
    nodes = [str(head.ray_tmp / "prom_metrics_service_discovery.json")]
    found = {"files": nodes, "refresh_interval": "1s"}
    scraped = {"job_name": "ray", "file_sd_configs": [found]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scraped]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]

    def ask(query: str) -> dict:
        url = f"http://{address}/api/v1/query?query={urllib.parse.quote(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            series = json.loads(answer.read())["data"]["result"]
        tags = ("party", "outcome", "reason")
        return {
            tuple(one["metric"][tag] for tag in tags if tag in one["metric"]): float(
                one["value"][1]
            )
            for one in series
        }

    with running_process(command, folder / "log", cwd=folder) as process:
        yield ask
        assert process.poll() is None, (folder / "log").read_text()


@pytest.fixture(scope="module")
def submitted(head, prometheus):
    folder = head.home / "tutorial"
    head.submit("tutorial", folder, "rounds=2")
    status = head.ended("tutorial")
    assert status == "SUCCEEDED", head.log("tutorial")
    return folder


def test_a_submitted_federation_runs_to_its_end(submitted):
    lines = (submitted / "history.jsonl").read_text().splitlines()
    rounds = [json.loads(line) for line in lines]
    assert [r["round"] for r in rounds] == [1, 2]
    assert [(r["chosen"], r["fused"]) for r in rounds] == [(2, 2)] * 2
    assert [p["n_samples"] for p in rounds[0]["parties"]] == [50, 50]


def test_the_run_folder_outlives_the_job_and_its_working_dir(head, submitted):
    names = {path.name for path in submitted.iterdir()}
    assert {"config.yaml", "global_model.pt", "report.html", "checkpoints"} <= names
    log = head.log("tutorial")
    assert f"model    {submitted}/global_model.pt" in log
    assert not str(submitted).startswith(str(head.ray_tmp))


def test_progress_in_a_jobs_log_is_plain_lines(head, submitted):
    log = head.log("tutorial")
    assert re.search(r"^ +1 of 2 +2 of 2 +\d+\.\d+ +\d\.\d+ .* s$", log, re.MULTILINE)
    assert re.search(r"^ +2 of 2 +2 of 2 +\d+\.\d+ +\d\.\d+ .* s$", log, re.MULTILINE)
    assert "\r" not in log
    assert "\x1b[K" not in log


def expected(lines: list[RoundReport]) -> dict[str, dict]:
    """Every metric of a run by hand from its history: the last value, or the sum."""
    found = {metric.name: {} for metric in TABLE}
    for report in lines:
        for metric in TABLE:
            before = found[metric.name]
            for tags, value in metric.values(report):
                key = tuple(filter(None, tags.values()))  # Prometheus drops empty ones
                adds = metric.kind == COUNTER
                before[key] = value + (before.get(key, 0) if adds else 0)
    return found


def test_prometheus_finds_every_value_of_the_history(head, submitted, prometheus):
    text = (submitted / "history.jsonl").read_text()
    lines = [RoundReport.from_json(json.loads(line)) for line in text.splitlines()]
    head.wait(lambda: prometheus('ray_fedray_round{run="tutorial"}'), ({(): 2.0},))
    for metric in TABLE:
        if metric.name == "closed":
            continue
        got = prometheus(f'{metric.exported}{{run="tutorial"}}')
        wanted = {key: n for key, n in expected(lines)[metric.name].items() if n}
        assert got.keys() == wanted.keys(), metric.name
        for key, value in wanted.items():
            exact = metric.kind != COUNTER or metric.unit in ("", "bytes")
            assert got[key] == (value if exact else pytest.approx(value)), metric.name
    assert prometheus('ray_fedray_accuracy{run="tutorial"}') == {(): lines[-1].accuracy}
    moved = sum(line.bytes_moved for line in lines)
    assert prometheus('ray_fedray_bytes_moved_total{run="tutorial"}') == {(): moved}


def test_the_dashboards_queries_are_answered(head, submitted, prometheus):
    # of this run: no scheduler, groups, privacy, no metric but accuracy
    nothing = {"restarts", "threshold", "estimate", "metric", "learning_rate"}
    nothing |= {"privacy_epsilon", "edges", "edge_bytes"}
    nothing |= {"staleness", "expired", "virtual_s"}  # asynchronous
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$run", "tutorial")
            query = query.replace("$__rate_interval", "1m")
            wanted = query, target["legendFormat"].split()[-1] not in nothing
            # a rate is there from the second look at the nodes on
            head.wait(lambda q=query: (q, bool(prometheus(q))), {wanted})


def test_without_the_token_the_jobs_api_answers_nothing(head):
    never = head.home / "never"
    entrypoint = {"entrypoint": f"touch {never}"}
    for token, refused in ((None, 401), ("0" * 64, 403)):
        assert head.ask("/api/jobs/", token)[0] == refused
        assert head.ask("/api/jobs/", token, entrypoint)[0] == refused
    assert head.job("list", RAY_AUTH_MODE="disabled").returncode != 0
    assert not never.exists()


def test_a_stopped_job_keeps_its_rounds_and_another_continues(head):
    folder = head.home / "stopped"
    head.submit("stopped", folder, "rounds=500")
    history = folder / "history.jsonl"
    head.wait(lambda: history.exists() and history.stat().st_size > 0, {True})
    assert head.job("stop", "stopped").returncode == 0
    assert head.ended("stopped") == "STOPPED"
    assert "go on with --resume" in head.log("stopped")
    n_done = len(history.read_text().splitlines())
    head.submit("resumed", folder, f"rounds={n_done + 1}", "--resume")
    assert head.ended("resumed") == "SUCCEEDED", head.log("resumed")
    assert f"going on after round {n_done}" in head.log("resumed")
    assert len(history.read_text().splitlines()) == n_done + 1


def test_the_token_is_in_no_log(head, submitted):
    logs = [path for path in head.ray_tmp.rglob("logs/*") if path.is_file()]
    assert any("job-driver-tutorial" in path.name for path in logs)
    assert [p.name for p in logs if head.token.encode() in p.read_bytes()] == []
