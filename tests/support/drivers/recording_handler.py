"""A data handler that notes where it was used: by which process, on which node."""

import json
import os

import ray

from fedray.data import MnistPytorch


class Spy(MnistPytorch):
    """Digits; every use adds a line to a file of the actor's name beside them."""

    def __init__(self, path: str):
        super().__init__(path)
        me = ray.get_runtime_context()
        seen = {
            "node": me.get_node_id(),
            "gpus": ray.get_gpu_ids(),
            "pid": os.getpid(),
        }
        name = me.get_actor_name().replace(":", "-")
        with open(os.path.join(os.path.dirname(path), f"{name}.seen"), "a") as file:
            file.write(json.dumps(seen) + "\n")
