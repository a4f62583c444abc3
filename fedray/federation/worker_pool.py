"""Processes that wait for the actors of a notebook's next run, frameworks imported.

Without them a run begins with the start of Python and the import of PyTorch in each.
"""

import logging
import os
import sys
import threading
from typing import Any

import grpc
import ray
from ray._private import grpc_utils
from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

from fedray import models
from fedray.observers import Guard

MESSAGES: Any = node_manager_pb2  # of protobuf, which mypy does not look into
PYTHON = common_pb2.DESCRIPTOR.enum_types_by_name["Language"].values_by_name["PYTHON"]
IDLE_S = 12 * 3600  # for which they wait
ANSWER_S = 10.0
LOG = logging.getLogger("fedray")


def system_config() -> dict[str, Any]:
    """Ray's own settings for it: what workers import, and that many start at once.

    They import the model types that this process has imported.
    """
    adapters = [module for module in models.MODELS.values() if module in sys.modules]
    return {
        "preload_python_modules": ["fedray.aggregator", "fedray.party", *adapters],
        "worker_maximum_startup_concurrency": 2 * (os.cpu_count() or 1) + 1,
    }


def prestart_workers(n_actors: int) -> None:
    """Let Ray start processes for as many actors, in the background.

    At most two for each core and one: more would only take memory.
    """
    n_workers = min(n_actors, 2 * (os.cpu_count() or 1) + 1)
    guard = Guard("starting processes ahead", LOG.debug)
    thread = threading.Thread(
        target=guard.call, args=(_prestart, n_workers), daemon=True
    )
    thread.start()


def _prestart(n_workers: int) -> None:
    context = ray.get_runtime_context()
    here = context.get_node_id()
    node = next(one for one in ray.nodes() if one["NodeID"] == here)
    request = MESSAGES.PrestartWorkersRequest(
        language=PYTHON.number,
        job_id=bytes.fromhex(context.get_job_id()),
        num_workers=n_workers,
        keep_alive_duration_secs=IDLE_S,
    )
    request.runtime_env_info.serialized_runtime_env = "{}"
    address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    channel: grpc.Channel = grpc_utils.init_grpc_channel(address)
    try:
        stub = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
        stub.PrestartWorkers(request, timeout=ANSWER_S)
    finally:
        channel.close()
