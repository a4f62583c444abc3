"""Runs the reference experiments and prints the tables of ``fedray compare``.

    python benchmarks/experiments/run.py OUT [NAME ...]

Each is one ``fedray sweep`` in a folder below OUT; it goes on where it was left. The
tables are also written as OUT/NAME.md, for a page of the docs.
"""

import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NAMES = ("algorithms", "personal", "communication", "robust")
QUESTIONS = {  # what `fedray compare` is asked, beside all settings that differ
    "communication": ("--target", "0.85"),
}


def main() -> None:
    """Run the experiments that are named, or all."""
    out, names = Path(sys.argv[1]), sys.argv[2:] or NAMES
    fedray = [sys.executable, "-m", "fedray"]
    for name in names:
        started = time.monotonic()
        own = out / name
        config = str(FOLDER / f"{name}.yaml")
        subprocess.run([*fedray, "sweep", config, "--out", str(own)], check=True)
        words = [*fedray, "compare", str(own), *QUESTIONS.get(name, ())]
        table = subprocess.run(words, check=True, capture_output=True, text=True)
        (out / f"{name}.md").write_text(table.stdout)
        print(f"{name}: {time.monotonic() - started:.0f} s\n{table.stdout}", flush=True)


if __name__ == "__main__":
    main()
