"""Does my site benefit? Personalisation, SCAFFOLD and FedNova on parties that differ.

    python benchmarks/personal.py [--seeds 3] [--rounds 15] [--json FILE] [--figure F]

10 parties of the shipped digits, an MLP with batch norm, called without Ray, by the
code that a federation uses. Three ways of being unlike, each also with unequal sizes
(as `size_alpha: 0.5` draws them):

- dirichlet: each party has its own mix of digits (alpha 0.1)
- permuted: all have all digits, and five of them names of their own for them
- two digits: each party has two digits, and each digit is at two parties

Every party is tested on digits of its own mix, with its own names. Prints the mean over
parties and the worst party, each a mean over the seeds. `--methods scaffold,fednova`
plays some of them; `--from FILE` takes the others from an earlier JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import table  # noqa: E402

from fedray import data, models  # noqa: E402
from fedray.federation import read_config  # noqa: E402
from fedray.messages import ActorLocation  # noqa: E402
from fedray.party import GroupPlan, PartyGroup  # noqa: E402
from fedray.weights import cast  # noqa: E402

N_PARTIES, N_TRAIN, N_TEST = 10, 200, 100  # samples of a party; N_TRAIN is their mean
CODE = """
import numpy as np
from torch import nn


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 32), nn.BatchNorm1d(32), nn.ReLU(),
        nn.Linear(32, 10),
    )


class Parties:
    def __init__(self, path):
        self.file = np.load(path)

    def get_data(self):
        file = self.file
        return tuple((file[f"x_{p}"], file[f"y_{p}"]) for p in ("train", "test"))

    def get_column(self, name):
        return self.file["train_of"], self.file["test_of"]
"""
METHODS: dict[str, dict[str, Any]] = {
    "local": {},
    "global (FedAvg)": {},
    "FedPer": {"personal": ["4.*"]},
    "FedRep": {"personal": ["4.*"], "personal_epochs": 1},
    "FedBN": {"personal": ["2.*"]},
    "Ditto": {"ditto_lambda": 0.1},
    "SCAFFOLD": {"fusion_algorithm": "scaffold"},
    "FedNova": {"fusion_algorithm": "fednova"},
}
SETTINGS = ("dirichlet", "permuted", "two digits")
EVERYONE = np.arange(N_PARTIES)


def write_parties(path: Path, kind: str, is_unequal: bool, seed: int) -> None:
    """Write the samples of all parties into one npz."""
    file = np.load(FOLDER.parent / "fedray" / "data" / "mnist_5000.npz")
    x, y = file["x_train"], file["y_train"]
    rng = np.random.default_rng([seed, SETTINGS.index(kind)])
    of_digit = [rng.permutation(np.flatnonzero(y == digit)) for digit in range(10)]
    pools = [[rows[100:] for rows in of_digit], [rows[:100] for rows in of_digit]]
    sizes = np.full(N_PARTIES, N_TRAIN)
    if is_unequal:  # as `size_alpha: 0.5` draws them; batch norm needs some
        shares = rng.dirichlet(np.full(N_PARTIES, 0.5))
        sizes = np.maximum(8, np.rint(shares * N_TRAIN * N_PARTIES)).astype(int)
    arrays: dict[str, list[np.ndarray]] = {}
    for party in range(N_PARTIES):
        mix = np.full(10, 0.1)
        if kind == "dirichlet":
            mix = rng.dirichlet(np.full(10, 0.1))
        if kind == "two digits":
            mix = np.isin(np.arange(10), [party, (party + 1) % 10]) / 2
        names = np.arange(10)
        if kind == "permuted" and party < N_PARTIES // 2:
            names = rng.permutation(10)
        for part, pool, n in zip(
            ("train", "test"), pools, (sizes[party], N_TEST), strict=True
        ):
            digits = rng.choice(10, n, p=mix)
            rows = np.array([rng.choice(pool[digit]) for digit in digits])
            arrays.setdefault(f"x_{part}", []).append(
                x[rows].astype("f4")[:, None] / 255
            )
            arrays.setdefault(f"y_{part}", []).append(names[y[rows]].astype("i8"))
            arrays.setdefault(f"{part}_of", []).append(np.full(n, str(party)))
    np.savez(path, **{name: np.concatenate(each) for name, each in arrays.items()})


class Federation:
    """All parties in one group, and rounds by plain calls."""

    def __init__(self, method: str, folder: Path, seed: int, rounds: int):
        values = [str(party) for party in range(N_PARTIES)]
        self.config = read_config(
            {
                "architecture": f"{folder}/code.py:mlp",
                "data_handler": f"{folder}/code.py:Parties",
                "partition": {"source": f"{folder}/data.npz", "by": "party",
                              "values": values},
                "rounds": rounds,
                "learning_rate": 0.05,
                "batch_size": 20,
                "loss": "cross_entropy",
                "seed": seed,
                "party_dir": f"{folder}/{method.split()[0]}",
                **METHODS[method],
            }
        )  # fmt: skip
        self.blueprint, self.initial = models.named("pytorch").read(self.config)
        handler = data.named(self.config.data_handler)
        plan = GroupPlan("all", range(N_PARTIES), self.config, self.blueprint, handler)
        self.group = PartyGroup(plan, lambda: ActorLocation("here"))
        self.personal = {name: self.initial[name] for name in self.blueprint.personal}

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call the group, which gets what does not travel with the call."""
        if not self.personal:
            return getattr(self.group, method)(*arguments, **named)
        return self.group.with_frozen(self.personal, method, *arguments, **named)

    def train(self, parties: np.ndarray) -> dict[str, np.ndarray]:
        """Global weights after all rounds of these parties."""
        weights = {name: self.initial[name] for name in self.blueprint.round_schema(())}
        schema = {name: self.blueprint.schema[name] for name in weights}
        rule = self.group.rule
        state, rule.n_parties = rule.init(weights), len(parties)
        for round in range(1, self.config.rounds + 1):
            _, update = self.call("train", round, parties, weights, state)
            weights, state = rule.step(weights, update, state)
            weights = cast(weights, schema)
        return weights

    def accuracies(
        self, weights: dict[str, np.ndarray], parties: np.ndarray
    ) -> list[float]:
        """Of each party's model, its own or the global one, on its own tests."""
        rounds = self.config.rounds
        if self.config.ditto_lambda is not None:
            group = self.group
            scores = group.personal.score(
                group.local_data, weights, parties=parties, round=rounds
            )
        else:
            scores = self.call(
                "evaluate", weights, parties=parties, round=rounds
            ).scores
        return (scores.by_party.right / scores.by_party.answers).tolist()


