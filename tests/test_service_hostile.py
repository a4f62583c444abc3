"""Hostile calls and files are refused, and the REST service stays healthy."""

import contextlib
import io
import itertools
import json
import os
import pickle
import select
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from support.rest import FORM, Client, data_file, json_of, model_file, torch_file
from support.waiting import wait_for

from fedray.service.responses import json_response

HEAD = "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture
def client(service):
    """A client; the service is healthy after whatever it does, and holds no litter."""
    yield Client(service.url)
    assert requests.get(f"{service.url}/health", timeout=300).status_code == 200
    litter = service.folder / "root" / ".incoming"
    assert [path.name for path in litter.iterdir()] == []


def talk(service, *parts, wait_s=0.0, timeout=300) -> bytes:
    """Send these bytes on a raw connection; what is answered."""
    answered = b""
    with socket.create_connection(("127.0.0.1", service.port), timeout) as line:
        with contextlib.suppress(ConnectionError):  # it has hung up: after an answer?
            for part in parts:
                line.sendall(part.encode() if isinstance(part, str) else part)
                if select.select([line], [], [], wait_s)[0]:
                    break  # it has answered already
        with contextlib.suppress(ConnectionError, TimeoutError):
            while part := line.recv(65536):
                answered += part
                if b"}" in part:
                    break
    return answered


def status_of(answered: bytes) -> int:
    return int(answered.split()[1]) if answered else 0


def test_a_body_that_declares_too_much_is_413_before_it_is_sent(client, service):
    head = HEAD.format(path="/start-aggregator")
    kind = "Content-Type: multipart/form-data; boundary=x\r\n"
    for length in (33 << 20, 10**15):
        answered = talk(service, f"{head}{kind}Content-Length: {length}\r\n\r\n")
        assert status_of(answered) == 413
    plain = "Content-Type: application/json\r\nContent-Length: 2000000\r\n\r\n"
    assert status_of(talk(service, HEAD.format(path="/train") + plain)) == 413


def test_a_body_without_a_length_is_counted_and_cut_off(client, service):
    head = HEAD.format(path="/start-aggregator")
    head += "Content-Type: multipart/form-data; boundary=x\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="model_file"; '
    part += b'filename="m.pt"\r\n\r\n'
    chunks = [part, *[bytes(1 << 20)] * 64]
    answered = talk(
        service, head, *(b"%x\r\n%s\r\n" % (len(data), data) for data in chunks)
    )
    assert status_of(answered) == 413
    assert b"larger than" in answered


@pytest.mark.parametrize("length", ["-1", "1e3", "abc", "5, 5", "0x10"])
def test_a_length_that_is_no_number_is_refused(client, service, length):
    head = HEAD.format(path="/train") + f"Content-Length: {length}\r\n\r\n{{}}"
    assert 400 <= status_of(talk(service, head)) < 500


def test_a_body_shorter_than_declared_is_408(client, service):
    head = HEAD.format(path="/train") + "Content-Type: application/json\r\n"
    started = time.monotonic()
    answered = talk(service, head + 'Content-Length: 500\r\n\r\n{"aggre')
    assert status_of(answered) == 408
    assert time.monotonic() - started < 120


def test_a_body_longer_than_declared_is_cut_to_what_it_declared(client, service):
    body = '{"aggregator_id": "x"}'
    head = HEAD.format(path="/train") + f"Content-Length: {len(body)}\r\n\r\n"
    answered = talk(service, head + body + "GARBAGE " * 100)
    assert status_of(answered) == 404


def test_a_client_that_sends_a_byte_a_second_is_408(client, service):
    head = HEAD.format(path="/start-party")
    head += "Content-Type: multipart/form-data; boundary=x\r\n"
    head += "Content-Length: 100000\r\n\r\n"
    answered = talk(service, head, *"--x\r\nConte", wait_s=1.0)
    assert status_of(answered) == 408


def test_many_slow_clients_do_not_keep_others_out(client, service):
    head = HEAD.format(path="/start-party") + "Content-Length: 100\r\n\r\n"
    lines = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(150)]
    try:
        for line in lines[:100]:
            line.sendall(head.encode())
        for line in lines[100:]:
            line.sendall(b"POST /train HTTP/1.1\r\nX-Slow")
        assert client.get("/health").status_code == 200
        assert client.start(rounds="0").status_code == 422
    finally:
        for line in lines:
            line.close()


