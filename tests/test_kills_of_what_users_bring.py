"""Datasets, tables, estimators, classes of users' own: same bits after kills."""

import textwrap

import numpy as np
import pytest
from support.kills import assert_kills_change_nothing

pytestmark = pytest.mark.usefixtures("cluster")

DATASETS = """
    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

    class Noisy(Dataset):
        def __init__(self, path):
            file = np.load(path)
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

    class Mapped:
        def __init__(self, path, workers=0):
            self.path, self.workers = path, workers

        def get_data(self):
            data = Noisy(self.path)
            loader = DataLoader(data, 8, shuffle=True, num_workers=self.workers)
            return loader, data

    class Plain(Mapped):
        def get_data(self):
            return Noisy(self.path), Noisy(self.path)

    class Streamed(Mapped):
        def get_data(self):
            loader = DataLoader(Stream(self.path), 8, num_workers=self.workers)
            return loader, Stream(self.path)

        def get_train_counts(self):
            return 60

        get_test_counts = get_train_counts

    class Face(Mapped):
        def get_data(self):
            import datasets
            file = np.load(self.path)
            columns = {"input": file["x"], "label": file["y"]}
            data = datasets.Dataset.from_dict(columns)
            return data, data

    class FaceStream(Face):
        def get_data(self):
            data, test = super().get_data()
            return data.to_iterable_dataset(2).shuffle(3, buffer_size=16), test

        def get_train_counts(self):
            return 60

    def net():
        return Net()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(
                torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2),
                torch.nn.ReLU(), torch.nn.Linear(8, 3),
            )

        def forward(self, input):
            return self.body(input)
"""


@pytest.fixture
def numbers(tmp_path):
    """Files of 60 samples, and code; settings of a party for each handler."""

    def write(code, *handlers, **shared):
        (tmp_path / "mine.py").write_text(textwrap.dedent(code))
        parties = []
        for seed, (handler, args) in enumerate(handlers):
            rng = np.random.default_rng(seed)
            name, x = "abcdefgh"[seed], rng.normal(size=(60, 4)).astype(np.float32)
            y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
            np.savez(tmp_path / f"{name}.npz", x=x, y=y)
            party = {"name": name, "data": str(tmp_path / f"{name}.npz")}
            if handler:
                party["data_handler"] = f"{tmp_path}/mine.py:{handler}"
            parties.append(party | ({"data_args": args} if args else {}))
        return {
            "architecture": f"{tmp_path}/mine.py:net",
            "parties": parties, "rounds": 8, "learning_rate": 0.1,
            "loss": "cross_entropy", "party_dir": str(tmp_path / "parties"), **shared,
        }  # fmt: skip

    return write


KINDS = {
    "plain": ("Plain", {}),
    "loader": ("Mapped", {}),
    "workers": ("Mapped", {"workers": 2}),
    "stream": ("Streamed", {}),
    "stream workers": ("Streamed", {"workers": 2}),
    "hugging face": ("Face", {}),
    "hugging face stream": ("FaceStream", {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_datasets(numbers, tmp_path, kind):
    settings = numbers(DATASETS, KINDS[kind], KINDS[kind])
    assert_kills_change_nothing(settings, tmp_path)
