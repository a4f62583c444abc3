"""What users bring, under kills of a party, of the aggregator and of the driver.

Datasets, tables, estimators and classes of their own, frozen tensors, layers and models
that stay at their party, metrics and schedules: the same bits.
`make test` plays one of each, `make chaos` all of them.
"""

import csv

import numpy as np
import pytest
from support.kills import assert_kills_change_nothing

from fedray.cli import main

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow]
ROUNDS = 24  # they are short: some of them are seen

NETS = """
import keras
from keras import layers


def dense():
    last = layers.Dense(3)
    body = [layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.2)]
    return keras.Sequential([keras.Input((4,), name="input"), *body, last])


def dense_frozen():
    net = dense()
    net.layers[0].trainable = net.layers[1].trainable = False
    return net


def of_table():
    return keras.Sequential([
        keras.Input((4,)), layers.Dense(8, "relu"), layers.Dense(3, "softmax"),
    ])
"""
CODE = '''
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(),
            nn.Linear(8, 3),
        )

    def forward(self, input):
        return self.body(input)


def frozen():
    net = Net()
    net.body[0].requires_grad_(False)
    return net


def lora():
    from peft import LoraConfig, get_peft_model

    return get_peft_model(Net(), LoraConfig(r=2, target_modules=["body.0"]))


class Noisy(Dataset):
    """Draws from the global random numbers, as augmentation does."""

    def __init__(self, path):
        with np.load(path) as file:
            self.x, self.y = file["x"], file["y"]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        noise = np.random.normal() + torch.rand(()).item()
        return {"input": self.x[i] + np.float32(noise), "labels": self.y[i]}


class Stream(IterableDataset):
    epoch = 0

    def __init__(self, path):
        self.items = Noisy(path)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        order = np.random.default_rng(self.epoch).permutation(len(self.items))
        for i in order[first::step].tolist():
            yield self.items[i]


class Plain:
    def __init__(self, path, workers=0):
        self.path, self.workers = path, workers

    def get_data(self):
        return Noisy(self.path), Noisy(self.path)


class Arrays(Plain):
    def get_data(self):
        items = Noisy(self.path)
        x, y = items.x, items.y
        return (x[:-20], y[:-20]), (x[-20:], y[-20:])


class Loader(Plain):
    def get_data(self):
        items, workers = Noisy(self.path), self.workers
        return DataLoader(items, 8, shuffle=True, num_workers=workers), items


class Streamed(Plain):
    def get_data(self):
        stream = Stream(self.path)
        return DataLoader(stream, 8, num_workers=self.workers), Stream(self.path)

    def get_train_counts(self):
        return 60

    get_test_counts = get_train_counts


class Face(Plain):
    def get_data(self):
        import datasets

        items = Noisy(self.path)
        data = datasets.Dataset.from_dict({"input": items.x, "label": items.y})
        return data, data


class FaceStream(Face):
    def get_data(self):
        data, tests = super().get_data()
        return data.to_iterable_dataset(2).shuffle(3, buffer_size=16), tests

    def get_train_counts(self):
        return 60


class Mapped(Plain):
    """Arrays in files, however small they are."""

    def get_data(self):
        import os

        from fedray.data import arrays

        arrays.MAX_READ_WHOLE, items = 0, Noisy(self.path)
        part = f"{self.path}.{os.getpid()}.npy"
        np.save(part, items.x)
        pair = np.load(part, mmap_mode="r"), items.y
        return pair, pair


class Own:
    """Softmax regression in numpy, in an order drawn from numpy's global numbers."""

    def __init__(self):
        self.weights = {"w": np.zeros((4, 3), np.float32), "n": np.array(0)}

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = weights

    def predict(self, x):
        shares = np.exp(x @ self.weights["w"])
        return shares / shares.sum(1, keepdims=True)

    def train(self, data, context):
        x, y = data
        for rows in np.array_split(np.random.permutation(len(x)), 6):
            error = self.predict(x[rows])
            error[np.arange(len(rows)), y[rows]] -= 1
            step = context.learning_rate * x[rows].T @ error / len(rows)
            self.weights["w"] -= step.astype(np.float32)
        self.weights["n"] = self.weights["n"] + 1
        return {"loss": self.evaluate(data, context)["loss"]}

    def evaluate(self, data, context):
        x, y = data
        shares = self.predict(x)
        loss = -np.log(shares[np.arange(len(y)), y]).mean()
        return {"loss": loss, "accuracy": (shares.argmax(1) == y).mean()}
'''
JOINS = {"b": {"joined": 3}, "c": {"left": 15}, "d": {"joined": 2, "left": 18}}
KINDS = {  # of datasets: handler, number of worker processes
    "plain": ("Plain", 0), "loader": ("Loader", 0), "workers": ("Loader", 2),
    "stream": ("Streamed", 0), "stream, workers": ("Streamed", 2),
    "hugging face": ("Face", 0), "hugging face, stream": ("FaceStream", 0),
}  # fmt: skip
TORCH = {"architecture": "Net"}
READ = TORCH | {"rounds": 12}  # anew in every pass, by worker processes too
OWN = {"model_type": "Own"}
KERAS = {
    "model_type": "keras", "architecture": "dense",
    "loss": "sparse_categorical_crossentropy", "loss_args": {"from_logits": True},
}  # fmt: skip


