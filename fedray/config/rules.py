"""Rules that tie config keys to each other: parties, groups, attacks, ensembles."""

import datetime
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from fedray.config.declaration import conditions, keys_of, name_of
from fedray.config.goals import ALWAYS, Goal, goal_name
from fedray.config.keys import FederationKeys
from fedray.config.learning_rates import schedule_of
from fedray.config.metrics import (
    describe_tasks,
    describe_unknown_metric,
    find_metric,
    label_of,
    suggest_metric,
)
from fedray.config.mistakes import MAX_DEPTH, describe_value
from fedray.config.privacy import describe_mechanisms
from fedray.config.schedulers import ReduceLROnPlateau
from fedray.config.specs import (
    LABEL,
    MAX_ALIKE,
    MEMBER_KEYS,
    SIMILARITY,
    AttackSpec,
    GroupsSpec,
    PartySpec,
    is_uri,
)
from fedray.errors import format_count
from fedray.untrusted_text import MAX_NAME, name_problem, same_name
from fedray.user_code import is_source

MAX_BITS = 1023  # of a whole number; larger ones are no number to a library
PLAIN = (  # types that YAML has
    *(type(None), bool, int, float, str, bytes),
    *(datetime.date, datetime.datetime),
)


def party_problems(config: FederationKeys) -> list[str]:
    """Mistakes in `parties` and `partition`, by party."""
    problems = []
    has_parties = bool(config.parties or config.edges)
    if has_parties == (config.partition is not None):
        problems.append("give either parties or a partition to cut them from")
    problems += _partition_problems(config)
    if config.parties and config.num_parties != len(config.parties):
        listed = f"num_parties is {config.num_parties}, but parties lists "
        problems.append(listed + str(len(config.parties)))
    names = [party.name for party in config.parties]
    problems += _name_problems("party name", names)
    problems += _source_problems(config)
    for party in config.parties:
        for text in (*party.labels, *party.labels.values()):
            if not LABEL.fullmatch(text):
                wrong = f"party {party.name!r}: label {text!r} must match "
                problems.append(wrong + LABEL.pattern)
    n_alike = Counter(map(same_name, names))
    for name in dict.fromkeys(name for name in names if n_alike[same_name(name)] > 1):
        problems.append(f"party name {name!r} is given more than once")
    return problems


def _partition_problems(config: FederationKeys) -> list[str]:
    """How many parties a partition makes: as many as it has values, or num_parties."""
    partition, n_parties = config.partition, config.num_parties
    if partition is None:
        return []
    if n_parties is None:
        return ["num_parties is missing: a partition does not tell it"]
    values = partition.values
    if values and n_parties != len(values):
        many = f"{partition.by} has {format_count(len(values), 'value')}"
        return [f"num_parties is {n_parties}, but {many}, a party each: leave it out"]
    twice = [value for value, n in Counter(values).items() if n > 1]
    return [f"partition.values: {value!r} is given more than once" for value in twice]


def _source_problems(config: FederationKeys) -> list[str]:
    """URIs that a built-in data handler would be given."""
    sources: list[tuple[str, str | None, str | None]]
    sources = [("test_data", config.test_data, None)]
    if config.partition is not None:
        sources.append(("partition.source", config.partition.source, None))
    for party in config.parties:
        sources.append((f"party {party.name!r}: data", party.data, party.data_handler))
    return [
        f"{key} {source!r} is no path, and data_handler {own or config.data_handler} "
        "reads files: fetch it, or write a handler of your own (file.py:ClassName)"
        for key, source, own in sources
        if source and is_uri(source) and not is_source(own or config.data_handler)
    ]


def metric_problems(config: FederationKeys) -> list[str]:
    """Mistakes in `metrics`: unknown ones, and those that no one model has."""
    problems, specs = [], []
    for name in dict.fromkeys(config.metrics):
        spec = find_metric(name)
        if spec is None or not (spec.tasks or spec.merge == "means"):
            problems.append(f"metrics: {describe_unknown_metric(name)}")
        else:
            specs.append(spec)
    n_alike = Counter(map(label_of, config.metrics))
    for label in (label for label, n in n_alike.items() if n > 1):
        problems.append(f"metrics: {label} is given more than once")
    for name in config.metrics:
        label = label_of(name)
        if is_source(name) and (find_metric(label) or label == "loss"):
            clash = f"metrics: the function {label} has the name of a built-in metric"
            problems.append(f"{clash}: give it another")
    built_in = [spec for spec in specs if spec.tasks]
    for spec in built_in:
        if spec.merge == "samples" and not config.test_data:
            needs = f"metrics: {spec.name} needs all samples in one place"
            problems.append(f"{needs}: give test_data, or leave it out")
    first = built_in[0] if built_in else None
    for spec in built_in:
        if first and not set(first.tasks) & set(spec.tasks):
            pair = f"{first.name} is for {describe_tasks(first)}, {spec.name} for "
            one = "no model gives both: leave one out"
            problems.append(f"metrics: {pair}{describe_tasks(spec)}; {one}")
    return problems


