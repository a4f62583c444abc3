"""Fixtures: one small Ray cluster per session, tiny federations, the REST service."""

import importlib.util
import json
import os
import subprocess
import textwrap
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray's agents look through the memory of all processes: once a minute, not every 5 s
os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "60000")
os.environ.setdefault(  # as docs/rest-api has it for an application of Serve
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "fedray.service.front:guard"
)

SLOWEST_FIRST = [  # files, so that none of them ends alone
    "test_chaos.py",
    "test_edge_faults.py",
    "test_multinode.py",
    "test_docs.py",
    "test_pairs.py",
    "test_users_own.py",
    "test_disk_faults.py",
    "test_service.py",
    "test_job_submit.py",
    "test_hosts.py",
    "test_membership.py",
    "test_secure_aggregation.py",
    "test_service_attacks.py",
    "test_service_alone.py",
    "test_random_membership.py",
    "test_keras.py",
    "test_service_hostile.py",
    "test_package.py",
    "test_old_files.py",
    "test_keras_files.py",
    "test_ensemble_runs.py",
    "test_driver_killed.py",
    "test_service_keys.py",
    "test_service_models.py",
    "test_doc2vec_federation.py",
    "test_doc2vec_lee.py",
    "test_federation.py",
    "test_adaptive_runs.py",
    "test_best_model.py",
    "test_clustering.py",
    "test_adaptive_job.py",
    "test_attacks.py",
    "test_cli_project.py",
    "test_stragglers.py",
    "test_faults.py",
    "test_check.py",
    "test_model_files.py",
    "test_party_group.py",
]

MLP = """
    from torch import nn

    def mlp():
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)
        )
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first; mark what needs the cluster, for `make quick`."""
    places = {name: place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")


@pytest.fixture(scope="session")
def worker_server():
    """Forks the workers of the clusters that tests start meanwhile."""
    from support.worker_server import EXTRAS, forked_workers

    with forked_workers(*EXTRAS):
        yield


@pytest.fixture(scope="session")
def cluster(worker_server):
    """Ray on this machine: four logical cores, no dashboard, forked workers."""
    import ray

    # it would read all workers' files ten times a second, and nobody reads its lines
    with mock.patch("ray._private.node.Node.start_log_monitor"):
        ray.init(
            address="local",
            namespace="fedray",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=256 << 20,
        )
    yield
    ray.shutdown()


@pytest.fixture
def mlp(tmp_path: Path) -> str:
    """An architecture of 12,730 parameters for digits."""
    file = tmp_path / "mlp.py"
    file.write_text(textwrap.dedent(MLP))
    return f"{file}:mlp"


@pytest.fixture
def digits(tmp_path: Path):
    """Write a party's file of real digits: ``digits("a", n_train=30, n_test=10)``."""
    from fedray.data import MnistPytorch  # the shipped digits

    def write(name: str, n_train: int, n_test: int = 20, skip: int = 0) -> str:
        (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
        path = tmp_path / f"{name}.npz"
        np.savez(
            path,
            x_train=x[skip : skip + n_train],
            y_train=y[skip : skip + n_train],
            x_test=x_test[skip : skip + n_test],
            y_test=y_test[skip : skip + n_test],
        )
        return str(path)

    return write


@pytest.fixture
def settings(mlp, digits):
    """Settings of a small federation: two parties of unequal size, plain SGD."""
    return {
        "name": "tiny",
        "architecture": mlp,
        "rounds": 2,
        "epochs": 1,
        "learning_rate": 0.1,
        "optimizer": "optim.SGD",
        "batch_size": 16,
        "loss": "cross_entropy",
        "data_handler": "mnist_pytorch",
        "parties": [
            {"name": "a", "data": digits("a", 40)},
            {"name": "b", "data": digits("b", 64, skip=40)},
        ],
    }


TROUBLE = """
    import os, time
    import torch
    from torch import nn

    FLAG = {flag!r}

    class Trouble(nn.Module):
        # does what the flag file says, once, in whichever party trains first; not in
        # the step that joining tries, which is drawn from the config's seed
        def forward(self, x):
            if not self.training or torch.initial_seed() == 0:
                return x
            try:
                os.rename(FLAG, FLAG + ".taken")
            except FileNotFoundError:
                return x
            kind = open(FLAG + ".taken").read()
            if kind == "die":
                os.kill(os.getpid(), 9)
            if kind == "hang":
                time.sleep(3600)
            if kind == "fail":
                raise ValueError("trouble was asked for")
            return x * float("nan")

    def mlp():
        return nn.Sequential(
            Trouble(), nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)
        )
"""


@pytest.fixture
def trouble(tmp_path: Path, settings):
    """Let one party die, hang, fail or send NaN: ``trouble("die")``."""
    file, flag = tmp_path / "trouble.py", tmp_path / "flag"
    file.write_text(textwrap.dedent(TROUBLE.format(flag=str(flag))))
    settings["architecture"] = f"{file}:mlp"
    return flag.write_text


@pytest.fixture(scope="session")
def texts():
    """Settings of two parties with 12 real articles each: ``texts(folder)``."""
    gensim = Path(importlib.util.find_spec("gensim").origin).parent
    articles = gensim / "test" / "test_data" / "lee_background.cor"
    lines = articles.read_text(encoding="utf-8").splitlines()

    def write(folder: Path) -> dict:
        for i, name in enumerate("ab"):
            with (folder / f"{name}.jsonl").open("w") as file:
                for j in range(12 * i, 12 * i + 12):
                    line = {
                        "tag": f"article-{j}",
                        "text": lines[j],
                        "group": f"{j % 2}",
                    }
                    file.write(json.dumps(line) + "\n")
        return {
            "name": "text",
            "model_type": "doc2vec",
            "fusion_algorithm": "doc2vec",
            "data_handler": "20_newsgroup",
            "doc2vec": {"vector_size": 8},
            "learning_rate": 0.05,
            "rounds": 4,
            "epochs": 2,
            "party_dir": str(folder / "parties"),
            "parties": [
                {"name": name, "data": str(folder / f"{name}.jsonl")} for name in "ab"
            ],
        }

    return write


@pytest.fixture
def text(texts, tmp_path: Path):
    """Settings of a small doc2vec federation, vectors of 8 numbers."""
    return texts(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of one megabyte; needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(scope="module")
def service(cluster, tmp_path_factory):
    """The REST service on the session's cluster, over HTTP; its URL, port and folder.

    It may run custom handlers, reads data below `data_root`, takes 32 MB at most and
    times out on a slow client after 2 seconds.
    """
    from types import SimpleNamespace

    from fedray.service import http_server
    from fedray.service.settings import Settings

    folder = tmp_path_factory.mktemp("service")
    (folder / "data").mkdir()
    settings = Settings(
        root=str(folder / "root"),
        data_root=str(folder / "data"),
        allow_custom_handlers=True,
        max_upload=32 << 20,
        body_timeout_s=2.0,
    )
    listener = http_server.Listener("127.0.0.1", 0)
    running = http_server.start(settings, listener)
    yield SimpleNamespace(
        url=listener.url, port=listener.port, folder=folder, settings=settings,
        server=running.server,
    )  # fmt: skip
    running.stop()


@pytest.fixture
def client(service):
    """A client of the service; stops the federations that it started."""
    from support.rest import Client

    client = Client(service.url)
    yield client
    for id in client.ids:
        client.stop(id)


@pytest.fixture
def one_thread():
    """Torch on one thread: on models this small more threads only add overhead."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
