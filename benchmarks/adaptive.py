"""Fuse only when it is necessary: adaptive fusion beside fusing every round, measured.

8 parties × 500 of the shipped digits, 40 rounds of one epoch, SGD 0.05, batches of 20,
MLP 784-64-10: `python benchmarks/adaptive.py`. It runs the parties' own code and the
aggregator's own decisions in one process; `--ray` runs one federation through actors as
well, and compares. `--cnn` takes the tutorial's network, one seed. `--figure FILE`
draws bytes against accuracy. Bytes are those of a federation with one node per party.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fedray
from fedray import data, fusion, models, policy
from fedray.config import parse
from fedray.messages import ActorLocation
from fedray.party import GroupPlan, PartyGroup
from fedray.weights import SKETCH_SIZE, cast, n_bytes

EXAMPLES = Path(__file__).resolve().parent.parent / "jobs"
N_PARTIES, N_ROUNDS, SEEDS = 8, 40, (0, 1, 2)
SCHEMES = {
    "iid": {"scheme": "iid"},
    "two digits": {"scheme": "shards", "shards_per_party": 2},
    "dirichlet 0.5": {"scheme": "dirichlet", "alpha": 0.5},
    "identical": {"scheme": "iid"},
}
BASE = {
    "num_parties": N_PARTIES,
    "rounds": N_ROUNDS,
    "learning_rate": 0.05,
    "optimizer": "optim.SGD",
    "batch_size": 20,
    "name": "adaptive",
}
MLP = {"architecture": f"{EXAMPLES}/mnist_mlp.py:mlp", "loss": "cross_entropy"}
CNN = {"architecture": f"{EXAMPLES}/mnist_cnn.py:cnn", "loss": "nll_loss"}
TOLERANCES = (0.5, 1.25, 2.5, 5.0, 10.0)
EVERY = (1, 2, 3, 4, 6, 8, 16, 26)
TICKS = (15, 25, 50, 100)  # megabytes
ADAPTIVE = {"aggregation": "adaptive"}


@dataclass
class Done:
    """What one federation came to."""

    accuracy: float
    megabytes: float
    fused: list[int]  # rounds
    estimates: list[tuple[float, float]] = field(default_factory=list)  # and threshold
    weights: dict[str, np.ndarray] = field(default_factory=dict)


class Federation:
    """The parties of a config, and what an aggregator does, without actors."""

    def __init__(self, scheme: str, seed: int, settings: dict[str, Any]):
        partition = {"samples_per_party": 500, **SCHEMES[scheme]}
        words = {**BASE, **MLP, **settings, "partition": partition, "seed": seed}
        self.config, found = parse(words)
        if found:
            raise SystemExit("\n".join(found))
        blueprint, self.start = models.named("pytorch").read(self.config)
        self.rule = fusion.from_config(self.config, blueprint.parameters)
        # identical parties are one party, counted many times: same data, same order
        self.copies = N_PARTIES if scheme == "identical" else 1
        parties, handler = range(N_PARTIES // self.copies), data.named("mnist_pytorch")
        plan = GroupPlan("all", parties, self.config, blueprint, handler)
        self.group = PartyGroup(plan, lambda: ActorLocation("here"))
        self.places = np.array(parties)

    def run(self) -> Done:
        """Every round, as the aggregator runs it."""
        weights, state, since = self.start, self.rule.init(self.start), 1
        growth, one, fused, estimates = None, None, [], []
        is_always = self.config.aggregation == "always"
        for round in range(1, self.config.rounds + 1):
            words = round, self.places, weights, None
            if not is_always:
                drift = self.group.train(*words, since).drifted
                estimate, common = policy.disagreement([drift] * self.copies)
                if growth is None:
                    growth = policy.growth(self.config, estimate, common)
                one = (estimate, common) if round == since else one
                limit = policy.threshold(self.config, growth, one, common)
                estimates.append((estimate, limit))
                due = policy.must_fuse(self.config, since, round, estimate, limit)
                if not due:
                    continue
            made = self.group.train if is_always else self.group.update
            _, update = made(*words, *([] if is_always else [since]))
            combined = fusion.combine(self.rule, [update])
            weights, state = self.rule.step(weights, combined, state)
            weights = cast(weights, self.group.schema)
            fused.append(round)
            since = round + 1
        score = self.group.evaluate(weights).scores
        return Done(score.accuracy, self._moved(len(fused)), fused, estimates, weights)

    def _moved(self, n_fused: int) -> float:
        """Megabytes: an update of each party, a broadcast to each, and all sketches."""
        models_sent = N_PARTIES * (2 * n_fused + 1)  # the start model is the first
        is_told = self.config.aggregation == "always"
        is_told |= self.config.drift_threshold is not None  # every n-th: no sketches
        sketches = 0 if is_told else N_PARTIES * self.config.rounds * SKETCH_SIZE
        return (models_sent * n_bytes(self.start) + sketches) / 1e6


def every(n: int) -> dict[str, Any]:
    """Settings that fuse in round 1, then every n-th, and the last."""
    return {**ADAPTIVE, "drift_threshold": 1e30, "max_rounds_apart": n}


def measured(scheme: str, seeds: tuple[int, ...], settings: dict) -> list[Done]:
    """One federation for every seed."""
    return [Federation(scheme, seed, settings).run() for seed in seeds]


def mean(runs: list[Done], what: str) -> float:
    """Over seeds: of accuracy, megabytes, or the number of fusions."""
    values = [getattr(run, what) for run in runs]
    return float(np.mean([len(v) if what == "fused" else v for v in values]))


def table(seeds: tuple[int, ...], settings: dict, schemes: list[str]) -> Iterator[str]:
    """Always and adaptive beside each other."""
    yield f"{'parties':14} {'always':>8} {'adaptive':>9} {'of it':>7} {'fusions':>16}"
    for scheme in schemes:
        plain = measured(scheme, seeds, settings)
        adaptive = measured(scheme, seeds, {**settings, **ADAPTIVE})
        ours, theirs = mean(adaptive, "accuracy"), mean(plain, "accuracy")
        part = mean(adaptive, "megabytes") / mean(plain, "megabytes")
        counts = ", ".join(str(len(run.fused)) for run in adaptive)
        yield (
            f"{scheme:14} {theirs:8.4f} {ours:9.4f} {ours / theirs:7.1%}"
            f" {counts:>16}   {part:.1%} of the bytes"
        )


def curves(seeds: tuple[int, ...], scheme: str) -> dict[str, list[tuple]]:
    """(megabytes, accuracy, setting) over drift_tolerance, and over every n-th."""
    found: dict[str, list[tuple]] = {"adaptive": [], "every": []}
    for tolerance in TOLERANCES:
        runs = measured(scheme, seeds, {**ADAPTIVE, "drift_tolerance": tolerance})
        point = mean(runs, "megabytes"), mean(runs, "accuracy"), tolerance
        found["adaptive"].append(point)
    for n in EVERY:
        runs = measured(scheme, seeds, every(n))
        found["every"].append((mean(runs, "megabytes"), mean(runs, "accuracy"), n))
    return found


def draw(file: Path, seeds: tuple[int, ...]) -> None:
    """Bytes against accuracy; also printed."""
    from matplotlib.figure import Figure

    schemes = ["iid", "two digits"]
    figure = Figure(figsize=(8, 3.4), dpi=100, layout="constrained")
    for axes, scheme in zip(figure.subplots(1, 2), schemes, strict=True):
        found = curves(seeds, scheme)
        labels = {"adaptive": "adaptive (drift_tolerance)", "every": "every n-th round"}
        for kind, mark in (("adaptive", "o-"), ("every", "s--")):
            moved, accuracy, words = zip(*found[kind], strict=True)
            axes.plot(moved, accuracy, mark, markersize=4, label=labels[kind])
            for x, y, word in zip(moved, accuracy, words, strict=True):
                print(f"{scheme:14} {kind:9} {word:5} {x:8.1f} MB {y:.4f}")
                at = (4, -10 if kind == "adaptive" else 5)
                axes.annotate(f"{word:g}", (x, y), at, textcoords="offset points",
                              fontsize=7)  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(TICKS, map(str, TICKS))
        axes.minorticks_off()
        axes.set_title(scheme, fontsize=10)
        axes.set_xlabel("MB moved")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"accuracy, {len(seeds)} seeds")
    figure.axes[0].legend(fontsize=8, loc="lower right")
    figure.savefig(file)


def on_ray(seed: int = 0) -> str:
    """One federation through actors, and how far it is from the one here."""
    here = Federation("iid", seed, ADAPTIVE).run()
    partition = {"samples_per_party": 500, **SCHEMES["iid"]}
    words = {**BASE, **MLP, **ADAPTIVE, "partition": partition, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        there = fedray.run(words, run_dir=Path(folder, "run"), parties_per_actor=8)
        fused = [line.round for line in there.history if line.aggregated]
        weights = there.weights()
    far = max(float(abs(weights[k] - here.weights[k]).max()) for k in weights)
    accuracies = f"accuracy {there.accuracy:.4f} and {here.accuracy:.4f}"
    return f"on Ray: fused {fused}, here {here.fused}; {accuracies}, weights ±{far:.1e}"


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--figure", type=Path, help="draw bytes against accuracy")
    parser.add_argument("--cnn", action="store_true", help="the tutorial's network")
    parser.add_argument("--ray", action="store_true", help="one run through actors too")
    asked, started = parser.parse_args(), time.monotonic()
    if asked.figure:
        draw(asked.figure, SEEDS)
    elif asked.ray:
        print(on_ray())
    else:
        settings = CNN if asked.cnn else {}
        schemes = ["iid", "two digits"] if asked.cnn else [*SCHEMES]
        for line in table(SEEDS[:1] if asked.cnn else SEEDS, settings, schemes):
            print(line, flush=True)
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
