"""Every config key of a federation, each declared once; and what follows from them.

A new key needs its declaration here and nothing else to be read from YAML, command
line, Python and (rest=True) REST, checked, resumed and documented. A rule that ties it
to other keys stands in `rules`.
"""

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from fedray.config import buffered
from fedray.config.buffered import VirtualClockSpec

# isort: off
from fedray.config.conditions import (
    ADAPTIVE, ADAPTIVE_STEPS, ADDED_ROWS, ALL_OR_NOISED, BEST_MODEL, CLIPPED_ONCE,
    CLIPPING, DOCUMENT_MODELS, ENSEMBLE, ESTIMATORS, EVALUATED, FIRST_COME,
    IN_ITS_ROUND, IN_TRAINING, MASKED, MEAN_RULES, NETWORKS, NO_ATTACK, NO_OWN_STATE,
    NO_SCORES, NO_STATISTICS, ONE_BY_ONE, ONE_MODEL, ON_ARRAYS, ON_NOISED_UPDATES,
    ON_TEST_DATA, OWN_PROCESSES, OWN_STEPS, PARTY_DIR, PERSONAL_RULES, RANKING, ROBUST,
    SAMPLES, SCHEDULED, SCORED, SERVER_RATES, SERVER_STEPS, SUMMED_MODELS, TEXT,
)  # fmt: skip

# isort: on
from fedray.config.declaration import (
    GIVEN,
    MAX_COUNT,
    MECHANISMS,
    SAFE,
    OtherThan,
    setting,
)
from fedray.config.edges import POPULATION, EdgesSpec
from fedray.config.goals import (
    GOALS,
    METRIC_OR_BEST,
    BestModelSpec,
    EarlyStoppingSpec,
    Goal,
    TargetSpec,
)
from fedray.config.privacy import DpSgdSpec, PrivacySpec
from fedray.config.specs import (
    LIST_OR_TUPLE,
    MAX_CANDIDATES,
    MEMBER_KEYS,
    MEMBER_RESETS,
    NOT_AT_THE_DOOR,
    SIMILARITY,
    AttackSpec,
    Doc2VecSpec,
    GroupsSpec,
    PartitionSpec,
    PartySpec,
    Settings,
    Text,
)


