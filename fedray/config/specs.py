"""Settings that are mappings of their own: a party, a partition, groups, an attack."""

import functools
import itertools
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    model_validator,
)

from fedray.config.declaration import (
    GIVEN,
    MAX_COUNT,
    MECHANISMS,
    SAFE,
    OtherThan,
    Private,
    private_with,
    setting,
)
from fedray.config.mistakes import MAX_TEXT, problems_of
from fedray.errors import ConfigError
from fedray.untrusted_text import MAX_NAME, name_of_file, name_problem, same_name

LABEL = re.compile(r"[A-Za-z0-9./_-]{1,128}")
SIMILARITY = "similarity"  # what groups may go by, other than a field
BY_FIELD = Private(
    dict.fromkeys(MECHANISMS, OtherThan((SIMILARITY,))),
    "sketches of the parties' updates, without noise, would decide who is alike: take "
    "a name of the parties' fields",
)
NOT_AT_THE_DOOR = private_with(
    "dp_sgd",
    why="the door of the edges sees single updates, who sends one and when: list "
    "parties within the cluster, or take dp_sgd, whose noise an edge adds itself",
)
MAX_ALIKE = 2_000  # parties that are compared with each other
MAX_CANDIDATES = 8  # each travels to every party
MEMBER_KEYS = (
    "model_type", "model_file", "architecture", "architecture_args", "optimizer",
    "optimizer_args", "learning_rate", "loss", "loss_args", "epochs", "trainable",
)  # fmt: skip
# a member's own key, and what it then has of others instead of everyone's value
MEMBER_RESETS: dict[str, dict[str, Any]] = {
    "model_file": {"architecture": None, "architecture_args": {}, "trainable": None},
    "architecture": {"model_file": None, "architecture_args": {}, "trainable": None},
    "optimizer": {"optimizer_args": {}},
    "loss": {"loss_args": {}},
}


def is_uri(text: str) -> bool:
    """Whether `data` is like ``s3://bucket/key``, and so no path."""
    return "://" in text


def _check_text(text: str) -> str:
    if len(text) > MAX_TEXT or "\0" in text:
        raise ValueError("text too long, or with NUL in it")
    return text


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Text = Annotated[str, AfterValidator(_check_text)]
LIST_OR_TUPLE = BeforeValidator(_to_tuple)


