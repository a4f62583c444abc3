"""Rule × attack: how well each rule learns the shipped digits beside liars.

    python benchmarks/robust.py [--rounds 15] [--rules median,krum] [--json FILE]

10 parties, 3 of them hostile (15 for Bulyan, which needs 4f+3), MLP 784-64-10. Real
parties in one group, called without Ray; rules and attacks are those that a federation
uses. Prints accuracies on the 1,000 held-out digits, and which robust
rule lost more than 3 points to an attack that theory says it withstands.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent), str(FOLDER)]

import table  # noqa: E402

from fedray import data, fusion, models  # noqa: E402
from fedray.config import FederationConfig  # noqa: E402
from fedray.federation import read_config  # noqa: E402
from fedray.messages import ActorLocation  # noqa: E402
from fedray.party import GroupPlan, PartyGroup  # noqa: E402
from fedray.weights import cast, non_finite  # noqa: E402

N_HOSTILE = 3
NET = """
from torch import nn

def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)
    )
"""
RULES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "median": {},
    "trimmed_mean": {"n_hostile": N_HOSTILE},
    "geometric_median": {},
    "krum": {"n_hostile": N_HOSTILE},
    "multi_krum": {"n_hostile": N_HOSTILE},
    "bulyan": {"n_hostile": N_HOSTILE},
    "norm_clipping": {"clip_norm": 0.5},
    "centred_clipping": {"clip_norm": 0.3},
}
ATTACKS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "sign flip": {"kind": "sign_flip"},
    "ALIE": {"kind": "alie"},
    "IPM 0.1": {"kind": "ipm", "scale": 0.1},
    "IPM 100": {"kind": "ipm", "scale": 100},
    "label flip": {"kind": "label_flip"},
    "Gaussian": {"kind": "gaussian"},
    "same value": {"kind": "same_value"},
    "poison ×10": {"kind": "scaled_poison"},
}
POINTS = 0.03  # that a robust rule may lose


def settings(rule: str, attack: str, rounds: int, net: str) -> FederationConfig:
    """One federation of the table."""
    spec = ATTACKS[attack]
    hostile = {"parties": [f"party-{i}" for i in range(N_HOSTILE)]}
    return read_config(
        {
            "architecture": net,
            "fusion_algorithm": rule,
            **RULES[rule],
            "num_parties": 15 if rule == "bulyan" else 10,
            "partition": {"scheme": "iid"},
            "rounds": rounds,
            "learning_rate": 0.1,
            "batch_size": 20,
            "attack": spec and spec | hostile,
        }
    )


def accuracy(config: FederationConfig) -> float:
    """Run the rounds by plain calls; accuracy of the last model on all test digits."""
    blueprint, weights = models.named("pytorch").read(config)
    everyone = range(config.num_parties)
    handler = data.named(config.data_handler)
    plan = GroupPlan("all", everyone, config, blueprint, handler)
    group = PartyGroup(plan, lambda: ActorLocation("here"))
    rule, state = group.rule, group.rule.init(weights)
    for round in range(1, config.rounds + 1):
        sent = weights, state if rule.needs_context else None
        _, *updates = group.train(round, np.array(everyone), *sent)
        update = updates[0]
        if not rule.associative:
            update = fusion.combine(
                rule, updates, fusion.RoundContext(round, weights, state)
            )
        new, state = rule.step(weights, update, state)
        new = cast(new, blueprint.schema)
        if non_finite(new):
            break  # a federation would end here, with the weights before
        weights = new
    return group.evaluate(weights).scores.accuracy


def main() -> None:
    """Run the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    started, done, rows = time.monotonic(), {}, []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.py").write_text(NET)
        net = f"{folder}/net.py:mlp"
        for rule in arguments.rules.split(","):
            done[rule] = {
                attack: accuracy(settings(rule, attack, arguments.rounds, net))
                for attack in ATTACKS
            }
            rows.append([rule, *(f"{value:.3f}" for value in done[rule].values())])
            print(f"{rule}: {time.monotonic() - started:.0f} s", flush=True)
    table.show(["rule", *ATTACKS], rows)
    for rule, row in done.items():
        lost = [f"{k} −{row['none'] - v:.3f}" for k, v in row.items()
                if v < row["none"] - POINTS]  # fmt: skip
        print(f"{rule}: {', '.join(lost) or 'within 3 points under every attack'}")
    table.write(arguments.json, {"conditions": table.conditions(), "accuracy": done})


if __name__ == "__main__":
    main()