def argument_problems(config: FederationKeys) -> list[str]:
    """Arguments that config.yaml could not repeat: NaN, objects, deep nesting."""
    owners: list[tuple[str, FederationKeys | PartySpec]] = [("", config)]
    owners += [(f"party {party.name!r}: ", party) for party in config.parties]
    return [
        f"{where}{key}.{name} must be {needed}"
        for where, owner in owners
        for key in ("optimizer_args", "loss_args", "data_args", "architecture_args")
        for name, value in (getattr(owner, key) or {}).items()
        if (
            needed := _needed_argument(
                value, 3 if where else 1, may_be_nan=key == "architecture_args"
            )
        )
    ]


def _needed_argument(value: object, depth: int, may_be_nan: bool) -> str:
    """What an argument has to be instead, and what was got; empty if it is fine."""
    todo = [(value, depth)]
    while todo:
        one, depth = todo.pop()
        if depth >= MAX_DEPTH:
            return f"nested in less than {MAX_DEPTH} levels"
        if isinstance(one, Mapping):
            todo += [(inner, depth + 1) for pair in one.items() for inner in pair]
        elif isinstance(one, list | tuple | set):
            todo += [(inner, depth + 1) for inner in one]
        elif isinstance(one, float) and not (math.isfinite(one) or may_be_nan):
            return f"a finite number, got {describe_value(value)}"
        elif isinstance(one, int) and one.bit_length() > MAX_BITS:
            return f"a number of at most {MAX_BITS} bits, got {describe_value(one)}"
        elif type(one) not in PLAIN:
            return f"text, numbers, lists and mappings, got {describe_value(one)}"
    return ""


def step_problems(config: FederationKeys) -> list[str]:
    """Steps that cannot be counted, or are said twice."""
    problems = []
    is_by_step = config.scheduler is not None and config.scheduler_every == "step"
    if is_by_step and is_source(config.model_type) and config.local_steps is None:
        problems.append(
            "scheduler_every: step needs local_steps with model_type: "
            f"{config.model_type}, whose own steps are not known; or leave it out"
        )
    if config.local_steps is not None:
        problems += [
            f"party {party.name!r}: epochs has no effect with local_steps: "
            f"{config.local_steps}: give one of them"
            for party in config.parties
            if party.epochs is not None
        ]
    return problems


def plateau_problems(config: FederationKeys) -> list[str]:
    """A metric of ReduceLROnPlateau that is not measured, or whose mode is open."""
    schedule = schedule_of(config)
    if not isinstance(schedule, ReduceLROnPlateau):
        return []
    problem = _metric_problem(schedule, config)
    problems = [f"scheduler_args.{problem}"] if problem else []
    if config.evaluate_every == 0:
        problems.append(
            "scheduler ReduceLROnPlateau goes by evaluated rounds, and with "
            "evaluate_every: 0 there is only the last one"
        )
    if config.privacy_mechanisms and config.test_data is None:
        problems.append(
            "scheduler ReduceLROnPlateau goes by scores, and with "
            f"{describe_mechanisms(config.privacy_mechanisms)} the parties' own tests "
            "give none: give test_data, or take another scheduler"
        )
    return problems


def name_problems(config: FederationKeys) -> list[str]:
    """Mistakes in the name of the run."""
    return [] if config.name is None else _name_problems("name", [config.name])


def _name_problems(what: str, names: Iterable[str]) -> list[str]:
    needed = f"1 to {MAX_NAME} letters, digits, spaces and other signs of any script"
    return [
        f"{what} {name!r} cannot be used: {problem}; needed are {needed}"
        for name in names
        if (problem := name_problem(name))
    ]


def group_problems(config: FederationKeys) -> list[str]:
    """Mistakes in `groups`, by party."""
    if config.groups is None:
        return []
    if config.groups.by == SIMILARITY:
        return _similarity_problems(config.groups, config.num_parties or 0)
    return _field_problems(config.groups, config)


