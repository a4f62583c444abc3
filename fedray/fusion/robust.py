"""Robust (Byzantine-tolerant) fusion rules by name, their config keys and checks."""

from functools import partial
from typing import Any

from fedray.config import SIMILARITY, FederationConfig
from fedray.errors import TooFewUpdates, format_count
from fedray.fusion.base import Accumulator, AllUpdates, FusionRule, RoundContext
from fedray.fusion.robust_clipping import Clipping
from fedray.fusion.robust_coordinatewise import GeometricMedian, Median, TrimmedMean
from fedray.fusion.robust_krum import Bulyan, Krum, MultiKrum
from fedray.fusion.robust_matrix import Rows, draw_buckets, median_of_integers
from fedray.messages import Update

Rule = Median | TrimmedMean | GeometricMedian | Krum | MultiKrum | Bulyan

ROBUST: dict[str, type[Rule] | type[Clipping]] = {
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "geometric_median": GeometricMedian,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "bulyan": Bulyan,
    "norm_clipping": Clipping,
    "centred_clipping": Clipping,
}
SEES_ALL = tuple(
    name for name, kind in ROBUST.items() if not issubclass(kind, Clipping)
)
KEYS = ("n_hostile", "n_selected", "clip_norm", "bucketing")  # of a config


class Robust(FusionRule):
    """A rule that must see everyone.

    It works on the parties' weights, not on their differences from the global ones:
    each of these rules gives the same either way, moved by the same vector, and
    differences between parties are taken in float64. All float tensors are one vector,
    buffers included; of all others the rule is the median. Sample counts do not weigh:
    they can be made up.

    bucketing : parties that are averaged, drawn anew by (seed, round), before the rule
        sees them; it then needs its number of buckets. 1: none. Source: Karimireddy et
        al. 2022, arXiv:2006.09365, Algorithm 1.
    """

    associative = False

    def __init__(self, name: str, rule: Rule, bucketing: int = 1, seed: int = 0):
        self.name, self.rule = name, rule
        self.bucketing, self.seed = bucketing, seed

    def n_withstood(self, n_updates: int) -> int:
        """Hostile ones among so many updates that the rule is made for."""
        return self.rule.n_withstood(-(-n_updates // self.bucketing))

    def accumulator(self, context: RoundContext) -> Accumulator:
        """Keeps all updates, whose arrays are read where they lie.

        Its result raises TooFewUpdates if the rule cannot hold against as many hostile
        parties as it is to.
        """
        return AllUpdates(partial(self._fuse, context.round))

    def _fuse(self, round: int, updates: list[Update]) -> Update:
        buckets = None
        needed = n_needed(self.rule, self.bucketing)
        if len(updates) < needed:
            raise TooFewUpdates(self.name, len(updates), needed)
        if self.bucketing > 1:
            buckets = draw_buckets(len(updates), self.bucketing, self.seed, round)
        fused = self.rule.fuse(Rows(updates, buckets)) | median_of_integers(updates)
        return Update(
            {name: fused[name] for name in updates[0].weights},
            sum(update.n_samples for update in updates),
            sum(update.n_parties for update in updates),
        )


def make(name: str, bucketing: int = 1, seed: int = 0, **settings: Any) -> FusionRule:
    """Make a robust rule: ``make("krum", n_hostile=1)``."""
    kind = ROBUST[name]
    if issubclass(kind, Clipping):
        return Clipping(name, bucketing=bucketing, seed=seed, **settings)
    return Robust(name, kind(**settings), bucketing, seed)


def keys_of(name: str) -> tuple[str, ...]:
    """The config's keys that a rule takes; none if it is no robust rule."""
    return (*ROBUST[name].keys, "bucketing") if name in ROBUST else ()


def settings(config: FederationConfig) -> dict[str, Any]:
    """The config's settings of its robust rule, as `make` takes them."""
    keys = keys_of(config.fusion_algorithm)
    return {key: getattr(config, key) for key in keys} | {"seed": config.seed}


def n_needed(rule: Rule, bucketing: int) -> int:
    """Updates without which a rule's condition cannot hold on ⌈n/s⌉ buckets."""
    return (rule.n_needed() - 1) * bucketing + 1


def find_problems(config: FederationConfig, n_updates: int | None) -> list[str]:
    """Settings of a config that its rule needs or cannot work with.

    n_updates : the fewest that a round can go on with; None: not known.
    """
    name = config.fusion_algorithm
    problems = []
    kind, takes = ROBUST.get(name), keys_of(name)
    if "clip_norm" in takes and config.clip_norm is None:
        problems.append(
            f"clip_norm is missing: {name} cuts each party's step to this length; "
            "`drift` in a run's history.jsonl tells how long honest steps are"
        )
    if kind and not issubclass(kind, Clipping) and n_updates is not None:
        rule = kind(**{key: getattr(config, key) for key in kind.keys})
        needed = n_needed(rule, config.bucketing)
        if n_updates < needed:
            wanted = format_count(needed, "update")
            problems.append(
                f"{name} needs {wanted}{_describe_settings(config)}, but a "
                f"round may go on with {n_updates}: {_remedy(config)}"
            )
    return problems


def _remedy(config: FederationConfig) -> str:
    if config.groups is not None and config.groups.by == SIMILARITY:
        one = "a group by similarity may have one party; "
        return f"{one}group by a field of the parties, or take another rule"
    return (
        "raise num_parties, party_fraction or quorum, or assume fewer hostile "
        "(n_hostile)"
    )


def _describe_settings(config: FederationConfig) -> str:
    set_keys = [
        f"{key} {getattr(config, key)}"
        for key in ("n_hostile", "n_selected", "bucketing")
        if getattr(config, key) not in (None, 1 if key == "bucketing" else None)
    ]
    return f" with {', '.join(set_keys)}" if set_keys else ""
