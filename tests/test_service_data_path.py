"""`data_path` with keys: each client names data below its own folder of the root."""

import os
from types import SimpleNamespace

import pytest
import ray
from starlette.testclient import TestClient
from support.rest import DIGITS, Client, data_file, json_of

from fedray import data
from fedray.errors import ConfigError, DataError
from fedray.service import asgi, auth, membership
from fedray.service.settings import Settings


@pytest.fixture(scope="module")
def shared(cluster, tmp_path_factory):
    """A service with keys and a data root, in this process; ann's and bob's folders."""
    folder = tmp_path_factory.mktemp("data-path")
    own = [auth.add_key(folder / "keys", name) for name in ("ann", "bob")]
    for name in ("ann", "bob"):
        (folder / "data" / name).mkdir(parents=True)
        (folder / "data" / name / "a.npz").write_bytes(data_file())
    settings = Settings(
        root=str(folder / "root"),
        api_keys=str(folder / "keys"),
        data_root=str(folder / "data"),
    )
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    with TestClient(asgi.build(settings), raise_server_exceptions=False) as http:
        ann, bob = (
            Client(http=http, **{"X-IBM-Client-Id": id, "X-IBM-Client-Secret": secret})
            for id, secret in own
        )
        yield SimpleNamespace(
            ann=ann, bob=bob, root=folder / "data", folder=folder,
            label=f"ray.io/node-id={node['NodeID']}",
        )  # fmt: skip
        for client in (ann, bob):
            for id in client.ids:
                client.stop(id)


def join(shared, client, id, path):
    form = {"aggregator_id": id, "data_path": path, "labels": shared.label} | DIGITS
    return client.post("/start-party", data=form)


def test_a_client_names_its_own_data_and_no_neighbours(shared):
    ann, root = shared.ann, shared.root
    (root / "ann" / "link.npz").symlink_to(root / "bob" / "a.npz")
    (root / "ann" / "dead.npz").symlink_to(root / "bob" / "none.npz")
    (root / "ann" / "up").symlink_to(root)
    (root / "ann" / "own.npz").symlink_to(root / "ann" / "a.npz")
    id = json_of(ann.start(num_parties=3))["aggregator_id"]
    refused = {}
    for path in (
        "../bob/a.npz", "../bob/none.npz", "../carol/a.npz", "bob/a.npz", "..", "up",
        "link.npz", "dead.npz", "up/bob/a.npz", "up/bob/none.npz", "none.npz",
        f"{root}/bob/a.npz", f"{root}/bob/none.npz", f"{root}/a.npz", str(root),
        f"{root}/ann/../bob/a.npz", f"{root}/annex/a.npz", "a.npz/../../bob/a.npz",
        "x" * 300, "/".join(["x" * 200] * 5),
    ):  # fmt: skip
        answer = join(shared, ann, id, path)
        assert answer.status_code == 422, (path, answer.text)
        assert str(root) not in answer.text
        refused[path] = answer.text.replace(path, "PATH")
    for there, missing in (
        ("../bob/a.npz", "../bob/none.npz"),
        ("link.npz", "dead.npz"),
        ("up/bob/a.npz", "up/bob/none.npz"),
        (f"{root}/bob/a.npz", f"{root}/bob/none.npz"),
    ):  # whether a neighbour has such a file is not told
        assert refused[there] == refused[missing]
    for path in ("a.npz", "own.npz", f"{root}/ann/a.npz"):
        assert join(shared, ann, id, path).status_code == 200, path


def test_a_link_that_is_swapped_after_the_join_is_not_followed(shared):
    link = shared.root / "ann" / "swapped.npz"
    link.symlink_to("a.npz")
    id = json_of(shared.ann.start(num_parties=1))["aggregator_id"]
    assert join(shared, shared.ann, id, "swapped.npz").status_code == 200
    link.unlink()
    link.symlink_to(shared.root / "bob" / "a.npz")
    answer = shared.ann.train(id)
    assert answer.status_code == 502
    assert "leads elsewhere" in answer.text
    assert str(shared.root) not in answer.text
    link.unlink()
    link.symlink_to("a.npz")  # mended: the same call goes on
    assert shared.ann.train(id).status_code == 200