class Settings(BaseModel):
    """Settings as a frozen object: wrong types, bounds and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=False,
        protected_namespaces=(),
    )

    def __init__(self, *values: Any, **named: Any) -> None:
        """Values by name, or in the order of the keys.

        Raises
        ------
        ConfigError
            With every mistake that can be seen in the values one by one.
        """
        names = list(type(self).model_fields)
        if len(values) > len(names) or set(names[: len(values)]) & set(named):
            raise TypeError(f"{type(self).__name__}: too many values, or one twice")
        named |= dict(zip(names, values, strict=False))
        try:
            super().__init__(**named)
        except ValidationError as error:
            raise ConfigError(problems_of(error, type(self))) from None

    # pydantic then does not call it for settings within settings: their mistakes stay
    # apart and get the path of the outer ones
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def with_changes(self, **changes: Any) -> Self:
        """The same settings but for some.

        Raises
        ------
        ConfigError
            With every mistake in the changed values.
        """
        values = {key: getattr(self, key) for key in self.model_fields_set}
        return type(self)(**(values | changes))


class PartySpec(Settings):
    """A real party: its name, where its data lies, which node may hold it."""

    name: Annotated[
        Text,
        setting(
            "the party's name",
            private=SAFE,
        ),
    ]
    data: Annotated[
        Text,
        setting(
            "path of its data, on the party's own node",
            private=SAFE,
        ),
    ]
    labels: Annotated[
        dict[str, str],
        setting(
            "labels of the node that may hold it",
            unset="the driver's node",
            private=SAFE,
        ),
    ] = {}
    fields: Annotated[
        dict[str, str],
        setting(
            "free words about the party; `groups` may go by one",
            private=SAFE,
        ),
    ] = {}
    data_handler: Annotated[
        Text | None,
        setting(
            "data handler of its own",
            unset="the config's",
            path="code",
            private=SAFE,
        ),
    ] = None
    data_root: Annotated[
        Text | None,
        setting(
            "folder that its data has to lie in",
            unset="anywhere",
            private=SAFE,
        ),
    ] = None
    joined: Annotated[
        int | None,
        setting(
            "first round it takes part in",
            unset="1",
            private=SAFE,
        ),
    ] = None
    left: Annotated[
        int | None,
        setting(
            "first round without it",
            unset="it stays",
            private=SAFE,
        ),
    ] = None
    model_type: Annotated[
        Text | None,
        setting(
            "an ensemble's member: its model type", unset="the config's", path="code"
        ),
    ] = None
    model_file: Annotated[
        Text | None,
        setting("a member's own model file", unset="the config's", path="file"),
    ] = None
    architecture: Annotated[
        Text | None,
        setting("a member's own architecture", unset="the config's", path="file"),
    ] = None
    architecture_args: Annotated[
        dict[str, Any] | None,
        setting("arguments of a member's estimator", unset="the config's"),
    ] = None
    optimizer: Annotated[
        Text | None, setting("a member's own optimizer", unset="the config's")
    ] = None
    optimizer_args: Annotated[
        dict[str, Any] | None,
        setting("arguments of a member's optimizer", unset="the config's"),
    ] = None
    learning_rate: Annotated[
        float | None,
        setting("a member's own learning rate", unset="the config's", gt=0),
    ] = None
    loss: Annotated[
        Text | None, setting("a member's own loss", unset="the config's", path="code")
    ] = None
    loss_args: Annotated[
        dict[str, Any] | None,
        setting("arguments of a member's loss", unset="the config's"),
    ] = None
    trainable: Annotated[
        tuple[Text, ...] | None,
        LIST_OR_TUPLE,
        setting("patterns of a member's tensors that train", unset="the config's"),
    ] = None
    epochs: Annotated[
        int | None,
        setting("a member's own epochs", unset="the config's", ge=1, le=MAX_COUNT),
    ] = None
    data_args: Annotated[
        dict[str, object] | None,
        setting(
            "options of its data handler, over the config's of the same names",
            unset="the config's",
            private=SAFE,
        ),
    ] = None
    edge: Annotated[
        bool,
        setting(
            "it is outside the cluster: `fedray edge` takes part for it",
            private=NOT_AT_THE_DOOR,
        ),
    ] = False

    @model_validator(mode="before")
    @classmethod
    def _without_data(cls, values: Any) -> Any:
        """An edge has no data here: its owner names it at the edge."""
        if isinstance(values, dict) and values.get("edge") is True:
            return {"data": "", **values}
        return values


BY_SCHEME = {"by": (None,)}  # keys of a partition that is not by a column


@functools.cache
def _names_of_values(values: tuple[str, ...]) -> tuple[str, ...]:
    """A name for each value, as near to it as a party's name may be; no two alike."""
    names: dict[str, str] = {}  # by how people see them
    for value in values:
        stem = value if not name_problem(value) else name_of_file(value) or "party"
        tails = itertools.chain([""], (f"-{i}" for i in itertools.count(2)))
        name = next(
            name
            for tail in tails
            if same_name(name := f"{stem[: MAX_NAME - len(tail)]}{tail}") not in names
        )
        names[same_name(name)] = name
    return tuple(names.values())