def multipart(*parts: str, end="--x--\r\n") -> bytes:
    return ("".join(f"--x\r\n{part}\r\n" for part in parts) + end).encode()


def field(name: str, value: str) -> str:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'


FORMS = {
    "100,000 parts": (lambda: multipart(*(field(f"f{i}", "1") for i in range(10**5)))),
    "3 files": lambda: multipart(*(
        f'Content-Disposition: form-data; name="f{i}"; filename="f"\r\n\r\nx'
        for i in range(3)
    )),
    "a field twice": lambda: multipart(field("rounds", "1"), field("rounds", "2")),
    "no end": lambda: multipart(field("rounds", "1"), end=""),
    "no name": lambda: multipart("Content-Disposition: form-data\r\n\r\n1"),
    "no headers": lambda: multipart("\r\n1"),
    "a long name": lambda: multipart(field("n" * 200, "1")),
    "a name that is not UTF-8": lambda: multipart(field("QQ", "1")).replace(
        b"QQ", b"\xff\xfe"
    ),
    "a value that is not UTF-8": lambda: multipart(field("rounds", "QQ")).replace(
        b"QQ", b"\xff\xfe"
    ),
    "a header of 1 MB": lambda: multipart(f"X: {'a' * 10**6}\r\n\r\n1"),
    "1,000 headers": lambda: multipart("X: a\r\n" * 1000 + "\r\n1"),
    "no parts": lambda: b"",
    "random bytes": lambda: np.random.default_rng(0).bytes(10_000),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_malformed_form_is_400(client, service, name):
    body = FORMS[name]()
    kind = "Content-Type: multipart/form-data; boundary=x\r\n"
    chunks = [body[i : i + 65536] for i in range(0, len(body), 65536)]
    for path in ("/start-aggregator", "/start-party", "/train"):
        head = HEAD.format(path=path) + kind + f"Content-Length: {len(body)}\r\n\r\n"
        answered = talk(service, head, *chunks)
        assert status_of(answered) == 400, (path, answered)
        answer = json.loads(answered.partition(b"\r\n\r\n")[2])
        assert answer["error"] == "bad request"


def test_a_value_that_is_a_file_in_size_is_413(client):
    answered = client.start(optimizer="x" * 100_000)
    assert answered.status_code == 413


def test_forms_without_or_with_a_huge_boundary_are_400(client):
    for kind in ("multipart/form-data", f"multipart/form-data; boundary={'x' * 5000}"):
        got = requests.post(
            f"{client.url}/train", data=b"x", headers={"content-type": kind}
        )
        assert got.status_code == 400


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a":' * 100_000, b"{", b"[]", b"7", b"null", b"\xff\xfe", b"\0",
     b'{"aggregator_id": NaN}', b'{"aggregator_id": 1e999}',
     json.dumps({str(i): i for i in range(1000)}).encode()],
    ids=lambda body: ascii(body[:8]),
)  # fmt: skip
def test_malformed_json_is_400(client, body):
    for path in ("/start-aggregator", "/start-party", "/train", "/stop"):
        headers = {"content-type": "application/json"}
        got = requests.post(client.url + path, data=body, headers=headers)
        assert (got.status_code, json_of(got)["error"]) == (400, "bad request")


def test_json_of_odd_types_is_4xx(client):
    for value in (None, [], {}, [[]], 1, True, {"a": {"b": 1}}, "x\0", "\ud83d"):
        for path in ("/train", "/stop", "/start-party", "/start-aggregator"):
            for key in ("aggregator_id", "data_handler_class_name", "labels", "rounds",
                        "data_path", "optimizer_args", "data", "\n"):  # fmt: skip
                body = json.dumps({key: value, "num_parties": value})
                got = client.post(path, data=body)
                assert 400 <= got.status_code < 500, (path, key, value, got.text)
                json_of(got)


def test_other_types_paths_and_methods_are_4xx_in_json(client):
    kind = {"content-type": "application/x-python-pickle"}
    got = requests.post(f"{client.url}/train", data=pickle.dumps({}), headers=kind)
    assert (got.status_code, json_of(got)["error"]) == (415, "unsupported media type")
    for path in ("/nope", "/aggregators/x/y", "/..%2f..%2fetc/passwd", "/page.html"):
        got = requests.get(client.url + path)
        assert (got.status_code, json_of(got)["error"]) == (404, "not found")
    for verb in (requests.put, requests.delete, requests.patch):
        assert json_of(verb(f"{client.url}/train"))["error"] == "method not allowed"


