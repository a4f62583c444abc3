"""What secure aggregation costs a party and the server: python benchmarks/secure_sum.py

CPU seconds of one core (best of several, user and system) of each side's calls, up to
masked bytes on disk (`grid_s`, making whole numbers of weights, is apart: training with
noise for parties costs it too), and bytes that travel, for 2, 3, 10 and
100 parties of 1.2M and 25M coordinates. `--json OUT` writes the numbers. Key work is
measured with all parties and a short vector, masking with one party of them and the
real one. Time of the disk itself is not counted.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent)]

from fedray.privacy.grid import MAX_GRID, to_grid  # noqa: E402
from fedray.secure_sum import (  # noqa: E402
    Attempt,
    FolderStorage,
    Member,
    PartySide,
    ServerSide,
    choose_parameters,
)

WEIGHTS = bytes(32)
SIZES = {"1.2M": 1_200_000, "25M": 25_000_000}
COUNTS = (2, 3, 10, 100)
LIMITS = {"1.2M": 0.025, "25M": 0.4}  # CPU seconds of a party among 10


class Scene:
    """All parties of one attempt up to the masked vector, with files in a folder."""

    def __init__(self, n_parties: int, n_coordinates: int, folder: Path):
        self.parties = {
            f"p{i}": PartySide(f"p{i}", FolderStorage(folder / f"p{i}"))
            for i in range(n_parties)
        }
        parameters = choose_parameters(n_coordinates, n_parties)
        roster = tuple(Member(n, p.public_key) for n, p in self.parties.items())
        self.attempt = Attempt("run", "", 1, 1, roster, parameters)
        self.server = ServerSide.begin(self.attempt, FolderStorage(folder / "server"))
        self.n_bytes = 0  # that p0 has sent, without its vector

    def small_step(self) -> float:
        """One step of small messages; CPU seconds that p0 took for it."""
        requests, seconds = self.server.requests(), 0.0
        for name, request in requests.items():
            started = time.process_time()
            answer = self.parties[name].answer(request)
            if name == "p0":
                seconds = time.process_time() - started
                self.n_bytes += len(answer)
            self.server.accept(name, answer)
        self.server.close()
        return seconds


def key_work(n_parties: int, folder: Path) -> dict[str, float]:
    """An attempt of 10 coordinates: CPU seconds of a party's four small steps.

    And of the server's last, that takes the masks off.
    """
    scene = Scene(n_parties, 10, folder)
    seconds = scene.small_step() + scene.small_step()
    scene.server.use_weights(WEIGHTS)
    for name, request in scene.server.requests().items():
        vector = scene.parties[name].mask(request, WEIGHTS, [np.zeros(10, np.int64)])
        scene.server.add([name], vector)
    scene.server.close()
    seconds += scene.small_step() + scene.small_step()
    started = time.process_time()
    scene.server.result()
    ended = time.process_time()
    return {"party": seconds, "server": ended - started, "bytes": scene.n_bytes}


def masking(n_parties: int, n_coordinates: int, folder: Path) -> dict[str, float]:
    """CPU seconds of one party's masking, quantising and writing, and its bytes."""
    scene = Scene(n_parties, n_coordinates, folder)
    scene.small_step()
    scene.small_step()
    scene.server.use_weights(WEIGHTS)
    request = scene.server.requests()["p0"]
    base = {"w": np.zeros(n_coordinates, np.float32)}
    weights = {"w": np.random.default_rng(0).normal(0, 0.01, n_coordinates)}
    weights["w"] = weights["w"].astype(np.float32)
    grid = min(scene.attempt.parameters.bound, MAX_GRID)
    started = time.process_time()
    values = to_grid(weights, base, 1.0, grid).values
    quantised = time.process_time()
    vector = scene.parties["p0"].mask(request, WEIGHTS, [values])
    ended = time.process_time()
    seconds = {"grid": quantised - started, "party": ended - quantised}
    return {**seconds, "bytes": vector.nbytes + scene.n_bytes}


def best(measure: Callable[..., dict[str, float]], *arguments: Any, times: int) -> Any:
    """Each number's least of several measurements, each in a folder of its own."""
    found = []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(*arguments, Path(folder)))
    return {key: min(each[key] for each in found) for key in found[0]}


def main() -> None:
    """Measure all, print a table, say what is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--times", type=int, default=7)
    options = parser.parse_args()
    rows, is_fine = [], True
    for n in COUNTS:
        small = best(key_work, n, times=2 if n == 100 else options.times)
        for title, size in SIZES.items():
            large = best(masking, n, size, times=options.times)
            row = {"parties": n, "size": title, "key_s": small["party"]}
            row |= {"grid_s": large["grid"], "mask_s": large["party"]}
            row |= {"party_s": small["party"] + large["party"]}
            row |= {"wire": large["bytes"] / (4 * size), "server_s": small["server"]}
            rows.append(row)
            print(
                "  ".join(f"{k} {v:.4g}" if k != "size" else v for k, v in row.items())
            )
            if n == 10 and row["party_s"] > LIMITS[title]:
                is_fine = False
                print(f"above {LIMITS[title]} s")
            is_fine &= title != "25M" or row["wire"] <= 1.01
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    sys.exit(not is_fine)


if __name__ == "__main__":
    main()