def test_without_a_folder_of_its_own_a_client_is_told_who_makes_it(shared):
    os.rename(shared.root / "bob", shared.root / "Bob")
    try:
        id = json_of(shared.bob.start())["aggregator_id"]
        answer = join(shared, shared.bob, id, "a.npz")
    finally:
        os.rename(shared.root / "Bob", shared.root / "bob")
    assert answer.status_code == 422
    assert "named by your client id below the operator's data root" in answer.text
    assert str(shared.root) not in answer.text


# without a service


def test_a_link_that_is_swapped_while_its_data_is_read_is_refused(tmp_path):
    root, other = tmp_path / "ann", tmp_path / "bob.npz"
    root.mkdir()
    (root / "a.npz").write_bytes(b"ann's")
    other.write_bytes(b"bob's")
    link = root / "link.npz"
    link.symlink_to("a.npz")
    with data.unmoved_in_root("link.npz", str(root)) as path:
        assert path == str(root / "a.npz")

    def read():
        with data.unmoved_in_root("link.npz", str(root)):
            link.unlink()
            link.symlink_to(other)

    with pytest.raises(DataError, match=r"link\.npz: got a path that leads elsewhere"):
        read()
    link.unlink()
    link.symlink_to("a.npz")

    def read_another():
        with data.unmoved_in_root("link.npz", str(root)):
            (root / "b.npz").write_bytes(b"")
            link.unlink()
            link.symlink_to("b.npz")

    with pytest.raises(DataError, match="a link that was changed while it was read"):
        read_another()


def test_a_picture_is_looked_for_again_when_it_is_read(tmp_path):
    image = pytest.importorskip("PIL.Image")
    root, other = tmp_path / "ann", tmp_path / "bob.png"
    (root / "pics" / "cat").mkdir(parents=True)
    file = root / "pics" / "cat" / "1.png"
    for path in (file, other):
        image.new("L", (4, 4)).save(path)
    options, origin = {"in_memory": False, "test": 0}, data.Origin(root=str(root))
    reader = data.make("image_folder", str(root / "pics"), options, origin)
    pictures, _ = reader.get_data()
    assert len(pictures) == 1
    pictures[0]
    file.unlink()
    file.symlink_to(other)
    with pytest.raises(DataError, match="a link that leads out of the data root"):
        pictures[0]


@pytest.mark.parametrize("client", ["ann", None])
def test_who_shares_the_data_root_and_what_the_operator_is_told(client):
    def folder(**settings):
        return membership.data_folder(Settings(**settings), client)

    keys = {"api_keys": "/k", "data_root": "/data"}
    assert folder() is None
    assert folder(**keys) == ("/data/ann" if client else "/data")
    assert folder(**keys, shared_data_root=True) == "/data"
    line = membership.data_root_line
    assert line(Settings(data_root="/data")) is None  # all who call are one client
    assert line(Settings(**keys)).endswith("below /data/<their client id>")
    told = line(Settings(**keys, shared_data_root=True))
    assert told.startswith("--shared-data-root: every client with a key may train on")


@pytest.mark.parametrize("id", ["..", ".", "a/b", "../b", "-x", "", "a\\b", "a" * 65])
def test_no_client_id_is_a_path(tmp_path, id):
    with pytest.raises(ConfigError, match="must match"):
        auth.add_key(tmp_path / "keys", id or " ")
    (tmp_path / "written").write_text(f"{id} sha256:{'0' * 64}\n")
    with pytest.raises(ConfigError, match="line 1"):
        auth.read_keys(tmp_path / "written")
