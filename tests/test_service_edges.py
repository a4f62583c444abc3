"""Edges over REST: an invitation for each, who has enrolled, who is shut out."""

from pathlib import Path

import pytest
from support.rest import Client, json_of

from fedray.edges.protocol import Enrol
from fedray.edges.registry import Registry
from fedray.errors import CallRefused

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def client(service):
    return Client(service.url)


def request_of(invitation, **changes):
    fields = {"public_key": "1" * 64, "token_hash": "2" * 64, "version": "0.1.0"}
    return Enrol(invitation=invitation, **fields | changes)


def test_a_party_outside_the_cluster_gets_an_invitation_and_is_listed(service, client):
    id = json_of(client.start())["aggregator_id"]
    form = {"aggregator_id": id, "edge": "true"}
    first = json_of(client.post("/start-party", data=form))
    second = json_of(client.post("/start-party", json=form | {"edge": True}))
    assert (first["party_id"], first["remaining_parties"]) == ("party-0", 1)
    assert second["message"].startswith("party-1 has joined; all have")
    folder = Path(service.settings.folder, id)
    registry = Registry(folder)
    assert registry.enrol(request_of(first["invitation"])).name == "party-0"
    answer = json_of(client.get(f"/aggregators/{id}/edges"))
    (edge,) = answer["edges"]
    assert (answer["aggregator_id"], edge["name"]) == (id, "party-0")
    assert (edge["state"], edge["last_seen"]) == ("enrolled", None)
    parties = json_of(client.get(f"/aggregators/{id}"))["parties"]
    assert [party["edge"] for party in parties] == [True, True]
    assert [party["data_handler"] for party in parties] == [None, None]
    for name in ("party-0", "party-1"):
        call = {"aggregator_id": id, "party_id": name}
        assert client.post("/stop-party", json=call).status_code == 200
    answer = json_of(client.get(f"/aggregators/{id}/edges"))
    assert [one["state"] for one in answer["edges"]] == ["revoked"]
    with pytest.raises(CallRefused, match="revoked, or replaced"):
        registry.enrol(request_of(second["invitation"]))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"edge": "maybe"}, "edge must be true or false, got 'maybe'"),
        ({"edge": "true", "data_path": "a.npz"}, "data_path does not go with edge"),
        ({"edge": "true", "data_handler_class_name": "npz"}, "does not go with edge"),
        ({"edge": "true", "nonsense": "1"}, "unknown field 'nonsense'"),
        ({"edge": "false"}, "give either a file data, or data_path"),
    ],
)
def test_what_does_not_go_with_edge_is_refused(client, fields, says):
    id = json_of(client.start())["aggregator_id"]
    answer = client.post("/start-party", data={"aggregator_id": id} | fields)
    assert answer.status_code == 422
    assert says in json_of(answer)["detail"]


def test_another_clients_edges_are_not_there(client):
    assert client.get(f"/aggregators/{'0' * 32}/edges").status_code == 404
