"""Cost of the page of runs: CPU time and memory of listing many runs.

    python benchmarks/runs_page.py [RUNS] [ROUNDS]

Makes run folders of ten parties, lists them as `fedray ui` does, cold and again, and
compares 200 of them. CPU seconds of one core; files are in the page cache.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.run_folders import write_many

from fedray.experiments import Question, read_run
from fedray.limits import resident_bytes
from fedray.runs_page import comparison_answer, unless_seen
from fedray.service.json_text import write_json
from fedray.ui.run_index import RunIndex


def measure(root: Path) -> None:
    """Print what listing, looking again and comparing take."""
    index = RunIndex([root], is_whole_machine=False)
    before, start = resident_bytes(), time.process_time()
    index.refresh()
    while index.unread:
        index.refresh()
    answer = write_json(unless_seen({"runs": index.entries()}))
    cold = time.process_time() - start
    memory = (resident_bytes() - before) / 1e6
    start = time.process_time()
    index.refresh_time = 0.0
    index.refresh()
    write_json(unless_seen({"runs": index.entries()}))
    warm = time.process_time() - start
    chosen = [*index.runs.values()][:200]
    start = time.process_time()
    records = [record for one in chosen for record in read_run(one.folder, one.name)]
    comparison = write_json(comparison_answer(records, Question(target=0.8)))
    compared = time.process_time() - start
    print(f"{len(index.runs)} runs: {cold:.2f} s CPU, +{memory:.1f} MB, answer of "
          f"{len(answer) / 1e3:.0f} kB; again {warm:.3f} s")  # fmt: skip
    print(
        f"compare {len(chosen)}: {compared:.2f} s CPU, {len(comparison) / 1e3:.0f} kB"
    )


if __name__ == "__main__":
    os.nice(5)
    n_runs, n_rounds = (*map(int, sys.argv[1:]), *(500, 20)[len(sys.argv) - 1 :])
    with tempfile.TemporaryDirectory() as folder:
        write_many(Path(folder), n_runs, n_rounds)
        measure(Path(folder))
