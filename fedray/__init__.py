"""fedray: model fusion and federated learning on Ray.

>>> import fedray
>>> result = fedray.run("jobs/mnist_fedavg.yaml", rounds=3)
>>> print(result.accuracy, result.model)
"""

import importlib
from typing import Any

_ROOMS = {
    "ConfigError": "fedray.errors",
    "Ensemble": "fedray.ensemble",
    "FederationConfig": "fedray.config",
    "FedrayError": "fedray.errors",
    "PartitionSpec": "fedray.config",
    "PartySpec": "fedray.config",
    "Result": "fedray.federation",
    "RoundReport": "fedray.messages",
    "Update": "fedray.messages",
    "load": "fedray.ensemble",
    "query": "fedray.federation",
    "results": "fedray.experiments",
    "run": "fedray.federation",
    "shutdown": "fedray.federation",
}

__all__ = [
    "ConfigError",
    "Ensemble",
    "FederationConfig",
    "FedrayError",
    "PartitionSpec",
    "PartySpec",
    "Result",
    "RoundReport",
    "Update",
    "load",
    "query",
    "results",
    "run",
    "shutdown",
]


def __getattr__(name: str) -> Any:
    """Import a public name's room when it is first asked for: no framework before."""
    if name not in __all__:
        raise AttributeError(f"module 'fedray' has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return __all__