def sklearn(name, **args):
    return {
        "model_type": "sklearn", "architecture": name, "architecture_args": args,
        "learning_rate": None, "batch_size": None,
    }  # fmt: skip


LOG = sklearn("SGDClassifier", loss="log_loss")
MLP = sklearn("MLPClassifier")
CENTRES = sklearn("MiniBatchKMeans", n_clusters=3)
ADAPTIVE = {"aggregation": "adaptive", "drift_tolerance": 1.2}
SIDES = {"groups": {"by": "side"}}
LIKE = {"groups": {"by": "similarity", "k": 2}}
OWN_LAYERS = {"personal": ["body.4.*", "batch_norm"]}
BESIDE = {"finetune_epochs": 2, "compare": "local"}
GOALS = {  # by what the metrics say, the rate falls and the run ends
    "metrics": ["f1_macro", "auroc"], "keep_best": "f1_macro",
    "scheduler": "plateau", "scheduler_args": {"metric": "auroc", "patience": 1},
    "early_stopping": {"metric": "f1_macro", "patience": 8}, "rounds": 40,
}  # fmt: skip
WARM = {"scheduler": "cosine", "scheduler_args": {"warmup": 20}}
STEPS = WARM | {"scheduler_every": "step", "gradient_clip_norm": 1.0}
STEPS |= {"mixed_precision": "bfloat16", "local_steps": 9}
SCENES = {  # name -> config, datasets of the parties (else arrays), changes of parties
    "datasets": (
        TORCH,
        ["plain", "workers", "stream, workers", "hugging face, stream"],
    ),
    **{f"datasets: {kind}": (READ, [kind, kind]) for kind in KINDS},
    **{f"keras: {kind}": (KERAS, [kind, kind]) for kind in KINDS if "face" not in kind},
    "keras: mapped": (KERAS, ["mapped", "mapped"]),
    "own class, adaptive": (OWN | ADAPTIVE, [], JOINS),
    "own class, groups": (OWN | SIDES, [], JOINS),
    "own class, similarity": (OWN | LIKE, []),
    "own class, tests apart": (OWN | {"test_data": "a"}, []),
    "own class, multi_krum": (OWN | {"fusion_algorithm": "multi_krum"}, []),
    "own class, median": (OWN | {"fusion_algorithm": "median"}, []),
    "own class, fedadam": (OWN | {"fusion_algorithm": "fedadam"}, []),
    "own class, best_model": (OWN | {"fusion_algorithm": "best_model"}, []),
    "frozen, groups": (TORCH | SIDES | {"architecture": "frozen"}, [], JOINS),
    "frozen, adaptive": (TORCH | ADAPTIVE | {"architecture": "frozen"}, [], JOINS),
    "trainable": (TORCH | {"trainable": ["body.4.*", "body.1.*"]}, [], JOINS),
    "lora": (TORCH | {"architecture": "lora"}, [], JOINS),
    "lora, adaptive": (TORCH | ADAPTIVE | {"architecture": "lora"}, [], JOINS),
    "keras, frozen": (KERAS | SIDES | {"architecture": "dense_frozen"}, [], JOINS),
    "sklearn, krum": (LOG | {"fusion_algorithm": "krum"}, []),
    "sklearn, fedadam": (LOG | {"fusion_algorithm": "fedadam"}, []),
    "sklearn, best_model": (LOG | {"fusion_algorithm": "best_model"}, []),
    "sklearn, tests apart": (LOG | {"test_data": "a"}, []),
    "sklearn, adaptive": (MLP | ADAPTIVE, [], JOINS),
    "sklearn, clusters": (CENTRES | {"fusion_algorithm": "median"}, [], JOINS),
    "sklearn, clusters, adaptive": (CENTRES | ADAPTIVE, []),
    "personal": (TORCH | OWN_LAYERS | {"finetune_epochs": 2}, [], JOINS),
    "personal, groups": (TORCH | OWN_LAYERS | SIDES, [], JOINS),
    "personal, adaptive": (TORCH | OWN_LAYERS | ADAPTIVE | BESIDE, []),
    "personal, keras": (KERAS | {"personal": ["batch_norm"]} | BESIDE, []),
    "ditto": (TORCH | {"ditto_lambda": 0.2, "compare": "local"}, [], JOINS),
    "ditto, groups": (TORCH | {"ditto_lambda": 0.2} | SIDES, [], JOINS),
    "ditto, keras": (KERAS | {"ditto_lambda": 0.2}, []),
    "scaffold": (TORCH | {"fusion_algorithm": "scaffold"} | BESIDE, [], JOINS),
    "scaffold, keras": (KERAS | {"fusion_algorithm": "scaffold"}, []),
    "scaffold, adaptive": (TORCH | ADAPTIVE | {"fusion_algorithm": "scaffold"}, []),
    "fednova, steps": (TORCH | STEPS | {"fusion_algorithm": "fednova"} | BESIDE, []),
    "goals": (TORCH | GOALS, [], JOINS),
    "goals, keras": (KERAS | GOALS, []),
    "goals, sklearn": (LOG | {"metrics": ["f1_macro"], "keep_best": "f1_macro"}, []),
    "frozen, best_model": (
        TORCH | {"architecture": "frozen", "fusion_algorithm": "best_model"},
        [],
    ),
    "sklearn, normalized": (LOG | {"normalize": "federated"}, [], JOINS),
}
QUICK = ("datasets", "own class, groups", "frozen, adaptive")
NEEDS = {"hugging": "datasets", "datasets": "datasets", "lora": "peft",
         "sklearn": "sklearn", "goals": "torchmetrics"}  # fmt: skip


