"""`fedray serve` as its own process: its page in a browser, its calls fuzzed."""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import requests
from support.processes import FEDRAY, as_stranger, cluster_pids, wait_until_gone
from support.rest import Client
from support.waiting import wait_for

from fedray.placement import run_label

ROOT = Path(__file__).parent.parent
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow


class ServeProcess:
    """One `fedray serve` at a time on one port and root, with a cluster of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.client = Client(f"http://127.0.0.1:{self.port}")
        self.process: subprocess.Popen | None = None

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self) -> None:
        command = [*FEDRAY, "serve", "--port", str(self.port),
                   "--root", str(self.folder / "root")]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        until = time.monotonic() + 600
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                if self.client.get("/health").status_code == 200:
                    return
            time.sleep(0.2)
        raise AssertionError(self.log()[-3000:])

    def end(self, sign: int) -> None:
        children = cluster_pids(self.process.pid)
        self.process.send_signal(sign)
        self.process.wait(600)
        assert wait_until_gone(children) == {}, "processes outlived the service"


@pytest.fixture(scope="module")
def serving(worker_server, tmp_path_factory):
    one = ServeProcess(tmp_path_factory.mktemp("alone"))
    one.start()
    yield one
    if one.process.poll() is None:
        one.end(signal.SIGTERM)


def test_others_reach_no_port_no_file_and_no_id_of_the_service(serving):
    """Other machines, and other users of this one."""
    client = serving.client
    id = client.ready(rounds=100_000)
    client.train(id, wait="false")
    parent = psutil.Process(serving.process.pid)

    def listening():
        return {
            (process.name(), line.laddr.ip)
            for process in (parent, *parent.children(recursive=True))
            for line in process.net_connections("inet")
            if line.status == psutil.CONN_LISTEN
        }

    def folder_of_ray():
        for process in parent.children(recursive=True):
            for word in process.cmdline():
                if word.startswith("--raylet_socket_name="):
                    return Path(word.partition("=")[2]).parents[1]
        return None

    session = wait_for(folder_of_ray)
    (file,) = wait_for(lambda: [*session.glob("metrics_export_port_*")])
    url = f"http://127.0.0.1:{file.read_text().strip()}/metrics"
    label = run_label(id)
    wait_for(lambda: f'run="{label}"' in requests.get(url, timeout=60).text)
    assert id not in requests.get(url, timeout=60).text
    titles = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(
        ["cmdline"])]  # fmt: skip
    assert not [title for title in titles if id in title]
    addresses = {ip for _, ip in listening()}
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1"}, listening()
    logs = list((session / "logs").glob("worker-*.err"))
    assert sum(stat.S_IMODE(log.stat().st_mode) == 0o600 for log in logs) >= 2
    own = session.parents[1]
    assert own.name == f"fedray-{os.getuid()}"
    for folder in (own, serving.folder / "root"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        if not os.getuid():  # its parents let others by
            text = as_stranger(lambda folder=folder: os.listdir(folder))
            assert text.startswith("PermissionError")
    client.stop(id)


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_the_live_page_shows_federations_in_a_browser(serving, tmp_path):
    client = serving.client
    id = client.ready(rounds=3)
    client.train(id)
    page = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--virtual-time-budget=5000",
         f"--user-data-dir={tmp_path}/profile", "--window-size=1280,900",
         f"--screenshot={tmp_path}/page.png", "--dump-dom", client.url],
        capture_output=True, text=True, timeout=600, check=True,
    ).stdout  # fmt: skip
    assert id in page
    assert '<span class="state trained">trained</span>' in page
    assert "3 of 3" in page
    assert page.count("<polyline") >= 2
    assert "in all" in page
    assert "Content Security Policy" not in page
    assert (tmp_path / "page.png").stat().st_size > 5_000
    wait_for(lambda: f"{id[:4]}: round 3 of 3, 2 of 2 fused" in serving.log())
    report = client.get(f"/aggregators/{id}/report")
    assert "unsafe-inline" in report.headers["content-security-policy"]
    assert str(serving.folder) not in report.text
    assert "model_file model.pt" in report.text
    client.stop(id)


def test_no_call_that_its_description_allows_or_forbids_ends_in_500(serving):
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode

    url = serving.client.url
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 10
    statuses: dict[str, set[int]] = {}

    def fuzz(operation, mode, until):
        @settings(max_examples=100, deadline=None, suppress_health_check=HealthCheck)
        @given(case=operation.as_strategy(mode))
        def check(case):
            if time.monotonic() > until:
                return
            response = case.call(base_url=url, timeout=300)
            assert response.status_code < 500, response.text
            assert response.headers["content-type"]
            statuses.setdefault(operation.label, set()).add(response.status_code)

        with contextlib.suppress(Unsatisfiable):
            check()  # a call without parameters has nothing that could be wrong

    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            fuzz(operation, mode, time.monotonic() + 2)
    assert len(statuses) == len(operations)
    assert statuses["POST /train"] <= {400, 404, 413, 415, 422}
    assert requests.get(f"{url}/health", timeout=300).status_code == 200
