"""Nested arrays, datasets, DataLoaders and mapped files as a party's data."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.local_rounds import federation
from support.waiting import wait_for
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from fedray import data, models
from fedray.config import FederationConfig
from fedray.data import arrays
from fedray.errors import DataError, PartyError
from fedray.models.base import PartySlice
from fedray.models.torch_datasets import DatasetSamples
from fedray.nested import describe

NETS = """
from torch import nn

def one():
    return nn.Linear(4, 3)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, a, b):
        return self.layer(a) + self.layer(b)
"""
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(50, 4)).astype(np.float32)
Y = DRAW.integers(0, 3, 50)


class Readings(Dataset):
    def __len__(self):
        return 50

    def __getitem__(self, place):
        return X[place], Y[place]


class Noisy(Readings):
    """Draws from numpy's and torch's global states, as augmentation does."""

    def __getitem__(self, place):
        noise = np.random.normal() + torch.rand(()).item()
        return X[place] + np.float32(noise), Y[place]


class Named(Readings):
    def __getitem__(self, place):
        return {"a": X[place], "b": X[place], "labels": Y[place]}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield X[0], Y[0]


class Broken(Readings):
    def __getitem__(self, place):
        raise KeyError("77")


class Ragged(Readings):
    def __getitem__(self, place):
        return X[place][: 1 + place % 2], Y[place]


class Holey(Readings):
    def __getitem__(self, place):
        return X[place] / (place != 33), Y[place]


def samples_of(value, **counts):
    methods = {f"get_{name}_counts": lambda n=n: n for name, n in counts.items()}
    handler = SimpleNamespace(get_data=lambda: value, **methods)
    return data.load_samples(handler, "a")


@pytest.fixture
def trained(tmp_path):
    """Trains twice on what a handler gives: the loss and the weights, if alike."""
    (tmp_path / "nets.py").write_text(NETS)

    def train(value, net="one", **counts):
        architecture = f"{tmp_path}/nets.py:{net}"
        config = FederationConfig(
            architecture=architecture, loss="cross_entropy", batch_size=8, epochs=2
        )
        adapter = models.named("pytorch")
        blueprint, weights = adapter.read(config)
        model = adapter.make(blueprint, config, "cpu")
        samples = samples_of(value, **counts)
        ready, tests = model.ready(samples.train), model.ready(samples.test)
        with model.undo(weights):
            model.load(weights)
            model.probe("a", ready)
            model.try_training("a", weights, ready, [8, 2])
            if len(tests):
                model.try_evaluation("a", tests)
        ends = []
        for _ in range(2):
            model.load(weights)
            loss = model.train(ready, PartySlice(np.arange(len(ready)), 7))
            ends.append([loss, *(a.copy() for a in model.weights().values())])
        assert all(map(np.array_equal, *ends))
        score = model.evaluate(tests).means if len(tests) else None
        return [*ends[0], score]

    return train


def test_samples_train_the_same_from_memory_a_dataset_a_loader_and_a_file(
    trained, tmp_path, monkeypatch
):
    pair = (X, Y)
    loss, weight, _, score = trained((pair, pair))
    np.save(tmp_path / "x.npy", X)
    monkeypatch.setattr(arrays, "MAX_READ_WHOLE", 0)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r"), Y
    loader = DataLoader(Readings(), batch_size=8, shuffle=True, num_workers=2)
    tensors = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    for value in ((Readings(), tensors), (loader, pair), (mapped, mapped)):
        found = trained(value)
        assert found[0] == loss
        assert np.array_equal(found[1], weight)
        assert found[3] == pytest.approx(score)


def twice(items):
    return [torch.cat([one, one]) for one in default_collate(items)]


def test_a_collate_fn_may_make_several_samples_of_each_that_are_all_evaluated(trained):
    score = trained(((X, Y), (X, Y)))[3]
    tested = DataLoader(Readings(), batch_size=8, collate_fn=twice)
    assert trained(((X, Y), tested))[3] == pytest.approx(score)


@pytest.mark.parametrize(
    ("value", "net", "counts"),
    [
        (Noisy(), "one", {}),
        (DataLoader(Noisy(), 8, shuffle=True, num_workers=2), "one", {}),
        (
            DataLoader(Readings(), sampler=WeightedRandomSampler([1.0] * 50, 30)),
            "one",
            {},
        ),
        ((Stream(), Stream()), "one", {"train": 50, "test": 50}),
        (Endless(), "one", {"train": 20}),
        ((Named(), Subset(Named(), [1, 2])), "Two", {}),
        ((((X, X), Y), None), "Two", {}),
    ],
    ids=["noisy", "workers", "sampler", "stream", "endless", "dict", "tuple"],
)
def test_everything_random_comes_from_the_seed(trained, value, net, counts):
    assert np.isfinite(trained(value, net, **counts)[0])


def test_a_hugging_face_dataset_on_disk_trains(trained, tmp_path):
    hugging_face = pytest.importorskip("datasets")
    columns = {"a": X.tolist(), "b": X.tolist(), "label": Y.tolist()}
    hugging_face.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "d"))
    found = trained((hugging_face.load_from_disk(str(tmp_path / "d")), None), "Two")
    assert found[0] == trained((({"a": X, "b": X}, Y), None), "Two")[0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Broken(), "a dataset that raises KeyError"),
        (DataLoader(Broken(), num_workers=1), "a dataset that raises KeyError"),
        (Ragged(), "samples that make no batch.*collate_fn"),
        (Holey(), "NaN or infinity in x"),
    ],
    ids=["broken", "broken in a worker", "ragged", "not finite"],
)
def test_a_dataset_that_cannot_be_used_is_an_error_without_values(
    trained, value, message
):
    with pytest.raises(DataError, match=message) as caught:
        trained(value)
    assert "77" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "gives nothing"),
        ((X, Y), "tuple of another form"),
        (3, "something else .of type int"),
        ((({"a": X, "b": X[:3]}, Y), None), r"50 x_train\['a'\] and 3 x_train\['b'\]"),
        ((({}, Y), None), "an empty dict"),
        ((({1: X}, Y), None), "a key of type int"),
        ((({"a": None}, Y), None), r"x_train\['a'\] that is None"),
        (((X, Y), ({"a": X}, Y)), "one array and x_test of"),
        ((Stream(), None), "stream.*get_train_counts"),
    ],
)
def test_data_of_a_wrong_structure_are_an_error(value, message):
    with pytest.raises(DataError, match=message):
        samples_of(value)


def test_tuples_of_inputs_are_told_from_tuples_of_samples():
    assert describe(samples_of((((X, X), Y), None)).x_train).startswith("(float32[4],")
    assert describe(samples_of(((tuple(X), Y), None)).x_train) == "float32[4]"
    tests = (X[:2], X[:2]), Y[:2]  # as many inputs as samples
    assert samples_of((((X, X), Y), tests)).n_test == 2
    assert samples_of(((X, None), None)).y_train is None


class Counting(Readings):
    """A generator of its own goes on from pass to pass."""

    def __init__(self, seed=0):
        self.draw = np.random.default_rng(seed)

    def __getitem__(self, place):
        return X[place] + np.float32(self.draw.normal()), Y[place]


class Shuffling(IterableDataset):
    """In an order of its own in each pass: by its epoch, or by what was drawn."""

    def __init__(self, by_epoch=True, n_late=0):
        self.epoch, self.by_epoch, self.n_late = 0, by_epoch, n_late
        self.draw = np.random.default_rng(0)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        draw = np.random.default_rng(self.epoch) if self.by_epoch else self.draw
        order = draw.permutation(50 - self.n_late) + self.n_late
        for place in (*range(self.n_late), *order):
            yield X[place] + torch.rand(()).numpy(), Y[place]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Stream(), (None, None)),
        (Shuffling(), (None, None)),
        (DataLoader(Shuffling(), 8, num_workers=2), (None, None)),
        (Shuffling(by_epoch=False), (1, 1)),
        (Shuffling(by_epoch=False, n_late=20), (3, 3)),
        (Noisy(), (None, None)),
        (DataLoader(Noisy(), 8, shuffle=True, num_workers=2), (None, None)),
        (Counting(), (1, 1)),
    ],
    ids=[
        *("stream", "by epoch", "workers", "own order", "late"),
        *("noisy", "noisy workers", "counting"),
    ],
)
def test_a_pass_that_a_second_one_does_not_repeat_is_found(value, expected):
    def prepare(x, y):
        return torch.as_tensor(x), torch.as_tensor(y)

    part = samples_of((value, None), train=50).train
    config = FederationConfig(architecture="n.py:n", batch_size=8)
    samples = DatasetSamples(part, prepare, config, joins_single=False)
    sizes = [8] * 6 + [2]
    assert samples.compare_passes(sizes, 7, 3) == expected[0]
    assert samples.compare_passes(sizes, 7, None) == expected[1]


KEYS = """
import numpy as np