def test_huge_headers_are_4xx(client):
    for size in (40_000, 60_000):
        got = requests.get(f"{client.url}/aggregators", headers={"x": "a" * size})
        assert 400 <= got.status_code < 500


def test_headers_without_end_are_cut_off(client, service):
    line = b"X-A: " + b"a" * (1 << 16) + b"\r\n"
    for part in (line, b"a" * (1 << 16)):  # many headers, one header
        with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
            with pytest.raises(ConnectionError):
                connection.sendall(part * 1000)


def test_a_browser_on_another_site_may_not_call(client):
    for headers in (
        {"origin": "https://example.org"},
        {"origin": "null"},
        {"host": "example.org"},
        {"host": "127.0.0.1.example.org"},
    ):
        got = requests.post(f"{client.url}/stop", json={}, headers=headers)
        assert got.status_code == 403
    own = {"origin": client.url}
    assert requests.get(f"{client.url}/aggregators", headers=own).status_code == 200


class PickledCall:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def npz(path=None, **members) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(array, **arguments) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **arguments)
    return file.getvalue()


def npy_with_false_shape(shape) -> bytes:
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(100)


def pickles(mark: Path):
    import os

    yield pickle.dumps(PickledCall(os.system, f"touch {mark}"), 2)
    yield pickle.dumps(PickledCall(eval, f"open({str(mark)!r}, 'w')"), 4)
    yield pickle.dumps(PickledCall(exec, f"open({str(mark)!r}, 'w')"), 5)
    yield torch_file(PickledCall(os.system, f"touch {mark}"))
    yield torch_file(
        {"w": torch.zeros(2), "x": PickledCall(os.system, f"touch {mark}")}
    )


