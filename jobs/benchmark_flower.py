"""Measure fedray beside Flower, in turns: see benchmarks/benchmark_flower.py."""

import runpy
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "benchmark_flower.py"
runpy.run_path(str(FILE), run_name="__main__")
