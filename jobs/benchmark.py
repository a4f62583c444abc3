"""Measure fedray against floors taken in the same run: see benchmarks/benchmark.py."""

import runpy
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "benchmark.py"
runpy.run_path(str(FILE), run_name="__main__")