def party(folder, seed):
    """A party of 60 samples and three classes; every second one has other classes."""
    draw, name = np.random.default_rng(seed), "abcdef"[seed]
    x = draw.normal(size=(60, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
    np.savez(folder / f"{name}.npz", x=x, y=2 - y if seed % 2 else y)
    side = {"side": ("even", "odd")[seed % 2]}
    return {"name": name, "data": str(folder / f"{name}.npz"), "fields": side}


def settings_of(folder, config, kinds, changes):
    """A scene's config, with its files written to a folder."""
    (folder / "mine.py").write_text(CODE)
    (folder / "nets.py").write_text(NETS)
    parties = [party(folder, seed) for seed in range(len(kinds) or 6)]
    for one, kind in zip(parties, kinds or ["arrays"] * 6, strict=True):
        handler, workers = KINDS.get(kind, (kind.title(), 0))
        one |= {"data_handler": f"{folder}/mine.py:{handler}"}
        one |= {"data_args": {"workers": workers}} if workers else {}
        one |= changes.get(one["name"], {})
    settings = {
        "parties": parties, "rounds": ROUNDS, "learning_rate": 0.05, "batch_size": 8,
        "data_handler": f"{folder}/mine.py:Arrays", "party_dir": f"{folder}/parties",
        **config,
    }  # fmt: skip
    is_own = settings.get("model_type") == "Own"
    settings["batch_size"] = None if is_own else settings["batch_size"]
    for key, value in settings.items():
        if value in ("Own", "Net", "frozen", "lora"):
            settings[key] = f"{folder}/mine.py:{value}"
        if value in ("dense", "dense_frozen"):
            settings[key] = f"{folder}/nets.py:{value}"
    if "test_data" in settings:
        settings["test_data"] = parties[0]["data"]
    return {key: value for key, value in settings.items() if value is not None}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.chaos)
        for name in SCENES
    ],
)
def test_kills_leave_the_same_bits(tmp_path, name):
    for word, package in NEEDS.items():
        if word in name:
            pytest.importorskip(package)
    config, kinds, *changes = SCENES[name]
    settings = settings_of(tmp_path, config, kinds, *changes or [{}])
    assert_kills_change_nothing(settings, tmp_path, "b")


def write_table(path, labels):
    rows = []
    for i in range(40):
        pressure = "" if i % 9 == 0 else f"{100 + i * 7 % 50}"
        rows.append([20 + i, pressure, "AB"[i // 2 % 2], labels[i % 2]])
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["age", "pressure", "ward", "outcome"], *rows])


def test_a_table_with_keras_predicts_names_and_kills_leave_the_same_bits(
    tmp_path, capsys
):
    pytest.importorskip("pyarrow")
    (tmp_path / "nets.py").write_text(NETS)
    for name, labels in {"a": ("ill", "well"), "b": ("well", "unclear")}.items():
        write_table(tmp_path / f"{name}.csv", labels)
    settings = {
        "model_type": "keras", "architecture": f"{tmp_path}/nets.py:of_table",
        "data_handler": "csv", "normalize": "federated", "rounds": ROUNDS,
        "data_args": {
            "target": "outcome", "dtypes": {"ward": "category"}, "one_hot": True,
            "missing": "mean",
        },
        "loss": "sparse_categorical_crossentropy", "learning_rate": 0.1,
        "parties": [{"name": n, "data": f"{tmp_path}/{n}.csv"} for n in "ab"],
        "party_dir": f"{tmp_path}/parties",
    }  # fmt: skip
    assert_kills_change_nothing(settings, tmp_path, "b", ("party", "driver"))
    run, out = str(tmp_path / "whole"), str(tmp_path / "p.csv")
    assert main(["predict", run, "--data", f"{tmp_path}/b.csv", "--out", out]) == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert {row["label"] for row in rows} <= {"ill", "unclear", "well"}
    assert "probability of unclear" in rows[0]
    assert main(["evaluate", run, "--data", f"{tmp_path}/b.csv"]) == 0
    assert "accuracy" in capsys.readouterr().out
