"""What a sweep costs beside its rounds: 30 runs of 100 parties, 20 rounds each.

Prints seconds of the command, from its start to its end, and of the rounds of its runs
as they are alone: one run by itself, times 30. ``python benchmarks/sweep.py [SEEDS]``.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
architecture: {root}/jobs/mnist_mlp.py:mlp
loss: cross_entropy
num_parties: 100
partition: {{samples_per_party: 40}}
epochs: 1
batch_size: 10
learning_rate: 0.05
rounds: 20
"""


def seconds_of_rounds(folder: Path) -> list[float]:
    """Seconds of the rounds of each run in a folder."""
    return [
        sum(json.loads(line)["seconds"] for line in file.read_text().splitlines())
        for file in sorted(folder.glob("**/history.jsonl"))
    ]


def timed(*words: str) -> tuple[float, float]:
    """Seconds of a command, and of one core in it and its ended children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "fedray", *words], check=True, cwd=ROOT)
    took = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return took, cpu


def main() -> None:
    """Run one alone and the sweep, and print both."""
    n_seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "parties100.yaml"
        config.write_text(CONFIG.format(root=ROOT))
        alone = []
        for i in range(3):
            took, _ = timed("run", str(config), "--run-dir", str(folder / f"one-{i}"))
            alone.append(took)
        rounds_alone = sorted(seconds_of_rounds(folder))[1]
        out = folder / "sweep"
        words = ["learning_rate=0.02,0.05,0.1", f"--seeds={n_seeds}", f"--out={out}"]
        took, _ = timed("sweep", str(config), *words)
        rounds = seconds_of_rounds(out)
    n_runs = len(rounds)
    print(f"one run alone       {min(alone):.1f} s, rounds {rounds_alone:.2f} s")
    print(f"sweep of {n_runs} runs   {took:.1f} s, rounds {sum(rounds):.1f} s")
    print(f"of rounds alone     {took / n_runs / rounds_alone:.2f} x")
    print(f"of rounds in it     {took / sum(rounds):.2f} x")
    print(f"as {n_runs} commands     {n_runs * min(alone):.0f} s")


if __name__ == "__main__":
    main()
