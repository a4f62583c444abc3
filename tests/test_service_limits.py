"""Limits of the REST service through HTTP: full disk, uploads at once, federations."""

import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from support.rest import Client, json_of
from support.waiting import wait_for

from fedray.service import auth, http_server
from fedray.service.settings import Settings
from fedray.service.usage import FOLDER, free_bytes

MIB = 1 << 20
DISK, UPLOAD, FREE = 96 * MIB, 32 * MIB, 8 * MIB


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of 96 MiB."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount).returncode:
        pytest.skip("a file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def service(cluster, small_disk, tmp_path_factory):
    """A service on the small disk, with keys of two clients."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    headers = {
        name: {auth.ID_HEADER: name, auth.SECRET_HEADER: auth.add_key(keys, name)[1]}
        for name in ("ann", "bob")
    }
    settings = Settings(
        root=str(small_disk / "root"), api_keys=str(keys), max_upload=UPLOAD,
        min_free_disk=FREE, max_open=4, max_federations=5, max_disk_per_client=40 * MIB,
    )  # fmt: skip
    listener = http_server.Listener("127.0.0.1", 0)
    running = http_server.start(settings, listener)
    yield SimpleNamespace(url=listener.url, settings=settings, headers=headers)
    running.stop()


@pytest.fixture
def clients(service):
    """Ann and Bob; what they started is stopped."""
    own = [Client(service.url, **headers) for headers in service.headers.values()]
    yield own
    for client in own:
        for id in client.ids:
            assert client.stop(id).status_code == 200


@pytest.fixture
def fill(small_disk):
    """Fills the disk until so many bytes are free."""
    file = small_disk / "filler"

    def fill_up(n_free: int) -> None:
        with file.open("ab", buffering=0) as filler:
            size = free_bytes(small_disk) - n_free
            os.posix_fallocate(filler.fileno(), file.stat().st_size, size)

    yield fill_up
    file.unlink(missing_ok=True)


def check_refused(answer, limit: str, status: int) -> None:
    """The answer is JSON of the usual form that names the limit and when to retry."""
    assert (answer.status_code, json_of(answer)["limit"]) == (status, limit)
    assert set(json_of(answer)) == {"error", "detail", "hint", "limit"}
    assert int(answer.headers["Retry-After"]) > 0


def test_on_a_full_disk_uploads_are_refused_and_everything_else_works(
    clients, fill, small_disk
):
    ann, _ = clients
    trained, waiting = ann.ready(), json_of(ann.start())["aggregator_id"]
    assert ann.join(waiting).status_code == 200
    fill(FREE // 2)
    check_refused(ann.start(), "min_free_disk", 507)
    check_refused(ann.join(waiting), "min_free_disk", 507)
    assert ann.train(trained).status_code == 200
    fill(0)
    assert free_bytes(small_disk) == 0
    assert ann.get("/aggregators").status_code == 200
    left = {"aggregator_id": waiting, "party_id": "party-0"}
    assert ann.post("/stop-party", json=left).status_code == 200
    for id in (waiting, trained):
        stopped = ann.stop(id)
        assert (stopped.status_code, json_of(stopped)["status"]) == (200, "stopped")
        assert ann.state(id)["state"] == "stopped"
    assert json_of(stopped)["global_model"] is not None
    data = [*small_disk.glob("root/*/uploads/*.npz")]
    assert data == []


def test_uploads_that_do_not_fit_together_are_not_all_begun(clients, service, fill):
    fill(60 * MIB)  # two of 24 MiB leave 8 MiB free; one client may have one
    gate = threading.Barrier(8)

    def send(client: Client):
        def body():
            yield b'--x\r\nContent-Disposition: form-data; name="model_file"; '
            yield b'filename="m.pt"\r\n\r\n'
            gate.wait(60)
            for _ in range(24):
                yield bytes(MIB)
            yield b"\r\n--x--\r\n"

        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        url, headers = service.url + "/start-aggregator", client.headers | kind
        return client.http.post(url, data=body(), headers=headers)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, clients * 4))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {507, 422}  # those that fit are no models
    assert statuses.count(422) <= 2
    refused = [answer for answer in answers if answer.status_code == 507]
    limits = {json_of(answer)["limit"] for answer in refused}
    assert limits <= {"min_free_disk", "max_disk_per_client"}
    for answer in refused:
        check_refused(answer, json_of(answer)["limit"], 507)
    incoming = service.settings.folder / ".incoming"
    wait_for(lambda: not list(incoming.iterdir()), "uploads deleted")


def test_federations_are_counted_per_client_and_in_total(clients):
    ann, bob = clients
    for _ in range(4):
        assert ann.start().status_code == 200
    check_refused(ann.start(), "max_open", 429)
    assert bob.start().status_code == 200
    check_refused(bob.start(), "max_federations", 429)


def test_nothing_is_counted_once_all_calls_are_answered(clients, service):
    ledger = service.settings.folder / FOLDER

    def held() -> set[bytes]:
        return {path.read_bytes().split(b"\n")[0] for path in ledger.glob("*.json")}

    wait_for(lambda: held() == {b"{}"}, "what is in use")
