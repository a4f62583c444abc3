"""A federation over three hosts, each with an address and files of its own.

Namespaces of one machine: see support/hosts.py. Token and TLS are on.
"""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import hosts
from support.processes import ray_folder
from support.waiting import wait_for

from fedray.data import MnistPytorch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hosts.can_make_namespaces(), reason="cannot make namespaces here"
    ),
]

SLOW = """
    import time
    from torch import nn

    class Slow(nn.Flatten):  # rounds of some seconds: the cores are for Ray meanwhile
        def forward(self, x):
            time.sleep(0.5 * self.training)
            return super().forward(x)

    def mlp():
        return nn.Sequential(Slow(), nn.Linear(784, 10))
"""


class Stage:
    """A head and the hosts of parties a and b; a's data is on a's host and no other."""

    def __init__(self, network: hosts.Network, folder: Path, architecture: str):
        self.folder, self.ray_tmp = folder, network.ray_tmp
        self.head, self.a, self.b = network.hosts
        self.data = folder / "data"
        self.data.mkdir()
        self.address = f"{self.head.address}:6379"
        dashboard = ["--dashboard-host", self.head.address, "--dashboard-port=8265"]
        words = ["--head", "--port=6379", f"--temp-dir={network.ray_tmp}", *dashboard]
        self.head.start_ray(*words, f"--system-config={hosts.QUICK}", mounts={})
        knock = ["bash", "-c", f"exec 3<>/dev/tcp/{self.head.address}/6379"]
        wait_for(lambda: not self.a.run(*knock).returncode, "the head does not listen")
        for host, name in ((self.a, "a"), (self.b, "b")):
            self.digits(name)
            self.join(host, name)
        self.config = folder / "hosts.yaml"
        parties = [
            {
                "name": name,
                "data": str(self.data / f"{name}.npz"),
                "labels": {"fedray-party": name},
            }
            for name in "ab"
        ]
        self.settings = {
            "architecture": architecture,
            "learning_rate": 0.1,
            "rounds": 100_000,
            "quorum": 0.5,
            "round_timeout_s": 60,
            "parties": parties,
        }
        self.config.write_text(yaml.safe_dump(self.settings))

    def digits(self, name: str) -> None:
        (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
        own = self.folder / f"disk-{name}"
        own.mkdir()
        train, test = slice(0, 40), slice(0, 20)
        arrays = {"x_train": x[train], "y_train": y[train]}
        tests = {"x_test": x_test[test], "y_test": y_test[test]}
        np.savez(own / f"{name}.npz", **arrays, **tests)

    def join(self, host: hosts.Host, name: str) -> None:
        """Start a party's host; it waits for the head by itself."""
        label = f"fedray-party={name}"
        mounts = {self.data: self.folder / f"disk-{name}", self.ray_tmp: None}
        host.start_ray(f"--address={self.address}", "--labels", label, mounts=mounts)

    def fedray(self, *words: str):
        """`fedray` in a terminal of the head."""
        program = str(hosts.BIN / "fedray")
        return self.head.run(program, *words, RAY_ADDRESS=self.address)

    def check(self) -> dict:
        done = self.fedray("check", str(self.config), "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout) | {"rc": done.returncode}

    def ready(self) -> dict:
        """A check that finds both parties, as soon as their hosts have joined."""
        made = self.check()
        assert "Traceback" not in str(made)
        return made if made["ok"] else {}

    def rounds(self, run: str) -> list[dict]:
        file = self.folder / run / "history.jsonl"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    architecture = folder / "mlp.py"
    architecture.write_text(textwrap.dedent(SLOW))
    with ray_folder() as ray_tmp, hosts.network(folder, ray_tmp, 3) as network:
        yield Stage(network, folder, f"{architecture}:mlp")


def test_a_host_is_cut_off_mid_round_and_comes_back(stage):
    for host in (stage.a, stage.b):
        wait_for(host.has_joined, "a host did not join")
    checked = wait_for(stage.ready, "the hosts' parties cannot be placed")
    ids = {party["name"]: party["node"] for party in checked["parties"]}
    assert len(set(ids.values())) == 2
    for party in checked["parties"]:
        assert party["found"]["node"] == party["node"]
        assert party["found"]["n_train"] == 40  # read where the head has no such file
    assert [path.name for path in stage.data.iterdir()] == []

    submit = ["ray", "job", "submit", "--address", f"http://{stage.head.address}:8265"]
    fuse = ["python", "jobs/fuse.py", str(stage.config)]
    options = ["--submission-id", "cut", "--working-dir", ".", "--no-wait"]
    folder = ["--run-dir", str(stage.folder / "cut")]
    done = stage.head.run(*submit, *options, "--", *fuse, *folder)
    assert done.returncode == 0, done.stderr

    first = wait_for(lambda: stage.rounds("cut"), "no round was done")[0]
    assert {p["name"]: p["node"] for p in first["parties"]} == ids
    stage.a.plug(False)
    lost = wait_for(lambda: without(stage.rounds("cut"), "a"), "the cut made no odds")
    assert outcomes(lost)["b"] == "fused"
    stage.a.stop_ray()  # a raylet that was taken for dead ends by itself, or is ended
    stage.a.plug(True)
    stage.join(stage.a, "a")
    back = wait_for(
        lambda: stage.a.has_joined() and with_all(stage.rounds("cut"), lost["round"]),
        "a stayed away",
    )
    again = {party["name"]: party["node"] for party in back["parties"]}
    assert again["b"] == ids["b"]
    assert again["a"] not in ids.values()
    assert any(r["restarts"] for r in stage.rounds("cut"))

    told = stage.fedray("status", "cut")
    assert told.returncode == 0, told.stderr
    assert "of 100000" in told.stdout
    stopped = stage.fedray("stop", "cut")
    assert stopped.returncode == 0, stopped.stderr
    assert "go on with --resume" in stopped.stdout


def outcomes(line: dict) -> dict[str, str]:
    return {party["name"]: party["outcome"] for party in line["parties"]}


def without(lines: list[dict], name: str) -> dict:
    """The first round in which that party did not count."""
    return next((line for line in lines if outcomes(line)[name] != "fused"), {})


def with_all(lines: list[dict], after: int) -> dict:
    """The first later round in which all counted."""
    later = [line for line in lines if line["round"] > after]
    return next((line for line in later if line["fused"] == line["chosen"]), {})


def test_without_the_token_nothing_is_answered(stage):
    token = stage.folder / ".ray" / "auth_token"
    kept = token.read_text()
    token.write_text("0" * 64)
    try:
        done = stage.fedray("runs")
    finally:
        token.write_text(kept)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "token" in done.stderr
    assert "cut" not in done.stdout
