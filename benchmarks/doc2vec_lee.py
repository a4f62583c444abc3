"""How well doc2vec federations find articles: the Lee corpus, three parties.

300 news articles that gensim ships, 100 at each party. The words of each article are
dealt alternately into two halves; parties train on one half, the other is the query.
Told is the share of articles found within the first 10 of their own party's, once by
the vectors that `fedray query` searches (inferred from the finished model) and once by
those that training left at the party.

    python benchmarks/doc2vec_lee.py --seeds 3 --figure benchmarks/doc2vec_lee.png
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fedray import data, fusion, models
from fedray.config import FederationConfig, parse
from fedray.data import tokenize
from fedray.messages import ActorLocation, Update
from fedray.party import GroupPlan, PartyGroup, count_words, search_documents
from fedray.survey import DataSurvey, ValueCounts
from fedray.weights import Weights

N_PARTIES, N_EACH, WITHIN = 3, 100, 10
SCHEDULES = {1: (15, 3), 0: (5, 9)}  # dm: rounds, epochs; 45 passes either way
BAGS = {"dm": 0, "vector_size": 50, "negative": 5, "min_count": 2, "sample": 1e-3}
SPECS = {0: BAGS, 1: BAGS | {"dm": 1, "window": 5}}  # by dm: bags have no window
WAYS = ("alone", "pooled", "output_only", "mean", "additive")
OTHERS = [  # other folds, and twice as long a training
    (f"{way}, 90 passes{told}", way, {"times": 2, "row_momentum": beta})
    for way in ("alone", "pooled", "additive")
    for beta, told in ((0.0, ""), (0.5, ", momentum 0.5"))
]
OTHERS += [
    (f"cap {cap}, momentum {beta}", "additive", {"cap": cap, "row_momentum": beta})
    for beta in (0.0, 0.3, 0.5)
    for cap in ("none", "fourth", "root")
]
Scores = tuple[float, float]  # searched, as trained


def articles() -> list[list[str]]:
    """Words of the 300 articles."""
    gensim = Path(find_spec("gensim").origin).parent
    file = gensim / "test" / "test_data" / "lee_background.cor"
    return [tokenize(line) for line in file.read_text("utf-8").splitlines()]


def settings(folder: Path, owners: dict[str, range], **given: Any) -> dict[str, Any]:
    """A federation in which each owner holds one half of some articles."""
    words = articles()
    parties = []
    for name, own in owners.items():
        file = folder / f"{name}.jsonl"
        lines = [{"tag": str(i), "text": " ".join(words[i][::2])} for i in own]
        file.write_text("\n".join(map(json.dumps, lines)))
        parties.append({"name": name, "data": str(file)})
    return {
        "name": "lee",
        "model_type": "doc2vec",
        "fusion_algorithm": "doc2vec",
        "data_handler": "20_newsgroup",
        "learning_rate": 0.025,
        "party_dir": str(folder / "parties"),
        "parties": parties,
        **given,
    }


def owners(way: str) -> list[dict[str, range]]:
    """Who takes part, for each federation that one way of training needs."""
    three = {
        f"party-{p}": range(p * N_EACH, (p + 1) * N_EACH) for p in range(N_PARTIES)
    }
    if way == "alone":
        return [{name: own} for name, own in three.items()]
    return [{"all": range(N_PARTIES * N_EACH)}] if way == "pooled" else [three]


def measure(way: str, dm: int, seed: int, times: int = 1, **given: Any) -> Scores:
    """Train in one way, `times` as many rounds, and search; the shares found."""
    rounds, epochs = SCHEDULES[dm]
    rounds *= times
    share = way if way in ("output_only", "mean") else "additive"
    fixed = {"rounds": rounds, "epochs": epochs, "share": share, "seed": seed}
    given = fixed | given
    found: list[tuple[bool, bool]] = []
    for own in owners(way):
        with tempfile.TemporaryDirectory() as folder:
            spec = {"doc2vec": SPECS[dm]}
            config, wrong = parse(settings(Path(folder), own, **spec, **given))
            assert not wrong, wrong
            plans, weights = planned(config)
            weights = federated(config, plans, weights)
            for plan, mine in zip(plans, own.values(), strict=True):
                found += looked_up(plan, weights, mine)
    return tuple(np.mean(found, axis=0).tolist())


def planned(config: FederationConfig) -> tuple[list[GroupPlan], Weights]:
    """A plan for each party, once all have counted their words; initial weights."""
    adapter = models.named("doc2vec")
    handler, bare = data.named(config.data_handler), adapter.read(config)[0]
    own = [range(i, i + 1) for i in range(config.num_parties)]
    names = [config.party_name(i) for i in range(config.num_parties)]

    def plans(blueprint: models.Blueprint) -> list[GroupPlan]:
        each = zip(names, own, strict=True)
        return [GroupPlan(n, p, config, blueprint, handler) for n, p in each]

    counts = ValueCounts.merge(map(count_words, plans(bare)))
    survey = DataSurvey(words=counts)
    blueprint, weights = adapter.survey.complete(config, survey, "lee")
    return plans(blueprint), weights


def federated(
    config: FederationConfig, plans: list[GroupPlan], weights: Weights
) -> Weights:
    """All rounds, as the aggregator goes through them, in this process."""
    rule = fusion.from_config(config, plans[0].blueprint.parameters)
    groups = [PartyGroup(plan, lambda: ActorLocation("here")) for plan in plans]
    state = rule.init(weights)
    for round in range(1, config.rounds + 1):
        update = fusion.combine(rule, additive(rule, groups, round, weights))
        weights, state = rule.step(weights, update, state)
    return weights


def additive(
    rule: fusion.FusionRule, groups: list[PartyGroup], round: int, weights: Weights
) -> Iterator[Update]:
    """One round's updates, each as soon as its party has trained."""
    for i, group in enumerate(groups):
        _, update = group.train(round, np.array([i]), weights)
        yield rule.to_additive(update, weights, {})