def hostile_model_files(mark: Path) -> dict[str, bytes]:
    good = model_file()
    bad = {f"pickle {i}": content for i, content in enumerate(pickles(mark))}
    bad |= {f"cut at {n}": good[:n] for n in (1, 100, len(good) // 2, len(good) - 1)}
    bad |= {
        "random": np.random.default_rng(0).bytes(100_000),
        "zeros": bytes(1 << 20),
        "zip bomb": npz(bomb=bytes(200 << 20)),
        "NaN": torch_file(
            torch.nn.Linear(2, 2).requires_grad_(False).to(torch.float64)
        ),
        "constructor bomb": torch_file(bomb()),
        "a tensor": torch_file(torch.zeros(3)),
        "text": b"hello",
    }
    return bad


def bomb() -> torch.nn.Module:
    layer = torch.nn.Linear(2, 2)
    layer.in_features = layer.out_features = 10**9
    return torch.nn.Sequential(layer)


def hostile_data_files(mark: Path) -> dict[str, bytes]:
    good = data_file()
    calls = np.array(
        [PickledCall(__import__("os").system, f"touch {mark}")], dtype=object
    )
    objects = npy(calls, allow_pickle=True)
    rest = {"y_train": npy(np.zeros(1)), "x_test": npy(np.zeros((0, 784))),
            "y_test": npy(np.zeros(0))}  # fmt: skip
    bad = {f"cut at {n}": good[:n] for n in (1, 100, len(good) // 2, len(good) - 1)}
    return bad | {
        "objects": npz(x_train=objects, **rest),
        "bomb": npz(x_train=bytes(300 << 20), **rest),
        "lies": npz(x_train=npy_with_false_shape((10**6, 784)), **rest),
        "overflow": npz(x_train=npy_with_false_shape((2**62, 4)), **rest),
        "nine dimensions": npz(x_train=npy(np.zeros((1,) * 9)), **rest),
        "complex": npz(x_train=npy(np.zeros((1, 784), complex)), **rest),
        "infinite": npz(x_train=npy(np.full((1, 784), np.inf)), **rest),
        "empty": npz(),
        "random": np.random.default_rng(1).bytes(100_000),
        "pickle": pickle.dumps(PickledCall(eval, f"open({str(mark)!r}, 'w')")),
    }


def test_hostile_model_files_are_refused_and_run_nothing(client, tmp_path):
    mark = tmp_path / "mark"
    for name, content in hostile_model_files(mark).items():
        if name == "NaN":
            continue
        got = client.start(model=content)
        assert got.status_code in (413, 422), (name, got.text)
        assert len(json_of(got)["detail"]) > 20
        assert "Traceback" not in got.text
        assert "/root/" not in got.text
    assert not mark.exists()


def test_hostile_data_files_are_refused_and_run_nothing(client, tmp_path):
    mark = tmp_path / "mark"
    id = json_of(client.start())["aggregator_id"]
    for name, content in hostile_data_files(mark).items():
        got = client.join(id, content)
        assert got.status_code in (413, 422), (name, got.text)
        assert len(json_of(got)["detail"]) > 20
        assert "/root/" not in got.text
    assert not mark.exists()
    assert client.state(id)["remaining_parties"] == 2
    client.stop(id)


@pytest.mark.parametrize(
    "name", ["../../x.pt", "/etc/passwd", "x\0.pt", "‮tp.x", "x.", ".pt",
             "x.tar.gz", "x.PT"],
    ids=ascii,
)  # fmt: skip
def test_an_uploads_file_name_has_no_effect_but_a_harmless_suffix(
    client, service, name
):
    files = {"model_file": (name, model_file())}
    got = client.post("/start-aggregator", data=FORM, files=files)
    assert got.status_code == 200
    id = json_of(got)["aggregator_id"]
    (kept,) = (service.folder / "root" / id / "uploads").iterdir()
    stem, _, ending = kept.name.partition(".")
    assert len(stem) == 32
    assert ending in ("", "pt", "tar.gz", "x")
    client.stop(id)


def test_a_file_name_of_thousands_of_characters_is_400(client):
    files = {"model_file": ("a" * 5000, model_file())}
    assert client.post("/start-aggregator", data=FORM, files=files).status_code == 400


def test_unexpected_uploads_are_refused(client):
    files = {"model_file": ("m.pt", model_file()), "other": ("x", b"x")}
    got = client.post("/start-aggregator", data=FORM, files=files)
    assert (got.status_code, "other" in json_of(got)["detail"]) == (422, True)
    got = client.post("/train", files={"aggregator_id": ("x", b"x")})
    assert got.status_code == 422


def examiner_answers(questions: list[dict], folder: Path) -> tuple[list[dict], int]:
    """Answers of an examiner process, and the peak memory of it and its children."""
    code = (
        "import resource, sys; from fedray.service import examiner; "
        "examiner.main('pytorch', sys.argv[1]); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"
    )
    bounds = {"cpu_s": 60, "wall_s": 6000, "memory": 4 << 30}
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert json.loads(process.stdout.readline()) == {"ready": True}
        answers = []
        for i, question in enumerate(questions):
            line = json.dumps(question | {"id": i, "bounds": bounds}) + "\n"
            process.stdin.write(line.encode())
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert answer["id"] == i
            answers.append(answer["answer"])
        process.stdin.close()
        return answers, int(process.stderr.read().split()[-1]) << 10


def test_hostile_files_take_200_mb_at_most(tmp_path):
    def question(name: str, model: bytes, data: bytes) -> dict:
        for kind, content in (("pt", model), ("npz", data)):
            (tmp_path / f"{name}.{kind}").write_bytes(content)
        party = {"name": "a", "data": str(tmp_path / f"{name}.npz"),
                 "data_handler": "mnist_pytorch"}  # fmt: skip
        config = FORM | {"num_parties": 1, "parties": [party],
                         "model_file": str(tmp_path / f"{name}.pt")}  # fmt: skip
        return {"config": config, "party": 0}

    mark = tmp_path / "mark"
    good_question = question("good", model_file(), data_file())
    (good,), usual = examiner_answers([good_question], tmp_path / "examiner")
    assert {**good, "data_bytes": 0} == {"n_train": 40, "n_test": 20, "data_bytes": 0}
    bad_models = [
        question(f"m{i}", content, data_file())
        for i, (name, content) in enumerate(hostile_model_files(mark).items())
        if name != "NaN"
    ]
    bad_data = [
        question(f"d{i}", model_file(), content)
        for i, content in enumerate(hostile_data_files(mark).values())
    ]
    questions = bad_models + bad_data
    answers, most = examiner_answers(questions, tmp_path / "examiner")
    assert [answer["kind"] for answer in answers if "kind" in answer] == [
        answer["kind"] for answer in answers
    ]
    assert most - usual < 200 << 20
    assert not mark.exists()


def test_nan_is_null_in_an_answer():
    body = json_response({"loss": float("nan"), "most": float("inf")}).body
    assert json.loads(body) == {"loss": None, "most": None}


def test_a_client_that_hangs_up_in_an_upload_leaves_nothing(client, service):
    litter = service.folder / "root" / ".incoming"
    head = HEAD.format(path="/start-aggregator")
    head += "Content-Type: multipart/form-data; boundary=x\r\n"
    head += "Content-Length: 10000000\r\n\r\n--x\r\n"
    head += 'Content-Disposition: form-data; name="model_file"; filename="m"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", service.port)) as line:
        line.sendall(head.encode() + bytes(3 << 20))
        wait_for(lambda: list(litter.iterdir()), "no upload began")
    wait_for(lambda: not list(litter.iterdir()), "the upload stays")


def test_uploads_at_once_do_not_grow_the_service(client, service):
    def upload(i):
        return client.start(model=bytes(30 << 20)).status_code

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(upload, range(16))) == {422}


def slow_files() -> tuple[bytes, bytes]:
    """A model and data of some kB whose training step takes far over a minute."""
    sizes = (1, 8, 8, 8, 8, 8)
    layers = [
        torch.nn.Conv2d(n_in, n_out, 15, padding=7)
        for n_in, n_out in itertools.pairwise(sizes)
    ]
    pool = torch.nn.AdaptiveAvgPool2d(1)
    model = torch_file(
        torch.nn.Sequential(*layers, pool, torch.nn.Flatten(), torch.nn.Linear(8, 10))
    )
    arrays: dict = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = np.zeros((16, 1, 384, 384), np.float32)
        arrays[f"y_{part}"] = np.zeros(16, np.int64)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    assert len(model) + len(file.getvalue()) < 1 << 20
    return model, file.getvalue()


def test_a_file_is_no_longer_read_once_its_client_has_hung_up(client, service):
    children = service.folder / "root" / ".examiner"
    model, data = slow_files()
    id = json_of(client.start(model=model))["aggregator_id"]
    url, files = f"{client.url}/start-party", {"data": ("data.npz", data)}
    form = {"aggregator_id": id, "data_handler_class_name": "npz"}
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(
            requests.post, url, data=form, files=files, timeout=(300, 4)
        )
        wait_for(lambda: list(children.glob("*/*")), "nothing is read")
        assert isinstance(call.exception(), requests.ReadTimeout)
    wait_for(lambda: not list(children.glob("*/*")), "it is still read")
    assert client.state(id)["remaining_parties"] == 2
    client.stop(id)


def test_values_that_no_answer_could_repeat_are_refused_by_name(client):
    for value in ("1" + "0" * 40, "NaN", "1e400", '"\\ud800"', "[" * 30 + "]" * 30):
        got = client.start(optimizer_args=f'{{"momentum": {value}}}')
        assert got.status_code == 422, (value, got.text)
        assert "optimizer_args" in json_of(got)["problems"][0]
    large = '{"num_parties": 2, "learning_rate": 1' + "0" * 40 + "}"
    got = client.post("/start-aggregator", data=large)
    assert got.status_code == 422
    assert "learning_rate must be a number of at most" in json_of(got)["detail"]
    listed = client.get("/aggregators")
    assert (listed.status_code, "aggregators" in json_of(listed)) == (200, True)


def test_a_data_path_that_cannot_be_read_is_422_at_once(client, service):
    id = json_of(client.start())["aggregator_id"]
    pipe = service.folder / "data" / "pipe"
    os.mkfifo(pipe)
    try:
        for path in ("a" * 300, "a/" * 400, "pipe", "pipe/x", "missing", ".." * 9):
            form = {"aggregator_id": id, "data_path": path}
            form["data_handler_class_name"] = "mnist_pytorch"
            got = client.post("/start-party", data=form)
            assert got.status_code == 422, (path, got.text)
            assert str(service.folder) not in got.text
    finally:
        pipe.unlink()
        client.stop(id)
