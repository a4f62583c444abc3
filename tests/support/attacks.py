"""Attacks over HTTP on the REST service: what each does, and what comes of it.

An attack is a function of an `Attacker` (attack_scene.py), which goes on until it is no
longer on and asserts what it is answered. What holds under all of them is asserted by
the scene. The table in docs/security-and-privacy.md is made from `ATTACKS`.
"""

import contextlib
import io
import itertools
import json
import os
import random
import secrets
import selectors
import socket
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import requests
import torch
from support.attack_scene import DOC2VEC, MIB, SETTINGS, Attacker
from support.rest import DIGITS, data_file, json_of, torch_file
from support.waiting import wait_for

from fedray.service.settings import Settings

MULTIPART = "Content-Type: multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="f.pt"\r\n\r\n'
N_LINES = 200  # connections of one attack
REFUSED = {400, 404, 405, 408, 409, 413, 415, 422, 429, 431}


@dataclass(frozen=True)
class Attack:
    """A row of the table."""

    name: str
    outcome: str
    play: Callable[[Attacker], None]


class Lines:
    """Connections of one attack: opened again where the service has closed them."""

    def __init__(self, attacker: Attacker):
        self.attacker, self.open = attacker, []

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        for line in self.open:
            line.close()

    def send(self, data: bytes) -> None:
        """Send this on a new connection; nothing is read."""
        with contextlib.suppress(OSError):
            line = self.attacker.connect()
            self.open.append(line)
            line.setblocking(False)
            line.send(data)

    def trickle(self, data: bytes, every_s: float = 0.1) -> None:
        """Send a little more on each, until the attack ends."""
        while self.attacker.is_on:
            for line in list(self.open):
                try:
                    line.send(data)
                except BlockingIOError:
                    pass
                except OSError:
                    line.close()
                    self.open.remove(line)
            time.sleep(every_s)


def large_model() -> bytes:
    """A million parameters: 4 MB, as JSON 20 MB."""
    return torch_file(
        torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(784, 1200), torch.nn.Linear(1200, 10)
        )
    )


def leave_answers_unread(attacker: Attacker) -> None:
    client = attacker.client
    answer = client.start(model=large_model(), num_parties=1, rounds=1)
    id = json_of(attacker.count(answer))["aggregator_id"]
    attacker.count(client.join(id))
    body = json.dumps({"aggregator_id": id}).encode()
    length = f"Content-Length: {len(body)}"
    with Lines(attacker) as lines:
        lines.send(attacker.head("POST /train", length) + body)
        lines.send(attacker.head("POST /train", length) + body)
        wait_for(lambda: client.state(id)["state"] == "trained", "the model")
        attacker.begin()
        calls = [
            attacker.head("POST /stop", length) + body,
            attacker.head(f"GET /aggregators/{id}"),
            attacker.head(f"GET /aggregators/{id}/weights"),
            attacker.head("GET /aggregators"),
            attacker.head("GET /docs") * 50,
            attacker.head("GET /static-offline-docs/swagger-ui-bundle.js"),
        ]
        for call in itertools.cycle(calls):
            if not attacker.is_on:
                break
            if len(lines.open) > 2 * N_LINES:
                lines.open.pop(0).close()
            lines.send(call)
            time.sleep(0.01)


def send_slowly(attacker: Attacker) -> None:
    length = f"Content-Length: {60 * MIB}"
    starts = [
        attacker.head("POST /start-aggregator", MULTIPART, length)
        + PART % b"model_file",
        attacker.head("POST /start-party", MULTIPART, length) + PART % b"data",
        attacker.head("POST /stop", "Content-Length: 60000"),
    ]
    with Lines(attacker) as lines:
        for i in range(N_LINES + 5):
            lines.send(starts[i % len(starts)])
        lines.trickle(bytes(2000))  # 20 kB a second


def stand_still(attacker: Attacker) -> None:
    half = attacker.head("POST /train", "Content-Length: 100")
    starts = [b"", half[:40], half, half + b'{"aggre']
    with Lines(attacker) as lines:
        for i in range(3 * N_LINES):
            lines.send(starts[i % 4])
            if i % 8 > 3 and lines.open:
                with contextlib.suppress(OSError):
                    lines.open[-1].shutdown(socket.SHUT_WR)
            lines.send(b"GET /aggregators HTTP/1.1\r\nX-%d: " % i)
        lines.trickle(b"a", 0.5)


