"""A scene of three_nodes.py: the REST service, each party's data on a labelled node."""

from typing import Any

from support.rest import DIGITS, Client, json_of

from fedray.checkpoint import RunFolder
from fedray.service import http_server
from fedray.service.settings import Settings


def served(stage: Any) -> dict:
    """A federation over REST: one party on node a's label, one on node b's."""
    root = stage.folder / "served"
    settings = Settings(root=str(root), data_root=str(stage.folder))
    running = http_server.start(settings, http_server.Listener("127.0.0.1", 0))
    try:
        client = Client(running.listener.url)
        id = json_of(client.start())["aggregator_id"]
        for i, label in enumerate("ab"):
            path = stage.digits(f"served-{label}", 40, skip=100 * i)
            words = {"data_path": path, "labels": f"fedray-party={label}"}
            form = {"aggregator_id": id} | words | DIGITS
            assert client.post("/start-party", data=form).status_code == 200
        assert client.train(id).status_code == 200
        client.stop(id)
    finally:
        running.stop()
    rounds = RunFolder(root / id).history()
    return {"nodes": [{p.name: p.node for p in report.parties} for report in rounds]}