def _similarity_problems(groups: GroupsSpec, n_parties: int) -> list[str]:
    problems = []
    if not 2 <= n_parties <= MAX_ALIKE:
        compared = f"groups by similarity compare 2 to {MAX_ALIKE} parties, each "
        n_got = format_count(n_parties, "party", "parties")
        problems.append(f"{compared}with each other; got {n_got}")
    if groups.k is not None and not 1 <= groups.k <= n_parties:
        most = format_count(n_parties, "party", "parties")
        problems.append(f"groups k must be from 1 to {most}, got {groups.k}")
    return problems


def _field_problems(groups: GroupsSpec, config: FederationKeys) -> list[str]:
    problems, by, parties = [], groups.by, config.parties
    if not parties:
        problems.append(
            f"groups by {by!r} needs `parties` with fields, or by: similarity"
        )
    for party in parties:
        if by not in party.fields:
            there = sorted(party.fields) or "none"
            lacks = f"party {party.name!r} has no field {by!r} to go by, it has {there}"
            problems.append(f"{lacks}; give it fields: {{{by}: ...}}")
        else:
            what = f"party {party.name!r}: field {by}"
            problems += _name_problems(what, [party.fields[by]])
    names = dict.fromkeys(p.fields[by] for p in parties if by in p.fields)
    n_alike = Counter(map(same_name, names))
    for name in (name for name in names if n_alike[same_name(name)] > 1):
        problems.append(f"groups by {by!r}: {name!r} looks like another group's name")
    return problems


def adaptive_problems(config: FederationKeys) -> list[str]:
    """Keys that do not go with adaptive aggregation or best_model."""
    problems, is_adaptive = [], config.aggregation == "adaptive"
    is_best = config.fusion_algorithm == "best_model"
    if config.late == "next_round" and (is_adaptive or is_best):
        what = "aggregation: adaptive" if is_adaptive else "best_model"
        problems.append(
            f"late: next_round does not go with {what}: who is late keeps it"
        )
    if config.attack is not None and (is_adaptive or is_best):
        problems.append("attack goes with aggregation: always and a rule that fuses")
    return problems


def goal_problems(config: FederationKeys, unread: Collection[str]) -> list[str]:
    """Metrics in goals that are not measured, or whose mode is missing or wrong."""
    if "metrics" in unread:
        return []
    problems = [
        f"{key}.{problem}"
        for key, goal in config.goals().items()
        if f"{key}.metric" not in unread
        if (problem := _metric_problem(goal, config))
    ]
    target = None if "target.value" in unread else config.target
    if target and target.metric == "accuracy" and target.value > 1:
        got = f"target.value of accuracy is a share from 0 to 1, got {target.value:g}"
        problems.append(got)
    return problems


def _metric_problem(goal: Goal, config: FederationKeys) -> str:
    """What is wrong with a goal's metric or mode; empty if nothing is."""
    measured = {label_of(metric): metric for metric in (*ALWAYS, *config.metrics)}
    name = measured.get(goal_name(goal), goal.metric)
    spec = find_metric(name) if name in measured.values() else None
    if spec is None and not is_source(config.model_type):
        return _describe_unmeasured(name, [*measured])
    if spec and not spec.is_number:
        return f"metric: {name} is no single number: take another metric"
    mode = spec.mode if spec else None
    if mode is None and goal.mode is None:
        return f"mode is missing: say whether min or max of {goal_name(goal)} is better"
    if mode and goal.mode not in (None, mode):
        better = "less" if mode == "min" else "more"
        return f"mode is {goal.mode}, but {better} {name} is better: leave mode out"
    return ""


def _describe_unmeasured(name: str, measured: list[str]) -> str:
    """What to do about a metric that no evaluation gives."""
    if is_source(name) or find_metric(name):
        return f"metric: {name} is not measured: add it to metrics: [{name}]"
    near = suggest_metric(name)
    if near and near not in measured:
        hint = f"; did you mean {near}? Then add it to metrics: [{near}]"
    else:
        hint = f"; did you mean {near}?" if near else ""
    return f"metric: there is no {name!r}, measured are {', '.join(measured)}{hint}"


def personal_problems(config: FederationKeys) -> list[str]:
    """Keys that do not go with layers that stay at their party."""
    problems = []
    if config.personal is not None and config.test_data is not None:
        problems.append(
            "test_data does not go with personal: each party has a model of its own, "
            "which is scored on its own test samples"
        )
    if config.personal is not None and config.keep_best is not None:
        problems.append(
            "keep_best does not go with personal: parties' own layers train on, and "
            "are not those of the best round; early_stopping and target do"
        )
    return problems