def pipeline(attacker: Attacker) -> None:
    calls = attacker.head("GET /aggregators") * 200
    chunks = attacker.head("POST /train", "Transfer-Encoding: chunked")
    chunks += b"1\r\n{\r\n" * 20_000
    with Lines(attacker) as lines:
        selector = selectors.DefaultSelector()
        for i in range(40):
            lines.send(b"")
            selector.register(
                lines.open[-1], selectors.EVENT_WRITE, (calls, chunks)[i % 2]
            )
        while attacker.is_on:
            for key, _ in selector.select(0.2):
                try:
                    key.fileobj.send(key.data)
                except BlockingIOError:
                    continue
                except OSError:
                    selector.unregister(key.fileobj)
                    lines.send(b"")
                    selector.register(lines.open[-1], selectors.EVENT_WRITE, key.data)
            time.sleep(0.02)


def fill_the_disk(attacker: Attacker) -> None:
    client, content = attacker.client, os.urandom(30 * MIB)
    id = json_of(attacker.count(client.start()))["aggregator_id"]

    def call() -> None:
        if random.random() < 0.5:
            attacker.count(client.start(model=content))
        else:
            attacker.count(client.join(id, content))

    attacker.repeat(8, call)
    assert attacker.statuses[507], "the disk is not bounded"
    assert client.stop(id).status_code == 200


def slow_model() -> bytes:
    """A small file whose training step takes a minute."""
    layers = [torch.nn.Upsample(scale_factor=12), torch.nn.Conv2d(1, 32, 5)]
    layers += [torch.nn.Conv2d(32, 32, 5) for _ in range(6)]
    layers += [
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(32, 10),
    ]
    return torch_file(torch.nn.Sequential(*layers))


def join_slow_models(attacker: Attacker) -> None:
    client = attacker.client
    made = client.start(model=slow_model(), num_parties=2)
    assert attacker.count(made).status_code == 200, made.text
    id = json_of(made)["aggregator_id"]
    form, files = {"aggregator_id": id} | DIGITS, {"data": ("d.npz", data_file())}
    body = requests.Request("POST", client.url, data=form, files=files).prepare()
    kind = f"Content-Type: {body.headers['content-type']}"
    call = attacker.head("POST /start-party", kind, f"Content-Length: {len(body.body)}")
    with Lines(attacker) as lines:
        for _ in range(16):
            lines.send(call)
            lines.open[-1].setblocking(True)
            lines.open[-1].sendall(body.body)
        lines.trickle(b"", 0.5)


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return file.getvalue()


def send_bombs(attacker: Attacker) -> None:
    client, zeros = attacker.client, bytes(100 * MIB)
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (100_000, 784)}
    np.lib.format.write_array_header_1_0(header, shape)
    layer = torch.nn.Linear(2, 2)
    layer.in_features = layer.out_features = 10**6
    models = [
        archive(**{"archive/data.pkl": zeros}),
        archive(**{"archive/data.pkl": b"\x80\x02" + b"]" * 10**6}),
        archive(**{f"archive/{i}": b"" for i in range(10_000)}),
        torch_file(torch.nn.Sequential(layer)),
    ]
    datas = [
        archive(**{"x_train.npy": header.getvalue() + zeros, "y_train.npy": b""}),
        archive(**{f"{i}.npy": b"" for i in range(10_000)}),
    ]
    del zeros
    id = json_of(attacker.count(client.start()))["aggregator_id"]

    def call() -> None:
        if random.random() < 0.5:
            answer = client.start(model=random.choice(models))
        else:
            answer = client.join(id, random.choice(datas))
        assert attacker.count(answer).status_code in REFUSED, answer.text

    attacker.begin()
    attacker.repeat(3, call)
    assert attacker.statuses[413] or attacker.statuses[422]