class PartitionSpec(Settings):
    """Parties cut from one data set."""

    source: Annotated[
        Text,
        setting(
            "mnist (shipped), or a file or folder that every node can read, for "
            "data_handler",
            private=SAFE,
        ),
    ] = "mnist"
    samples_per_party: Annotated[
        int | None,
        setting(
            "training samples of each party; with size_alpha their mean",
            unset="all samples, shared out evenly",
            ge=1,
            le=MAX_COUNT,
            applies=BY_SCHEME,
            private=SAFE,
        ),
    ] = None
    scheme: Annotated[
        Literal["iid", "dirichlet", "shards"],
        setting(
            "how labels are spread over the parties",
            applies=BY_SCHEME,
            private=SAFE,
        ),
    ] = "iid"
    alpha: Annotated[
        float,
        setting(
            "concentration: small values make parties unlike, large ones alike",
            gt=0,
            applies={"scheme": ("dirichlet",), **BY_SCHEME},
            private=SAFE,
        ),
    ] = 0.5
    shards_per_party: Annotated[
        int,
        setting(
            "runs of equal labels that a party gets",
            ge=1,
            le=MAX_COUNT,
            applies={"scheme": ("shards",), **BY_SCHEME},
            private=SAFE,
        ),
    ] = 2
    replace: Annotated[
        bool,
        setting(
            "draw samples with replacement",
            applies=BY_SCHEME,
            private=SAFE,
        ),
    ] = False
    size_alpha: Annotated[
        float | None,
        setting(
            "concentration of the parties' sizes: small values make them unequal",
            unset="as many samples for each",
            gt=0,
            applies=BY_SCHEME,
            examples=(0.5,),
            private=SAFE,
        ),
    ] = None
    by: Annotated[
        Text | None,
        setting(
            "column of a table, or array of an npz: a party of each of its values",
            unset="parties by scheme",
            private=SAFE,
        ),
    ] = None
    values: Annotated[
        tuple[Text, ...],
        LIST_OR_TUPLE,
        setting(
            "values of `by` that become parties, in their order",
            unset="all that there are",
            applies={"by": GIVEN},
            private=SAFE,
        ),
    ] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parties that `values` makes, in their order."""
        return _names_of_values(self.values)


class GroupsSpec(Settings):
    """Parties that share a global model of their own."""

    by: Annotated[
        Text,
        setting(
            "a name of the parties' fields, or similarity of their updates",
            private=BY_FIELD,
        ),
    ]
    k: Annotated[
        int | None,
        setting(
            "number of groups",
            unset="as many as lie far apart",
            applies={"by": (SIMILARITY,)},
        ),
    ] = None


class AttackSpec(Settings):
    """Parties that attack their own federation, simulated; see fedray.fusion.attacks.

    The run's log and report say that it is one.
    """

    kind: Annotated[
        Literal[
            "sign_flip",
            "alie",
            "ipm",
            "label_flip",
            "gaussian",
            "same_value",
            "scaled_poison",
        ],
        setting("what the hostile parties do"),
    ]
    parties: Annotated[
        tuple[Text, ...], LIST_OR_TUPLE, setting("names of the hostile parties")
    ]
    scale: Annotated[
        float | None,
        setting(
            "strength of the attack",
            unset="what the attack's paper has",
            applies={"kind": ("sign_flip", "ipm", "gaussian", "same_value",
                              "scaled_poison")},
        ),
    ] = None  # fmt: skip
    n_classes: Annotated[
        int,
        setting(
            "labels y become n_classes-1-y",
            ge=2,
            le=MAX_COUNT,
            applies={"kind": ("label_flip", "scaled_poison")},
        ),
    ] = 10


class Doc2VecSpec(Settings):
    """A doc2vec model's settings, named as in gensim, but for `min_parties`."""

    vector_size: Annotated[
        int, setting("numbers per word and document vector", ge=1, le=10_000)
    ] = 100
    window: Annotated[
        int,
        setting(
            "words to each side that are context", ge=1, le=10_000, applies={"dm": (1,)}
        ),
    ] = 5
    negative: Annotated[
        int, setting("words drawn against each true one", ge=1, le=1_000)
    ] = 5
    min_count: Annotated[
        int,
        setting(
            "uses, summed over all parties, below which a word is left out",
            ge=1,
            le=MAX_COUNT,
        ),
    ] = 2
    min_parties: Annotated[
        int, setting("words that fewer parties use are left out", ge=1, le=MAX_COUNT)
    ] = 1
    dm: Annotated[
        int,
        setting("1 is distributed memory, 0 a distributed bag of words", ge=0, le=1),
    ] = 1
    sample: Annotated[
        float,
        setting("frequency above which words are thinned out; 0: none are", ge=0, le=1),
    ] = 1e-3