def looked_up(
    plan: GroupPlan, weights: Weights, mine: range
) -> Iterator[tuple[bool, bool]]:
    """For every article of a party: is it among the first ten of its own hundred?"""
    words = articles()
    queries = [words[i][1::2] for i in mine]
    answers = search_documents(plan, weights, queries, len(mine))
    trained = as_trained(plan, weights, queries)
    for i, answer, scores in zip(mine, answers, trained, strict=True):
        block = range(i // N_EACH * N_EACH, (i // N_EACH + 1) * N_EACH)
        ranked = [int(one.tag) for one in answer if int(one.tag) in block]
        at = i - mine.start
        ours = scores[block.start - mine.start : block.stop - mine.start]
        yield i in ranked[:WITHIN], int((ours > scores[at]).sum()) < WITHIN


def as_trained(
    plan: GroupPlan, weights: Weights, queries: list[list[str]]
) -> np.ndarray:
    """Cosines of queries to the vectors that training left, (queries, documents)."""
    config, party = plan.config, plan.config.party_name(plan.parties.start)
    kept = Path(config.party_dir) / "lee" / party / f"round-{config.rounds:05d}.npz"
    with np.load(kept) as file:
        own = {name: file[name] for name in file.files if name == "wv"}
        vectors = file["vectors"]
    model = models.named("doc2vec").make(plan.blueprint, config, "cpu")
    model.load({**weights, **own})
    asked = np.array([model.vector_of(words) for words in queries])
    lengths = np.linalg.norm(vectors, axis=1), np.linalg.norm(asked, axis=1)
    return asked @ vectors.T / lengths[0] / lengths[1][:, None]


def draw(table: dict[int, dict[str, Scores]], n_seeds: int, file: Path) -> None:
    """The five ways side by side, for both kinds of model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), dpi=110, layout="constrained")
    for i, (dm, rows) in enumerate(table.items()):
        axes = figure.add_subplot(1, len(table), i + 1)
        ways = [way for way in WAYS if way in rows]
        shares = [rows[way][0] for way in ways]
        colours = ["#9aa5b1"] * 2 + ["#e0a458"] * 2 + ["#2f6fb0"]
        bars = axes.bar(ways, shares, color=colours[: len(ways)])
        axes.bar_label(bars, [f"{share:.2f}" for share in shares], padding=2)
        rounds, epochs = SCHEDULES[dm]
        axes.set_title(f"dm={dm}, {rounds} rounds × {epochs} passes", fontsize=10)
        axes.set_ylim(0, 1.05)
        axes.set_yticks([])
        axes.spines[["top", "left", "right"]].set_visible(False)
        axes.tick_params(length=0, labelsize=9)
    told = f"share of 300 articles found within {WITHIN}, mean of {n_seeds} seeds"
    figure.supylabel(told, fontsize=8)
    figure.savefig(file)


def main() -> None:
    """Measure, print a table, and draw it if a file is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path, help="a .png to draw the table into")
    parser.add_argument("--others", action="store_true", help="other folds as well")
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1)
    table: dict[int, dict[str, Scores]] = {}
    print(f"{'dm':<3} {'way':<24} {'searched':>9} {'as trained':>11}")
    for dm in SCHEDULES:
        table[dm] = {}
        runs = [(way, way, {}) for way in WAYS]
        runs += OTHERS if arguments.others else []
        for label, way, given in runs:
            scores = [measure(way, dm, seed, **given) for seed in seeds]
            mean = table[dm][label] = tuple(np.mean(scores, axis=0).tolist())
            print(f"{dm:<3} {label:<24} {mean[0]:>9.3f} {mean[1]:>11.3f}", flush=True)
    if arguments.figure:
        draw(table, arguments.seeds, arguments.figure)


if __name__ == "__main__":
    main()