class FederationKeys(Settings):
    """All keys of one federation's config."""

    # a table: each key in two to four lines
    # fmt: off
    fusion_algorithm: Annotated[Text, setting(
        "how updates become one model", topic="Model and fusion", rest=True,
        private=MEAN_RULES)] = "fedavg"
    model_type: Annotated[Text, setting(
        "pytorch, keras, sklearn, doc2vec, or a class of yours: file.py:ClassName",
        path="code", rest=True, private=SUMMED_MODELS)] = "pytorch"
    model_file: Annotated[Text | None, setting(
        "the initial model that every party starts from",
        path="file", private=SAFE)] = None
    architecture: Annotated[Text | None, setting(
        "file.py:function that builds the model; of sklearn also an estimator's name",
        path="file", applies=ON_ARRAYS, private=SAFE)] = None
    architecture_args: Annotated[dict[str, Any], setting(
        "arguments of the estimator that architecture names",
        applies=ESTIMATORS, examples=({"alpha": 1e-3},))] = {}
    trainable: Annotated[tuple[Text, ...] | None, LIST_OR_TUPLE, setting(
        "shell patterns of the tensors that train; all others are frozen, and travel "
        "once", unset="what requires_grad, or a Keras layer's trainable, says",
        rest=True, applies=NETWORKS, examples=(("*",),), private=SAFE)] = None
    server_learning_rate: Annotated[float | None, setting(
        "step of the aggregator along the parties' mean",
        unset="0.01 for the adaptive ones, else 1", gt=0, rest=True,
        applies=SERVER_RATES, private=SAFE)] = None
    server_momentum: Annotated[float, setting(
        "momentum of fedavgm, beta1 of the adaptive ones",
        ge=0, le=1, rest=True, applies=SERVER_STEPS, private=SAFE)] = 0.9
    server_beta2: Annotated[float, setting(
        "decay of the mean of squared steps", ge=0, le=1, rest=True,
        applies={"fusion_algorithm": ("fedadam", "fedyogi")}, private=SAFE)] = 0.99
    server_tau: Annotated[float, setting(
        "adaptivity: added to the root of the squared steps",
        gt=0, rest=True, applies={"fusion_algorithm": ADAPTIVE_STEPS},
        private=SAFE)] = 1e-3
    candidates: Annotated[int, setting(
        "parties whose model is scored by the others",
        ge=1, le=MAX_CANDIDATES, rest=True, applies=BEST_MODEL)] = 8
    adopt: Annotated[float, setting(
        "share of the best model in the global one: 1 replaces it, less mixes",
        gt=0, le=1, rest=True, applies=BEST_MODEL)] = 1.0

    rounds: Annotated[int, setting(
        "rounds of training and fusion", topic="Training at a party", ge=1,
        le=MAX_COUNT, rest=True, resume=True, private=SAFE)] = 1
    epochs: Annotated[int, setting(
        "passes over the party's own data per round",
        ge=1, le=MAX_COUNT, rest=True, applies={"local_steps": (None,)},
        private=SAFE)] = 1
    local_steps: Annotated[int | None, setting(
        "training steps of a party per round, instead of epochs",
        unset="as epochs says", ge=1, le=MAX_COUNT, rest=True,
        applies=OWN_STEPS, private=SAFE)] = None
    learning_rate: Annotated[float | None, setting(
        "step of the parties' optimizer",
        unset="a Keras file's own, else 0.01; doc2vec: 0.025", gt=0, rest=True,
        resume=True, private=SAFE)] = None
    scheduler: Annotated[Text | None, setting(
        "how learning_rate changes over the run: cosine, linear, or one of PyTorch's",
        unset="it stays", rest=True, resume=True, applies=SCHEDULED,
        examples=("cosine",), private=SAFE)] = None
    scheduler_args: Annotated[dict[str, Any], setting(
        "arguments of the scheduler: warmup, gamma...", rest=True, resume=True,
        applies=SCHEDULED | {"scheduler": GIVEN}, examples=({"warmup": 1},),
        private=SAFE)] = {}
    scheduler_every: Annotated[Literal["round", "step"], setting(
        "what the scheduler counts: rounds, or a party's training steps in all rounds",
        rest=True, resume=True,
        applies=OWN_STEPS | {"scheduler": GIVEN}, private=SAFE)] = "round"
    optimizer: Annotated[Text | None, setting(
        "a name of torch.optim or keras.optimizers; the part after the last dot",
        unset="a Keras file's own, else SGD", rest=True, applies=NETWORKS,
        examples=("optim.Adam",), private=SAFE)] = None
    optimizer_args: Annotated[dict[str, Any], setting(
        "further arguments of the optimizer", rest=True, applies=NETWORKS,
        examples=({"weight_decay": 1e-3},), private=SAFE)] = {}
    batch_size: Annotated[int, setting(
        "samples in a training step", ge=1, le=MAX_COUNT, rest=True,
        applies=ON_ARRAYS, private=SAFE)] = 64
    drop_last: Annotated[bool, setting(
        "leave out the last batch of each pass if it is smaller than batch_size",
        rest=True, applies=NETWORKS, private=IN_TRAINING)] = False
    loss: Annotated[Text | None, setting(
        "a loss of torch.nn or of Keras; model: the model's own; or file.py:function",
        unset="a Keras file's own, else the model type's default", rest=True,
        path="code", applies=NETWORKS, examples=("cross_entropy",),
        private=SAFE)] = None
    loss_args: Annotated[dict[str, Any], setting(
        "arguments of the loss: class weights, label_smoothing, ignore_index...",
        rest=True, applies=NETWORKS,
        examples=({"label_smoothing": 0.1},), private=SAFE)] = {}
    proximal_mu: Annotated[float, setting(
        "pull toward the global weights while training (FedProx); 0: none",
        ge=0, rest=True,
        applies=NETWORKS | ONE_MODEL, private=SAFE)] = 0.0
    gradient_clip_norm: Annotated[float | None, setting(
        "longest gradient over all trained parameters; longer ones are scaled down",
        unset="any", gt=0, rest=True, applies=NETWORKS,
        examples=(1.0,), private=IN_TRAINING)] = None
    mixed_precision: Annotated[Literal["none", "bfloat16", "float16"], setting(
        "format of most of the arithmetic in training; float16: on a GPU only",
        rest=True, applies=NETWORKS, private=IN_TRAINING)] = "none"
    personal: Annotated[tuple[Text, ...] | None, LIST_OR_TUPLE, setting(
        "shell patterns of tensors that stay at their party; or batch_norm",
        unset="none", rest=True, applies=NETWORKS | PERSONAL_RULES,
        examples=(("*bias",),), private=NO_OWN_STATE)] = None
    personal_epochs: Annotated[int, setting(
        "passes of personal layers alone, before those of shared ones (FedRep)",
        ge=0, le=MAX_COUNT, rest=True, applies={"personal": GIVEN},
        private=NO_OWN_STATE)] = 0
    ditto_lambda: Annotated[float | None, setting(
        "pull of each party's own model toward the global weights (Ditto)",
        unset="no own models", ge=0, rest=True,
        applies=NETWORKS | ONE_MODEL | {"personal": (None,)},
        private=NO_OWN_STATE)] = None
    finetune_epochs: Annotated[int, setting(
        "passes after the last round, which make each party's own model",
        ge=0, le=MAX_COUNT, rest=True,
        applies=NETWORKS | ONE_MODEL | {"ditto_lambda": (None,)},
        private=NO_OWN_STATE)] = 0
    stacked: Annotated[Literal["auto", "true", "false"], setting(
        "train parties of one actor together: auto where the result is the same",
        rest=True, applies={"model_type": ("pytorch",)}, private=SAFE)] = "auto"

    data_handler: Annotated[Text, setting(
        "how parties read their data: a handler's name, or file.py:ClassName",
        topic="Parties and data", path="code", private=SAFE)] = "mnist_pytorch"
    data_args: Annotated[dict[str, object], setting(
        "options of the data handler, such as the columns of a table",
        private=SAFE)] = {}
    parties: Annotated[tuple[PartySpec, ...], LIST_OR_TUPLE, setting(
        "real parties, one actor each", private=SAFE)] = ()
    partition: Annotated[PartitionSpec | None, setting(
        "instead of `parties`: parties cut from one data set",
        unset="none", private=OWN_PROCESSES)] = None
    edges: Annotated[EdgesSpec | None, setting(
        "parties outside the cluster that enrol by invitation",
        unset="those that `parties` lists", private=NOT_AT_THE_DOOR)] = None
    num_parties: Annotated[int | None, setting(
        "number of parties", unset="as many as `parties` lists", ge=1, le=MAX_COUNT,
        rest=True, private=SAFE)] = None
    normalize: Annotated[Literal["none", "federated"], setting(
        "standardise inputs by mean and deviation over all parties",
        applies=SAMPLES, private=NO_STATISTICS)] = "none"
    groups: Annotated[GroupsSpec | None, setting(
        "a global model for each group",
        unset="one for all", applies=SCORED, private=SAFE)] = None
    test_data: Annotated[Text | None, setting(
        "test samples of the aggregator, read by data_handler",
        unset="the parties' own test samples", path="file", applies=SCORED,
        private=SAFE)] = None
    party_dir: Annotated[Text | None, setting(
        "folder on a party's node: errors.log, data's digest, vectors, privacy spent",
        unset=PARTY_DIR, resume=True, private=SAFE)] = None

    party_fraction: Annotated[float, setting(
        "share of the parties that train in a round",
        topic="Rounds", gt=0, le=1, rest=True, private=ALL_OR_NOISED)] = 1.0
    selection: Annotated[Literal["random"], setting(
        "how the parties that train in a round are chosen", rest=True)] = "random"
    quorum: Annotated[float, setting(
        "share of the chosen parties whose updates must count, or the round fails",
        gt=0, le=1, rest=True, resume=True, applies=ONE_MODEL, private=SAFE)] = 1.0
    over_select: Annotated[float, setting(
        "times as many parties are asked, the first to report count",
        ge=1, le=100, rest=True,
        applies={"party_fraction": OtherThan((1.0,))}, private=FIRST_COME)] = 1.0
    deadline_s: Annotated[float | None, setting(
        "closes a round; parties that still train are not restarted",
        unit="seconds", unset="round_timeout_s", gt=0, rest=True, resume=True,
        private=SAFE)] = None
    late: Annotated[Literal["discard", "next_round"], setting(
        "what happens to updates that come after their round",
        rest=True, private=IN_ITS_ROUND)] = "discard"
    round_timeout_s: Annotated[float, setting(
        "a party that has not reported by then is killed and restarted",
        unit="seconds", gt=0, rest=True, resume=True, private=SAFE)] = 600.0
    max_training_s: Annotated[float | None, setting(
        "stop after the round in which all rounds together have taken as long",
        unit="seconds", unset="train all rounds", gt=0, resume=True,
        private=SAFE)] = None
    max_memory: Annotated[int | None, setting(
        "memory that a process of the run may take on the aggregator's node",
        unit="bytes", unset="no limit", ge=1 << 26, resume=True,
        private=SAFE)] = None
    aggregation: Annotated[Literal["always", "adaptive", "buffered"], setting(
        "when to fuse: every round, when parties disagree, or updates as they come",
        rest=True, private=ONE_BY_ONE)] = "always"
    drift_tolerance: Annotated[float, setting(
        "growth of the disagreement that leads to a fusion",
        gt=0, rest=True, applies=ADAPTIVE | {"drift_threshold": (None,)})] = 2.5
    drift_threshold: Annotated[float | None, setting(
        "disagreement that leads to a fusion", unset="set by drift_tolerance", ge=0,
        rest=True, applies=ADAPTIVE)] = None
    max_rounds_apart: Annotated[int | None, setting(
        "rounds without a fusion after which one is forced",
        unset="no limit", ge=1, le=MAX_COUNT, rest=True, applies=ADAPTIVE)] = None
    buffer_size: Annotated[int | None, buffered.SIZE] = None
    concurrency: Annotated[int | None, buffered.AT_WORK] = None
    staleness: Annotated[Literal["sqrt", "none"], buffered.STALENESS] = "sqrt"
    max_staleness: Annotated[int, buffered.MAX_STALENESS] = 20
    lease_s: Annotated[float | None, buffered.LEASE] = None
    normalise: Annotated[Literal["weights", "count"], buffered.NORMALISE] = "weights"
    virtual_clock: Annotated[VirtualClockSpec | None, buffered.CLOCK] = None
    metrics: Annotated[tuple[Text, ...], LIST_OR_TUPLE, setting(
        "measured beside the loss: f1_macro, auroc, mae..., or file.py:function",
        path="code", rest=True, resume=True, applies=SCORED,
        examples=(("accuracy",),), private=ON_TEST_DATA)] = ()
    evaluate_every: Annotated[int, setting(
        "rounds between evaluations; 0: only after the last round",
        ge=0, le=MAX_COUNT, rest=True, resume=True, private=SAFE)] = 1
    early_stopping: Annotated[EarlyStoppingSpec | None, setting(
        "stop once a number of the evaluation has not improved for some rounds",
        unset="train all rounds", rest=True, resume=True, applies=EVALUATED,
        private=ON_TEST_DATA)] = None
    target: Annotated[TargetSpec | None, setting(
        "stop once a number of the evaluation is as good as this",
        unset="train all rounds", rest=True, resume=True, applies=EVALUATED,
        private=ON_TEST_DATA)] = None
    keep_best: Annotated[BestModelSpec | None, METRIC_OR_BEST, setting(
        "metric, or {metric, mode}: also write the best round's global_model_best.*",
        unset="the last model alone", rest=True, resume=True,
        applies=EVALUATED | ONE_MODEL, private=ON_TEST_DATA)] = None
    compare: Annotated[Literal["none", "local"], setting(
        "local: after the last round every party trains as long alone, to compare",
        rest=True, resume=True,
        applies=SCORED | ONE_MODEL | {"test_data": (None,)},
        private=NO_SCORES)] = "none"

    privacy: Annotated[PrivacySpec | None, setting(
        "noise that hides whether a party takes part",
        topic="Privacy", unset="none", rest=True, private=SAFE)] = None
    dp_sgd: Annotated[DpSgdSpec | None, setting(
        "noise in each party's training that hides single samples",
        unset="none", rest=True, private=SAFE,
        applies={"model_type": ("pytorch",)})] = None
    secure_aggregation: Annotated[bool, setting(
        "parties mask their updates, so that only sums of them can be read",
        rest=True, private=SAFE)] = False
    min_sum: Annotated[int | None, setting(
        "fewest parties whose sum may be opened",
        unset="two thirds of those asked, at least 3", ge=2, le=MAX_COUNT,
        rest=True, applies=MASKED, private=SAFE)] = None

    n_hostile: Annotated[int | None, setting(
        "hostile parties that a robust rule withstands",
        topic="Hostile parties", unset="as many as the rule can", ge=0, le=MAX_COUNT,
        rest=True, applies=RANKING, private=ON_NOISED_UPDATES)] = None
    n_selected: Annotated[int | None, setting(
        "updates that are averaged", unset="updates - n_hostile - 2", ge=1,
        le=MAX_COUNT, rest=True, applies={"fusion_algorithm": ("multi_krum",)},
        private=ON_NOISED_UPDATES)] = None
    clip_norm: Annotated[float | None, setting(
        "longest step of a party; longer ones are scaled down",
        gt=0, rest=True, applies=CLIPPING, or_with=MASKED, private=CLIPPED_ONCE)] = None
    bucketing: Annotated[int, setting(
        "parties averaged before a robust rule sees them; 1: none",
        ge=1, le=MAX_COUNT, rest=True, applies=ROBUST,
        private=ON_NOISED_UPDATES)] = 1
    max_update_norm: Annotated[float | None, setting(
        "updates with a longer step are refused", unset="any", gt=0, rest=True,
        examples=(1e3,), private=ON_NOISED_UPDATES)] = None
    max_refused: Annotated[int | None, setting(
        "refused updates in all rounds; one more ends the run",
        unset="any number", ge=0, le=MAX_COUNT, rest=True, resume=True,
        private=ON_NOISED_UPDATES)] = None
    attack: Annotated[AttackSpec | None, setting(
        "hostile parties, simulated for research",
        unset="none", private=NO_ATTACK)] = None

    member_weights: Annotated[Literal["equal", "accuracy"], setting(
        "weights of the members' probabilities", topic="Ensembles",
        applies=ENSEMBLE)] = "equal"
    distill: Annotated[Text | None, setting(
        "a PyTorch model that learns from the members",
        unset="no student", path="file", applies=ENSEMBLE)] = None
    distill_data: Annotated[Text | None, setting(
        "npz of x or x_train: unlabeled samples that the student learns from",
        path="file", applies=ENSEMBLE)] = None
    distill_epochs: Annotated[int, setting(
        "passes of the student over distill_data",
        ge=1, le=MAX_COUNT, applies=ENSEMBLE | {"distill": GIVEN})] = 10

    doc2vec: Annotated[Doc2VecSpec, setting(
        "the document model", topic="Documents", rest=True,
        applies=TEXT)] = Doc2VecSpec()
    share: Annotated[Literal["additive", "mean", "output_only"], setting(
        "how word rows are fused: changes added up, averaged, or syn1neg alone",
        rest=True, applies=TEXT)] = "additive"
    cap: Annotated[Literal["fourth", "root", "none"], setting(
        "limit on the summed change of a row", rest=True,
        applies=ADDED_ROWS)] = "fourth"
    row_momentum: Annotated[float, setting(
        "momentum of the summed rows on the aggregator, for short trainings",
        ge=0, le=0.99, rest=True, applies=ADDED_ROWS)] = 0.0

    name: Annotated[Text | None, setting(
        "name of the run", topic="The run", unset="the config file's name",
        resume=True, private=SAFE)] = None
    seed: Annotated[int, setting(
        "seed of every random choice", ge=0, le=2**63 - 1, rest=True,
        private=SAFE)] = 0
    party_cpus: Annotated[float | None, setting(
        "cores of one party's actor", unset="min(1, cores / actors) of its node", ge=0,
        le=10_000, resume=True, examples=(0.25,), private=SAFE)] = None
    parties_per_actor: Annotated[int | None, setting(
        "parties that share an actor", unset="an actor per core", ge=1, le=MAX_COUNT,
        applies={"partition": GIVEN}, private=SAFE)] = None
    placement_timeout_s: Annotated[float, setting(
        "time until every actor must be up", unit="seconds", gt=0, resume=True,
        private=SAFE)] = 60.0
    wire_dtype: Annotated[Literal["float32", "float16", "bfloat16", "int8"], setting(
        "format of weights while they travel; int8: of updates, weights in bfloat16",
        rest=True, applies=SCORED,
        private=SAFE)] = "float32"
    history_parties: Annotated[int, setting(
        "parties with a line of their own in a round's record",
        ge=0, le=MAX_COUNT, resume=True, private=SAFE)] = 1000
    keep_checkpoints: Annotated[int, setting(
        "newest checkpoints that are kept", ge=1, le=MAX_COUNT, resume=True,
        private=SAFE)] = 2
    track: Annotated[Literal["none", "mlflow", "tensorboard"], setting(
        "experiment tracker that also gets every round",
        resume=True, private=SAFE)] = "none"
    # fmt: on

    @model_validator(mode="after")
    def _count_parties(self) -> Self:
        values = self.partition.values if self.partition else ()
        if self.num_parties is None and (self.parties or values):
            n_parties = len(self.parties or values)
            object.__setattr__(self, "num_parties", n_parties)
        return self

    @model_validator(mode="after")
    def _unset_empty(self) -> Self:
        if self.personal == ():  # of nothing: all layers are shared
            object.__setattr__(self, "personal", None)
        return self

    @property
    def has_member_models(self) -> bool:
        """Whether every party keeps a model of its own: the members of an ensemble."""
        return self.fusion_algorithm == "ensemble"

    @property
    def has_own_models(self) -> bool:
        """Whether every party has a model of its own beside the global one."""
        return bool(
            self.personal or self.ditto_lambda is not None or self.finetune_epochs
        )

    @property
    def noise_for_parties(self) -> str | None:
        """Who adds the noise that protects parties: central, distributed or None."""
        mechanism = self.privacy.mechanism if self.privacy else "none"
        return None if mechanism == "none" else mechanism

    @property
    def privacy_mechanisms(self) -> tuple[str, ...]:
        """What protects parties or samples in this run, of `MECHANISMS`."""
        has = {
            "central": self.noise_for_parties == "central",
            "distributed": self.noise_for_parties == "distributed",
            "dp_sgd": self.dp_sgd is not None,
            "secure_aggregation": self.secure_aggregation,
        }
        return tuple(name for name in MECHANISMS if has[name])

    @property
    def fewest_parties(self) -> int | None:
        """Parties of the smallest group with a model of its own; None: not known."""
        by = self.groups.by if self.groups else SIMILARITY
        if by == SIMILARITY or not self.parties:
            return self.num_parties
        return min(Counter(party.fields.get(by) for party in self.parties).values())

    @property
    def takes_documents(self) -> bool:
        """Whether the model trains on documents and is made of the parties' words."""
        return self.model_type in DOCUMENT_MODELS

    def goals(self) -> dict[str, Goal]:
        """What training goes by, by key: what stops it and which model is the best."""
        goals = {key: getattr(self, key) for key in GOALS}
        return {key: goal for key, goal in goals.items() if goal is not None}

    def party_name(self, index: int) -> str:
        """Name of one party; config order is the order in which updates fold."""
        if self.partition and self.partition.values:
            return self.partition.names[index]
        if index >= POPULATION:
            return f"edge-{index - POPULATION}"
        return self.parties[index].name if self.parties else f"party-{index}"

    def party_place(self, name: str) -> int | None:
        """Place in the config of a party of this name; None if there is none."""
        values = self.partition.names if self.partition else ()
        names = [*values, *(party.name for party in self.parties)]
        if names:
            return names.index(name) if name in names else None
        number = name.removeprefix("party-")
        place = int(number) if number.isdecimal() and len(number) < 12 else -1
        is_there = 0 <= place < (self.num_parties or 0)
        return place if is_there and self.party_name(place) == name else None

    def member(self, index: int) -> Self:
        """The config that one party trains by: its own settings over everyone's."""
        spec = self.parties[index] if self.parties else None
        values = {key: getattr(spec, key, None) for key in MEMBER_KEYS}
        own = {key: value for key, value in values.items() if value not in (None, "")}
        for key in set(MEMBER_RESETS) & set(own):
            own = {**MEMBER_RESETS[key], **own}
        return self.with_changes(**own) if own else self
