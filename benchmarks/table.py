"""One table and one JSON: how the benchmarks tell what they measured."""

import json
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Row = Sequence[str]


def conditions() -> dict[str, Any]:
    """Date, machine and versions: what a number means nothing without."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        ),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: _version(name) for name in ("fedray", "ray", "torch", "numpy")},
    }


def show(head: Row, rows: Sequence[Row]) -> None:
    """Print aligned columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        first, *others = (
            f"{text:{'<' if i == 0 else '>'}{width}}"
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip(), flush=True)


def write(path: Path | None, done: dict[str, Any]) -> None:
    """Write what was measured so far; nothing if no file was asked for."""
    if path is not None:
        path.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")


def seconds(value: float) -> str:
    """Seconds as they are read: 38.4 s, 0.213 s, 17 ms."""
    if value < 0.1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.1f} s" if value >= 20 else f"{value:.3g} s"


def megabytes(value: float) -> str:
    """Whole megabytes."""
    return f"{value:,.0f} MB"


def against(value: float, floor: float) -> tuple[str, str, str]:
    """Time, floor and their ratio."""
    ratio = value / floor
    return (
        seconds(value),
        seconds(floor),
        f"{ratio:.3g}" if ratio < 1 else f"{ratio:.2f}",
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
