"""A client of the REST service for tests, and small model and data files."""

import functools
import io
import json

import numpy as np
import requests
import torch

from fedray.data import MnistPytorch

FORM = {"fusion_algorithm": "fedavg", "model_type": "pytorch", "num_parties": 2,
        "rounds": 2, "epochs": 1, "learning_rate": 0.1, "optimizer": "optim.SGD",
        "batch_size": 16}  # fmt: skip
DIGITS = {"data_handler_class_name": "mnist_pytorch"}


def refuse_constant(name: str):
    raise AssertionError(f"{name} in the JSON of an answer")


def json_of(answer) -> dict:
    """The answer's JSON; NaN in it is an error."""
    return json.loads(answer.text, parse_constant=refuse_constant)


@functools.cache  # threads share the seed of the process
def model_file(seed: int = 0) -> bytes:
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 16), torch.nn.ReLU(),
        torch.nn.Linear(16, 10),
    )  # fmt: skip
    return torch_file(net)


def torch_file(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def data_file(n_train: int = 40, skip: int = 0, **changes) -> bytes:
    (x, y), (x_test, y_test) = MnistPytorch("mnist").get_data()
    arrays = {
        "x_train": x[skip : skip + n_train], "y_train": y[skip : skip + n_train],
        "x_test": x_test[skip : skip + 20], "y_test": y_test[skip : skip + 20],
    }  # fmt: skip
    file = io.BytesIO()
    np.savez(file, **arrays | changes)
    return file.getvalue()


class Client:
    """Calls one service; `http` is `requests`, or a client with the same methods."""

    def __init__(self, url: str = "", http=requests, **headers: str):
        self.url, self.http, self.headers = url, http, headers
        self.ids: list[str] = []  # of the federations that it started

    def start(self, model: bytes | None = None, **changes):
        files = {"model_file": ("model.pt", model or model_file())}
        answer = self.post("/start-aggregator", data=FORM | changes, files=files)
        if answer.status_code == 200:
            self.ids.append(json_of(answer)["aggregator_id"])
        return answer

    def join(self, id: str, data: bytes | None = None, **fields):
        files = {"data": ("data.npz", data or data_file())}
        form = {"aggregator_id": id} | DIGITS | fields
        return self.post("/start-party", data=form, files=files)

    def ready(self, sizes=(40, 64), **changes) -> str:
        """A federation all of whose parties have joined; its id."""
        answer = self.start(num_parties=len(sizes), **changes)
        id, skip = json_of(answer)["aggregator_id"], 0
        for size in sizes:
            assert self.join(id, data_file(size, skip)).status_code == 200
            skip += size
        return id

    def train(self, id: str, **params):
        return self.post("/train", json={"aggregator_id": id}, params=params)

    def stop(self, id: str):
        return self.post("/stop", json={"aggregator_id": id})

    def post(self, path: str, **options):
        return self.http.post(self.url + path, headers=self.headers, **options)

    def get(self, path: str = "", **options):
        return self.http.get(self.url + path, headers=self.headers, **options)

    def state(self, id: str) -> dict:
        return json_of(self.get(f"/aggregators/{id}"))


def opened_form(schema: dict, get_file) -> tuple[dict, dict]:
    """Values and files that a form on /docs sends as it opens: Swagger UI's samples.

    get_file : gives the bytes of a path of the service.
    """
    values, files = {}, {}
    for name, field in schema["properties"].items():
        source = field.get("x-example-file")
        if field.get("format") == "binary":
            if source:
                files[name] = (source.rpartition("/")[2], get_file(source))
            continue
        assert {"default", "example"} & set(field), f"{name}: the page makes one up"
        value = field.get("default", field.get("example"))
        values[name] = value if isinstance(value, str) else json.dumps(value)
    return values, files