X, Y = np.ones((20, 4), np.float32), np.arange(20) % 3

class Good:
    def __init__(self, path):
        pass

    def get_data(self):
        return ({"a": X, "b": X}, Y), None

class Key(Good):
    def get_data(self):
        return ({"a": X, "b": X, "token_type_ids": X}, Y), None

class Item(Good):
    def get_data(self):
        return Items(), None

class Items:
    def __len__(self):
        return 20

    def __getitem__(self, place):
        return {"a": X[0], "b": X[0], "token_type_ids": place, "labels": Y[place]}
"""


@pytest.mark.parametrize("handler", ["Key", "Item"])
def test_a_key_that_the_model_does_not_take_is_named_with_its_party(tmp_path, handler):
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "keys.py").write_text(KEYS)
    weights, parties, _ = federation(
        {
            "architecture": f"{tmp_path}/nets.py:Two", "party_dir": f"{tmp_path}/p",
            "data_handler": f"{tmp_path}/keys.py:Good",
            "parties": [
                {"name": "a", "data": "x"},
                {"name": "b", "data": "y"},
            ],
        }
    )  # fmt: skip
    parties["b"].plan = replace(
        parties["b"].plan, handler=data.named(f"{tmp_path}/keys.py:{handler}")
    )
    parties["a"].join(weights)
    with pytest.raises(PartyError) as caught:
        parties["b"].join(weights)
    message = str(caught.value)
    assert "party b" in message
    assert "its forward has no 'token_type_ids', but a, b" in message


SCENE = """
import os, sys, time
from torch.utils.data import DataLoader, Dataset
from fedray.datasets import wrap
from fedray.models.torch_batches import PlacedBatches, load_batches

class Slow(Dataset):
    def __len__(self): return 9
    def __getitem__(self, place):
        print(os.getpid(), flush=True)
        time.sleep(600)  # it is killed; what is waited for is that it has ended

part = wrap(DataLoader(Slow(), num_workers=2))
next(load_batches(PlacedBatches(part), [[0], [1]], 0))
"""


def test_no_worker_process_outlives_the_process_that_started_it():
    scene = subprocess.Popen(
        [sys.executable, "-c", SCENE], stdout=subprocess.PIPE, text=True
    )
    workers = [int(scene.stdout.readline()) for _ in range(2)]
    scene.send_signal(signal.SIGKILL)
    scene.wait()
    wait_for(lambda: not any(is_running(worker) for worker in workers))


def is_running(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
