"""What a party's own books cost: CPU seconds of one core for a thousand parties.

``python benchmarks/party_books.py [PARTIES [ROUNDS]]``. All parties are in one actor,
which charges a round of all of them by one flush. First of one size, then of sizes that
all differ, so that each has a sampling rate of its own.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedray import data
from fedray.party.data_fingerprint import fingerprints
from fedray.privacy.data_accounts import DataSet, Training
from fedray.privacy.party_book import TRAINING, PartyBook
from fedray.privacy.private_steps import sampling_plan
from fedray.privacy.sample_budget import (
    RunTerms,
    epsilon_of_run,
    require_round,
    spent_of,
)

DELTA, BATCH = 1e-5, 50


def seconds(act: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    act()
    return time.process_time() - started


def charge_round(book: PartyBook, sizes: list[int], round: int) -> None:
    """What an actor does before it trains a round of all its parties."""
    with book.locked():
        book.accounts.owner_epsilon = 1e6
        for part, n in enumerate(sizes):
            own = DataSet("/data/all.npz", f"content {part}", "cut", part)
            rate, n_steps = sampling_plan(n, BATCH, 1, None)
            terms = RunTerms("run", 100, None, 1.0, DELTA, rate, n_steps)
            tag = book.key.tag("training", round, part)
            training = Training(
                "run", "", round, f"party{part}", tag, n, rate, 1.0, n_steps, DELTA
            )
            require_round(book.accounts, own, terms, training, "")
            book.add(TRAINING, **own.to_line(), **training._asdict())
        book.flush()
        for part in range(len(sizes)):
            own = DataSet("/data/all.npz", f"content {part}", "cut", part)
            spent_of(book.accounts, own, terms)
            epsilon_of_run(book.accounts, own, terms)


def measure(sizes: list[int], n_rounds: int) -> None:
    """Print the cost of each round, and of reading the ledger afterwards."""
    folder = Path(tempfile.mkdtemp())
    try:
        book = PartyBook(folder)
        each = [
            seconds(lambda round=round: charge_round(book, sizes, round))
            for round in range(1, n_rounds + 1)
        ]
        first, rest = each[0], min(each[1:])
        print(f"  first round {first:.2f} s, another {rest:.2f} s")

        def reread() -> None:
            with PartyBook(folder).locked():
                pass

        n_lines = len(sizes) * n_rounds
        print(f"  an actor that begins anew reads {n_lines:,} lines: "
              f"{seconds(reread):.2f} s")  # fmt: skip
    finally:
        shutil.rmtree(folder)


def main(n_parties: int = 1000, n_rounds: int = 5) -> None:
    """Measure all of it."""
    x = np.random.default_rng(0).random((500 * n_parties, 20), np.float32)
    samples = data.Samples(x, np.zeros(len(x), np.int64), None, None, len(x))
    pieces = np.split(np.arange(len(x)), n_parties)
    spent = seconds(lambda: fingerprints(samples, pieces))
    print(f"fingerprints of {len(x):,} samples: {spent:.2f} s")
    print(f"{n_parties:,} parties of 500 samples each:")
    measure([500] * n_parties, n_rounds)
    print(f"{n_parties:,} parties of sizes that all differ:")
    measure([300 + i for i in range(n_parties)], n_rounds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