def words_by_the_thousand(attacker: Attacker) -> None:
    client = attacker.client
    letters = itertools.product("bcdfghjklmnpqrst", repeat=4)
    words = ["".join(four) for four in itertools.islice(letters, 40_000)]
    lines = [
        {"tag": f"t{i}", "text": " ".join(words[i : i + 500])}
        for i in range(0, len(words), 500)
    ]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    form = DOC2VEC | {"doc2vec": '{"vector_size": 10000, "min_count": 1}'}
    while attacker.is_on:
        made = attacker.count(client.post("/start-aggregator", data=form))
        if made.status_code != 200:
            assert made.status_code in REFUSED, made.text
            time.sleep(0.2)
            continue
        id = json_of(made)["aggregator_id"]
        fields = {"aggregator_id": id, "data_handler_class_name": "20_newsgroup"}
        files = {"data": ("d.jsonl", data)}
        joined = attacker.count(client.post("/start-party", data=fields, files=files))
        if joined.status_code != 200:
            assert "memory" in joined.text, joined.text
        else:
            answer = client.train(id)
            assert answer.status_code >= 400, answer.text[:200]
            assert "memory" in answer.text, answer.text
        client.stop(id)


def train_for_ever(attacker: Attacker) -> None:
    client = attacker.client
    with Lines(attacker) as lines:
        while attacker.is_on:
            made = attacker.count(client.start(rounds=10_000_000, num_parties=2,
                                               round_timeout_s=10**6))  # fmt: skip
            if made.status_code != 200:
                time.sleep(0.2)
                continue
            id = json_of(made)["aggregator_id"]
            joined = [attacker.count(client.join(id)).status_code for _ in range(2)]
            if joined == [200, 200]:
                attacker.count(client.train(id, wait="false"))
                body = json.dumps({"aggregator_id": id}).encode()
                length = f"Content-Length: {len(body)}"
                lines.send(attacker.head("POST /train", length) + body)
        listed = json_of(attacker.count(client.get("/aggregators")))["aggregators"]
    states = [one["state"] for one in listed if one["state"] != "waiting for parties"]
    assert set(states) <= {"queued", "training"}, states
    assert states.count("training") <= SETTINGS["max_trainings_per_client"], states


def start_federations(attacker: Attacker) -> None:
    client = attacker.client

    def call() -> None:
        made = attacker.count(client.start())
        if made.status_code == 429:
            assert json_of(made)["limit"] == "max_open", made.text
            time.sleep(0.1)

    attacker.repeat(4, call)
    assert attacker.statuses[200] <= Settings.max_open


def hang_up(attacker: Attacker) -> None:
    client = attacker.client

    def call() -> None:
        """Stop while a party joins and a training begins, and hang up on all."""
        made = client.start(num_parties=1)
        if attacker.count(made).status_code != 200:
            return
        id = json_of(made)["aggregator_id"]
        one, data = {"aggregator_id": id}, {"data": ("d.npz", data_file())}
        kinds = [lambda: client.post("/start-party", data=one | DIGITS, files=data,
                                     timeout=random.random())]  # fmt: skip
        kinds += [
            lambda path=path: client.post(path, json=one, timeout=random.random() / 2)
            for path in ("/train", "/stop", "/stop-party")
        ]
        for kind in random.sample(kinds, 3):
            with contextlib.suppress(requests.RequestException):
                attacker.count(kind())

    attacker.repeat(4, call)