def deadline_problems(config: FederationKeys) -> list[str]:
    """A deadline that is never reached."""
    deadline, timeout = config.deadline_s, config.round_timeout_s
    if deadline is None or deadline <= timeout:
        return []
    never = f"deadline_s: {deadline:g} has no effect with round_timeout_s: {timeout:g}"
    return [f"{never}, which ends the round before: give a shorter one"]


def attack_problems(config: FederationKeys, unread: Collection[str]) -> list[str]:
    """Mistakes in `attack`, and keys that do not go with it."""
    if config.attack is None:
        return []
    names = config.attack.parties
    problems = (
        [] if "attack.parties" in unread else _attack_spec_problems(config.attack)
    )
    if {"parties", "parties.name", "partition", "num_parties"} & set(unread):
        names = ()  # who there is, is not known
    for name in names:
        if config.party_place(name) is None:
            problems.append(f"attack.parties: there is no party {name!r}")
    if config.max_update_norm is not None:
        problems.append(
            "max_update_norm does not go with attack: updates are checked before "
            "the attack is laid over them"
        )
    return problems


def document_problems(config: FederationKeys) -> list[str]:
    """Mistakes in keys of the document model (doc2vec)."""
    problems = []
    is_text = config.takes_documents
    if is_text != (config.fusion_algorithm == "doc2vec"):
        problems.append(
            "model_type: doc2vec and fusion_algorithm: doc2vec go together, got "
            f"{config.model_type} and {config.fusion_algorithm}"
        )
    if config.party_dir is not None and not config.party_dir.startswith(("/", "~")):
        wrong = f"party_dir must start with / or ~, got {config.party_dir!r}: "
        problems.append(wrong + "it is a folder on every party's own node")
    return problems


def _attack_spec_problems(attack: AttackSpec) -> list[str]:
    problems = []
    if not attack.parties:
        problems.append("attack.parties is empty: name those that are hostile")
    if len(set(attack.parties)) < len(attack.parties):
        problems.append("attack.parties names a party more than once")
    return problems


MODEL_KEYS = ("model_file", "architecture")
ENSEMBLE_VALUES = {  # that keys must have, since each member trains alone
    "aggregation": "always",
    "groups": None,
    "partition": None,
    "attack": None,
    "party_fraction": 1.0,
    "over_select": 1.0,
    "late": "discard",
}


def ensemble_problems(config: FederationKeys, unread: Collection[str]) -> list[str]:
    """Mistakes in the keys of an ensemble, or in those keys without one; by party."""
    if not config.has_member_models:
        return _member_key_problems(config)
    problems = []
    for key, value in ENSEMBLE_VALUES.items():
        if getattr(config, key) != value:
            problems.append(f"{key} does not go with ensemble: each party trains alone")
    if config.member_weights == "accuracy" and not config.test_data:
        problems.append(
            "member_weights: accuracy needs test_data: a party's own tests say "
            "little of how it does on the others' samples"
        )
    if (config.distill is None) != (config.distill_data is None):
        problems.append("distill (the student) and distill_data (what for) go together")
    is_read = not {key for key in unread if key.rpartition(".")[2] in MODEL_KEYS}
    for i, party in enumerate(config.parties):
        own = config.member(i)
        has_model = own.model_file or own.architecture or is_source(own.model_type)
        if not has_model and is_read:
            message = "model_file is missing: give it, or an architecture"
            problems.append(f"party {party.name!r}: {message}")
        if own.takes_documents:
            problems.append(f"party {party.name!r}: doc2vec gives no probabilities")
    return problems


def _member_key_problems(config: FederationKeys) -> list[str]:
    problems = []
    for party in config.parties:
        own = [key for key in MEMBER_KEYS if getattr(party, key) is not None]
        if own:
            message = f"{own} of its own are for fusion_algorithm: ensemble, got "
            problems.append(f"party {party.name!r}: {message}{config.fusion_algorithm}")
    return problems


def member_keys_without_effect(config: FederationKeys) -> list[str]:
    """Keys that an ensemble's party gives and its own model type does not take."""
    problems = []
    for i, party in enumerate(config.parties if config.has_member_models else ()):
        model_type = config.member(i).model_type
        for name in MEMBER_KEYS:
            applies = keys_of(FederationKeys)[name].setting.applies
            takes = applies.get("model_type")
            is_given = getattr(party, name) not in (None, {})
            if takes and is_given and name_of(model_type) not in takes:
                needed = conditions({"model_type": takes})
                has = f"{name} has no effect with model_type: {model_type}"
                problems.append(f"party {party.name!r}: {has}: it is for {needed}")
    return problems
