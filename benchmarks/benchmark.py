"""What a federation costs, measured against floors of the same run.

python benchmarks/benchmark.py [--only NAME[,NAME]] [--json FILE]

tutorial        2 parties × 500 digits, the tutorial's CNN; floor: the same training and
                evaluation in two bare processes at once, one thread each
parties_100     100 parties × 40 digits, MLP 784-64-10; floor: a plain loop, one thread
parties_1000    1,000 parties, the same
weights_25m     4 parties perturb 25M parameters; floor: a plain loop, one thread
weights_100m    4 parties perturb 100M parameters, the same
noop_10000      10,000 parties with 20 parameters and a digit each: time per party
fold            folding 100M parameters; floor: ``a += b`` with the same threads
memory          aggregator's own peak, 25M parameters from 4 and from 32 actors
weights_1b      2 parties perturb 1,000M parameters in bfloat16 (only if named; 40 GB)
parties_100000  100,000 parties × 10 digits, all and one in a hundred (only if named)

Times are medians of warm rounds as history.jsonl has them, evaluation included where
there is one; `between` is from record to record, saving the checkpoint included. Uses
the cluster of the Ray job that it is, else starts one for each federation.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

import floors  # noqa: E402
import measure  # noqa: E402
import table  # noqa: E402
from workloads import NOOP, TUTORIAL, WORKLOADS, Workload, large_arrays  # noqa: E402

HEAD = ("workload", "time", "floor", "ratio", "target")
Found = tuple[dict[str, Any], list[table.Row]]
Bench = Callable[[Path], Found]


def tutorial(folder: Path) -> Found:
    """The tutorial's federation against two bare processes."""
    before = floors.bare_processes(TUTORIAL)
    done = measure.federated(TUTORIAL, folder / "tutorial")
    after = floors.bare_processes(TUTORIAL)  # the machine's speed wanders
    done |= {key: (before[key] + after[key]) / 2 for key in before}
    plain = done["plain_loop_s"] = floors.plain_loop(TUTORIAL)
    done["ratio"] = done["round_s"] / done["bare_both_s"]
    done["train_ratio"] = done["train_s"] / done["bare_train_s"]
    rest = done["round_s"] - done["train_s"] - done["evaluate_s"]
    done["overhead_s"] = rest
    training = table.against(done["train_s"], done["bare_train_s"])
    bare = table.against(done["round_s"], done["bare_both_s"])
    return done, [
        ("tutorial, round", *bare, "<= 1.10"),
        ("  its training", *training, ""),
        ("  neither training nor evaluation", table.seconds(rest), "", "", ""),
        ("  against the plain loop", *table.against(done["round_s"], plain), ""),
        *_run_rows(done),
    ]


def against_plain(workload: Workload, target: str = "") -> Bench:
    """A benchmark of many small parties: its round against a plain loop."""

    def bench(folder: Path) -> Found:
        done = measure.federated(workload, folder / workload.name)
        plain = done["plain_loop_s"] = floors.plain_loop(workload)
        done["ratio"] = done["round_s"] / plain
        against = table.against(done["round_s"], plain)
        return done, [(f"{workload.name}, round", *against, target), *_run_rows(done)]

    return bench


def several(*benches: Bench) -> Bench:
    """Benchmarks under one name."""

    def bench(folder: Path) -> Found:
        found = [bench(folder) for bench in benches]
        return {"runs": [done for done, _ in found]}, [
            r for _, rows in found for r in rows
        ]

    return bench


def large(workload: Workload) -> Bench:
    """A benchmark of large models: its round against a loop, and against copying."""

    def bench(folder: Path) -> Found:
        done = measure.federated(workload, folder / workload.name)
        plain = done["plain_loop_s"] = floors.perturb_loop(workload)
        copy = done["copy_of_one_model_s"] = floors.copy_of(workload.n_parameters)
        done["ratio"] = done["round_s"] / plain
        done["round_in_copies"] = done["round_s"] / copy
        rows = [
            (f"{workload.name}, round", *table.against(done["round_s"], plain), ""),
            ("  in copies of one model", *table.against(done["round_s"], copy), ""),
        ]
        return done, rows + _run_rows(done)

    return bench