def malformed(rng: random.Random) -> bytes:
    """A request that is wrong in one way or another."""
    path = rng.choice(["/start-aggregator", "/start-party", "/train", "/stop"])
    body = rng.choice([
        rng.randbytes(300), b"[" * 50_000, b'{"aggregator_id": NaN}',
        b'{"rounds": 1e400}',
        b'{"aggregator_id": "\\ud83d"}', b'{"optimizer_args": 1' + b"0" * 40 + b"}",
        b"--x\r\n\r\n\r\n1\r\n--x--\r\n", b"--x\r\n" * 2000, b"\0" * 1000,
        b'--x\r\nContent-Disposition: form-data; name="rounds"\r\n\r\nNaN\r\n--x--\r\n',
    ])  # fmt: skip
    kind = rng.choice(["application/json", "multipart/form-data; boundary=x",
                       "application/x-www-form-urlencoded", "text/plain"])  # fmt: skip
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
    return rng.choice([
        head.encode() + b"%s" + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        head.encode() + b"%s" + b"Content-Length: -1\r\n\r\n",
        head.encode() + b"%s" + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\x1b[31m HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n",
        b"GET /aggregators/%2e%2e/%2e%2e HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /aggregators?%00=\xff HTTP/1.1\r\nHost: [\r\n%s\r\n",
        b"GET /aggregators HTTP/1.1\r\nHost: [::1\r\n%s\r\n",
        b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00", rng.randbytes(500),
        head.encode() + b"%s" + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
    ])  # fmt: skip


def send_nonsense(attacker: Attacker) -> None:
    keys = "".join(f"{n}: {v}\r\n" for n, v in attacker.client.headers.items()).encode()

    def call() -> None:
        with attacker.connect() as line:
            line.sendall(malformed(random.Random()).replace(b"%s", keys))
            line.shutdown(socket.SHUT_WR)
            answered = line.recv(4096)
        if answered.startswith(b"HTTP"):
            status = int(answered.split()[1])
            attacker.statuses[status] += 1
            assert status < 500 or status == 501, answered

    attacker.repeat(4, call)


def guess(attacker: Attacker) -> None:
    """Keys, ids and the places of others' data."""
    client, id = attacker.client, attacker.neighbours_id
    own = dict(client.headers)

    def guess_key() -> int:
        key = {
            "X-IBM-Client-Id": "neighbour",
            "X-IBM-Client-Secret": secrets.token_hex(32),
        }
        answer = requests.get(f"{client.url}/aggregators/{id}", headers=key)
        assert answer.status_code == 401
        return 401

    def take_id() -> int:
        one = {"aggregator_id": id}
        path = random.choice(
            ["/train", "/stop", "/stop-party", "/weights", "/report", ""]
        )
        if path.startswith("/w") or path in ("/report", ""):
            answer = requests.get(f"{client.url}/aggregators/{id}{path}", headers=own)
        else:
            more = {"party_id": "party-0"} if path == "/stop-party" else {}
            answer = client.post(path, json=one | more)
        assert answer.status_code == 404, answer.text
        return 404

    mine = json_of(attacker.count(client.start()))["aggregator_id"]

    def take_data() -> int:
        path = random.choice(
            ["../neighbour/a.npz", "/etc/passwd", f"../root/{id}/uploads", "~/x", "\0"]
        )
        fields = {"aggregator_id": mine, "data_path": path, "labels": "a=b"} | DIGITS
        answer = client.post("/start-party", data=fields)
        assert answer.status_code in (403, 422), answer.text
        assert "neighbour" not in answer.text.replace("../neighbour/a.npz", "")
        return answer.status_code

    def call() -> None:
        attacker.statuses[random.choice([guess_key, take_id, take_data])()] += 1

    attacker.repeat(4, call)


ATTACKS = (
    Attack(
        "hundreds of answers that are never read",
        "sent as they are read; cut off after `answer_timeout_s`",
        leave_answers_unread,
    ),
    Attack(
        "205 bodies at 20 kB/s",
        "they take calls of their own client; 429 beyond",
        send_slowly,
    ),
    Attack(
        "1,200 connections: idle, half open, a header a byte at a time",
        "they give way to calls; 408",
        stand_still,
    ),
    Attack(
        "pipelined calls without end, chunks of a byte",
        "one call at a time, a few chunks between others' calls",
        pipeline,
    ),
    Attack(
        "uploads that would fill the disk",
        "space is reserved first: 507; stops go on",
        fill_the_disk,
    ),
    Attack(
        "16 joins of a model that takes a minute to read",
        "files of clients in turn, each within its seconds",
        join_slow_models,
    ),
    Attack(
        "zip bombs, 10,000 members, 10^12 weights",
        "413 or 422",
        send_bombs,
    ),
    Attack(
        "doc2vec of 40,000 words, `vector_size: 10000`",
        "refused, with the memory that it would take",
        words_by_the_thousand,
    ),
    Attack(
        "trainings of 10,000,000 rounds",
        "they wait for their turn (`queued`); `/stop` ends them",
        train_for_ever,
    ),
    Attack(
        "as many open federations as can be",
        "429 `max_open`; each is a folder, no process",
        start_federations,
    ),
    Attack(
        "stops while parties join, hang-ups at any moment",
        "what a call has begun is done to its end",
        hang_up,
    ),
    Attack(
        "malformed HTTP, headers, forms, JSON, numbers",
        "4xx",
        send_nonsense,
    ),
    Attack(
        "keys guessed; ids and data of a neighbour",
        "401, 404, 403: as if there were nobody else",
        guess,
    ),
)