def accuracies(method: str, folder: Path, seed: int, rounds: int) -> list[float]:
    """Accuracy of each party's model after a run."""
    federation = Federation(method, folder, seed, rounds)
    if method != "local":
        return federation.accuracies(federation.train(EVERYONE), EVERYONE)
    found = []
    for party in EVERYONE:
        alone = np.array([party])
        found += federation.accuracies(federation.train(alone), alone)
    return found


def play(
    methods: list[str], n_seeds: int, rounds: int, done: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Add to `done`, by setting and method, one list of accuracies for each seed."""
    cases = [(kind, unequal) for kind in SETTINGS for unequal in (False, True)]
    for kind, is_unequal in cases:
        results = done.setdefault(kind + ", unequal" * is_unequal, {})
        results.update({method: [] for method in methods})
    for seed, (kind, is_unequal) in product(range(n_seeds), cases):
        results = done[kind + ", unequal" * is_unequal]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "code.py").write_text(CODE)
            write_parties(folder / "data.npz", kind, is_unequal, seed)
            for method in methods:
                results[method].append(accuracies(method, folder, seed, rounds))
        yield done


def summary(done: dict[str, Any]) -> list[list[str]]:
    """Rows: a method; for each setting the mean party and the worst one."""
    rows = []
    for method in METHODS:
        row = [method]
        for results in done.values():
            if results.get(method):
                found = np.array(results[method])
                row.append(f"{found.mean():.3f} / {found.min(axis=1).mean():.3f}")
            else:
                row.append("–")
        rows.append(row)
    return rows


def draw(done: dict[str, Any], file: Path) -> None:
    """A panel for each setting: mean over parties, and the worst party below it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.2), layout="constrained")
    axes = figure.subplots(2, 3, sharey=True)
    for place, (setting, results) in enumerate(done.items()):
        ax = axes[place % 2, place // 2]
        names = [name for name in METHODS if results.get(name)]
        found = [np.array(results[name]) for name in names]
        y = np.arange(len(names))[::-1]
        means = [each.mean() for each in found]
        worst = [each.min(axis=1).mean() for each in found]
        ax.hlines(y, worst, means, color="#c9d3de", linewidth=3, zorder=1)
        ax.scatter(
            means, y, color="#1f5fa8", s=38, zorder=2, label="mean of the parties"
        )
        ax.scatter(worst, y, color="white", edgecolor="#c2571a", s=38, zorder=2,
                   linewidth=1.6, label="worst party")  # fmt: skip
        ax.set_yticks(y, names)
        ax.set_xlim(-0.03, 1.03)
        ax.set_title(setting, fontsize=11)
        ax.grid(axis="x", color="#e8ebef")
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.tick_params(length=0, labelsize=9)
    axes[1, 1].set_xlabel("accuracy on the party's own tests")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Play the methods and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--from", type=Path, dest="earlier")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    started, conditions = time.monotonic(), table.conditions()
    lower = {name.split()[0].lower(): name for name in METHODS}
    methods = [lower[name.split()[0].lower()] for name in arguments.methods.split(",")]
    done: dict[str, Any] = {}
    if arguments.earlier:
        done = json.loads(arguments.earlier.read_text())["accuracy"]
    for now in play(methods, arguments.seeds, arguments.rounds, done):
        table.write(arguments.json, {"conditions": conditions, "accuracy": now})
        print(f"{time.monotonic() - started:.0f} s", end=" ", flush=True)
    print()
    table.show(["mean / worst", *done], summary(done))
    if arguments.figure:
        draw(done, arguments.figure)


if __name__ == "__main__":
    main()