def noop(folder: Path) -> Found:
    """What a party costs when it has next to nothing to do."""
    done, rows = against_plain(NOOP)(folder)
    done["us_per_party"] = 1e6 * done["round_s"] / NOOP.n_parties
    shown = f"{done['us_per_party']:.1f} µs"
    return done, [*rows, ("  per party", shown, "", "", "<= 50 µs")]


def fold(folder: Path) -> Found:
    """Folding an update of 100M parameters into the running mean."""
    from fedray.weights import RunningMean

    named = {str(i): part for i, part in enumerate(large_arrays(100_000_000))}
    mean, size = RunningMean(), sum(part.nbytes for part in named.values())
    mean.add(named, 1.0)

    def fold_one() -> None:
        mean.add(named, 1.0)

    n_threads = floors.threads_of(lambda: [fold_one() for _ in range(5)])
    arrays = large_arrays(100_000_000), [*named.values()], n_threads
    with floors.adding_in_place(*arrays) as add:
        fold_s, add_s = floors.medians_of(fold_one, add)
    done = {
        "fold_gb_s": size / fold_s / 1e9,
        "add_gb_s": size / add_s / 1e9,
        "n_threads": n_threads,
        "ratio": add_s / fold_s,
    }
    speeds = f"{done['fold_gb_s']:.2f} GB/s", f"{done['add_gb_s']:.2f} GB/s"
    name = f"fold, {n_threads} thread{'s' if n_threads > 1 else ''}"
    return done, [(name, *speeds, f"{done['ratio']:.2f}", ">= 0.70")]


def memory(folder: Path) -> Found:
    """Peaks of the aggregator with few and with many actors, one after the other."""
    done = {}
    for n in (4, 32):
        told = folder / f"memory-{n}.json"
        command = [sys.executable, str(FOLDER / "peak.py"), str(n), str(told)]
        measure.run(command, folder)
        done[f"{n}_parties"] = json.loads(told.read_text())
    few, many = (done[f"{n}_parties"]["private_peak_mb"] for n in (4, 32))
    done["ratio"] = many / few
    row = table.megabytes(many), table.megabytes(few), f"{done['ratio']:.2f}", "about 1"
    return done, [("memory, 32 actors against 4", *row)]


def _run_rows(done: dict[str, Any]) -> list[table.Row]:
    start = done["start_to_first_round_s"]
    told = {
        "from record to record": table.seconds(done["between_s"]),
        "command to first round": start and table.seconds(start),
        "command to exit": table.seconds(done["whole_run_s"]),
        "peak memory, all processes": table.megabytes(done["peak_mb"]),
    }
    return [(f"  {what}", shown, "", "", "") for what, shown in told.items() if shown]


BENCHES: dict[str, Bench] = {
    "tutorial": tutorial,
    "parties_100": against_plain(WORKLOADS["parties_100"]),
    "parties_1000": against_plain(WORKLOADS["parties_1000"], "<= 0.167"),
    "weights_25m": large(WORKLOADS["weights_25m"]),
    "weights_100m": large(WORKLOADS["weights_100m"]),
    "weights_1b": large(WORKLOADS["weights_1b"]),
    "noop_10000": noop,
    "fold": fold,
    "memory": memory,
    "parties_100000": several(
        against_plain(WORKLOADS["parties_100000_some"]),
        against_plain(WORKLOADS["parties_100000_all"]),
    ),
}
LONG = ("weights_1b", "parties_100000")  # only if named


def main() -> None:
    """Run the workloads one after the other; print a table, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    short = [name for name in BENCHES if name not in LONG]
    named = words.only.split(",") if words.only else short
    unknown = sorted(set(named) - set(BENCHES))
    if unknown:
        parser.error(f"no workload {', '.join(unknown)} among {', '.join(BENCHES)}")
    done, rows = {"conditions": table.conditions()}, []
    with tempfile.TemporaryDirectory(prefix="fedray-benchmark-") as folder:
        for name in named:
            print(f"{name} ...", file=sys.stderr, flush=True)
            done[name], found = BENCHES[name](Path(folder))
            rows += found
            table.write(words.json, done)
    print(", ".join(f"{key} {value}" for key, value in done["conditions"].items()))
    table.show(HEAD, rows)


if __name__ == "__main__":
    main()
