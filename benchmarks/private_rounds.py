"""What noise for parties costs, measured: pieces on one core, and whole rounds.

`python benchmarks/private_rounds.py` prints CPU seconds of clipping, of noise and of
the step for 1.2 and 25 million numbers (best of 5), then those of a round of the
tutorial's CNN, 10 parties with 500 digits, without and with central noise: parties and
aggregator in one process, rounds of both in turns, the best of each.
"""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedray import data, fusion, models
from fedray.aggregator.releases import Releaser, RoundSum
from fedray.aggregator.round_record import RoundRecord
from fedray.config import parse
from fedray.fusion.private_mean import SUM
from fedray.messages import FUSED, ActorLocation, Outcome
from fedray.party import GroupPlan, PartyGroup
from fedray.privacy.banded import BandedNoise
from fedray.privacy.grid import from_grid, n_coordinates, to_grid
from fedray.privacy.noise import NoiseScale, add_noise
from fedray.privacy.run_ledger import RunLedger
from fedray.weights import cast, schema

EXAMPLES = Path(__file__).resolve().parent.parent / "jobs"
SIZES = (1_200_000, 25_000_000)
N_PARTIES, N_ROUNDS = 10, 3
NOISE = {
    "mechanism": "central",
    "noise_multiplier": 1.0,
    "delta": 1e-2,
    "clip_norm": 0.1,
}
CNN = {
    "architecture": f"{EXAMPLES}/mnist_cnn.py:cnn",
    "num_parties": N_PARTIES,
    "partition": {"source": "mnist", "samples_per_party": 500, "replace": True},
    "rounds": N_ROUNDS,
    "learning_rate": 0.1,
    "batch_size": 50,
    "loss": "nll_loss",
}


def best(work: Callable[[], object]) -> float:
    """CPU seconds of this process, the best of five."""
    seconds = []
    for _ in range(5):
        before = time.process_time()
        work()
        seconds.append(time.process_time() - before)
    return min(seconds)


def measure_pieces(size: int) -> None:
    """One line: clipping to the grid, noise, banded noise, and back."""
    rng, scale = np.random.default_rng(0), NoiseScale(2.0**20)
    base = {"w": rng.normal(size=size).astype("f4")}
    new = {"w": (base["w"] + 1e-3 * rng.normal(size=size)).astype("f4")}
    total = to_grid(new, base, 1.0).values.astype(np.int64)
    past = [np.rint(1e6 * rng.normal(size=size)).astype(np.int64) for _ in range(3)]
    seconds = {
        "clip": best(lambda: to_grid(new, base, 1.0)),
        "noise": best(lambda: add_noise(total, os.urandom(32), scale)),
        "banded noise (4 rounds)": best(
            lambda: BandedNoise(4, 5, past).next(size, os.urandom(32), scale)
        ),
        "back": best(lambda: from_grid(base, total, 1.0, 10)),
    }
    shown = ", ".join(f"{name} {of * 1e3:.1f} ms" for name, of in seconds.items())
    rate = size / seconds["noise"] / 1e6
    print(f"{size / 1e6:.1f} M numbers: {shown}; {rate:.0f} M/s of noise", flush=True)


def measure_rounds() -> None:
    """CPU seconds of the CNN's round without and with noise, and their ratio."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rounds = [Round(Path(folder), own) for own in ({}, {"privacy": NOISE})]
        seconds = [[one.run(i) for one in rounds] for i in range(1, N_ROUNDS + 1)]
    without, noised = (min(own) for own in zip(*seconds, strict=True))
    print(
        f"CNN, {N_PARTIES} parties x 500 digits: {without:.3f} s a round, {noised:.3f} "
        f"s with noise: {noised / without:.3f} x"
    )


class Round:
    """One round after another of the CNN's federation, in this process."""

    def __init__(self, folder: Path, settings: dict):
        self.config, mistakes = parse(CNN | settings)
        assert mistakes == []
        blueprint, self.weights = models.named("pytorch").read(self.config)
        handler = data.named(self.config.data_handler)
        plans = [
            GroupPlan(f"p{i}", range(i, i + 1), self.config, blueprint, handler)
            for i in range(N_PARTIES)
        ]
        self.groups = [PartyGroup(plan, lambda: ActorLocation("n")) for plan in plans]
        self.rule = fusion.from_config(self.config, blueprint.shared_parameters)
        self.state, self.releaser = self.rule.init(self.weights), None
        if settings:
            run, size = RunLedger(folder, "ab" * 16), n_coordinates(self.weights)
            self.releaser = Releaser(run, self.config, None, N_PARTIES, size)
            self.rule.n_expected = N_PARTIES

    def run(self, number: int) -> float:
        """CPU seconds of a round: all parties train, sum or mean, noise and step."""
        before = time.process_time()
        rule, weights = self.rule, self.weights
        context = fusion.RoundContext(number, weights, self.state)
        sums = rule.accumulator(context)
        for place, group in enumerate(self.groups):
            update = group.train(number, np.array([place]), weights, self.state)[1]
            sums.add(rule.to_additive(update, weights, self.state))
        update = sums.result()
        if self.releaser:
            record = RoundRecord(number, np.arange(N_PARTIES), self.config)
            record.settle(np.arange(N_PARTIES), Outcome(FUSED))
            total, clip_norm = update.weights[SUM], rule.clip_norm(self.state)
            release = self.releaser.release(
                RoundSum(number, total, weights, clip_norm, record)
            )
            update = replace(update, weights=release.total)
        weights, self.state = rule.step(weights, update, self.state)
        self.weights = cast(weights, schema(self.weights))
        return time.process_time() - before


if __name__ == "__main__":
    for n in SIZES:
        measure_pieces(n)
    measure_rounds()
