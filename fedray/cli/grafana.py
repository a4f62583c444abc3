"""``fedray grafana``: prints a Grafana dashboard of fedray's Prometheus metrics."""

import argparse
import json
from typing import Any


def add(commands: Any) -> None:
    """Add the command to the parser."""
    grafana = commands.add_parser("grafana", help="print the Grafana dashboard's JSON")
    grafana.set_defaults(command=_grafana)


def _grafana(arguments: argparse.Namespace) -> None:
    from fedray.metrics import dashboard

    print(json.dumps(dashboard(), indent=2))
