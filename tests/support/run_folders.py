"""Run folders as runs leave them, made without running anything."""

import json
from pathlib import Path

import yaml

SETTINGS = {"fusion_algorithm": "fedavg", "learning_rate": 0.1, "rounds": 3}


def line(round: int, **values) -> dict:
    """A round of history.jsonl."""
    whole = {
        "round": round, "chosen": 2, "reported": 2, "fused": 2, "aggregated": True,
        "refused": 0, "loss": 0.5, "accuracy": 0.5, "bytes_moved": 1000, "seconds": 2.0,
        "train_seconds": 1.0, "evaluate_seconds": 0.1, "evaluated": 100, "parties": [],
    }  # fmt: skip
    return whole | values


def party(name: str, outcome: str | None = "fused", **values) -> dict:
    """A party's line in a round."""
    whole = {"name": name, "node": "a" * 56, "n_samples": 50, "loss": 0.4, "drift": 1.0,
             "seconds": 1.5, "outcome": outcome, "note": None, "code": ""}  # fmt: skip
    return whole | values


def write_run(folder: Path, lines: list, **settings) -> Path:
    """A run's folder with config.yaml and history.jsonl; a text is a line as it is."""
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS | settings))
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    text = "\n".join(texts)
    (folder / "history.jsonl").write_text(text + "\n" if text else "")
    return folder


def write_many(
    root: Path, n_runs: int, n_rounds: int = 20, n_parties: int = 10
) -> None:
    """So many runs of several algorithms and seeds, in folders of 50."""
    algorithms = ("fedavg", "fedprox", "fedadam", "scaffold", "fednova")
    kinds = ("fused", "fused", "fused", "late", "refused: 3 values are not finite")
    for i in range(n_runs):
        lines = [
            line(
                round,
                accuracy=min(0.99, 0.3 + 0.03 * round + 0.01 * (i % 7)),
                loss=2 / round,
                bytes_moved=1_000_000 + i,
                parties=[
                    party(f"party-{k}", kinds[(i + k * round) % 5 if k == 3 else 0])
                    for k in range(n_parties)
                ],
            )
            for round in range(1, n_rounds + 1)
        ]
        settings = {"rounds": n_rounds, "seed": i % 5, "num_parties": n_parties}
        settings["fusion_algorithm"] = algorithms[i // 5 % 5]
        settings["partition"] = {"alpha": (0.1, 0.5)[i % 2], "source": "mnist"}
        write_run(root / f"sweep-{i // 50}" / f"run-{i}", lines, **settings)
