"""Loading of a party group's model and samples, once in its actor's life."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fedray import data, models, policy
from fedray.config import FederationConfig, rate_function
from fedray.datasets import DatasetPart
from fedray.errors import DataError
from fedray.fusion import attacks
from fedray.messages import SAME, Scores
from fedray.models import (
    BatchModel,
    Blueprint,
    Model,
    PartySlice,
    ReadySamples,
    ScoredModel,
)
from fedray.nested import Arrays, is_mapped, is_one, select
from fedray.party.data_fingerprint import fingerprints
from fedray.party.data_record import compare_with_record
from fedray.party.failures import READING, sanitize_errors
from fedray.survey import DataCodes
from fedray.weights import Weights

PartyData = data.Samples | data.LazySamples | data.Documents | data.AnyData


@dataclass(frozen=True)
class GroupPlan:
    """Start parameters of a party actor. Small; travels by value.

    parties : places in the config of the parties that this actor can train.
    own_folder : of this run on the actor's node, where parties keep what is theirs
        (`PartyStateStore`); empty: there is none.
    trains : whether it trains at all, or only evaluates `test_data`.
    load : reads samples, as `data.load` does.
    """

    name: str
    parties: range
    config: FederationConfig
    blueprint: Blueprint
    handler: data.HandlerSource
    run: str = ""  # the federation's, which updates carry
    data_record: str = ""  # file with a digest of the data, on the actor's node
    own_folder: str = ""
    trains: bool = True
    codes: DataCodes | None = None  # made of all parties' surveys, if there were any
    load: Callable[..., Any] = data.load

    @property
    def data_args(self) -> dict[str, Any]:
        """Options of the data handler."""
        return self.config.data_args_of(self.parties.start)

    @property
    def origin(self) -> data.Origin:
        """Whose data the handler reads."""
        config, partition = self.config, self.config.partition
        is_last = config.model_type == "keras"
        if partition is not None:
            seed, by = config.seed, partition.by
            return data.Origin(seed=seed, channels_last=is_last, by=by)
        party = config.parties[self.parties.start]
        root, is_test = party.data_root or "", not self.trains
        return data.Origin(
            party.name, config.seed, root, is_test, channels_last=is_last
        )

    @contextlib.contextmanager
    def open_source(self) -> Iterator[str]:
        """Path of its data, or of the data set that its parties are cut from.

        It is read within the block: a path that has to lie in a data root is checked
        before and after.
        """
        if self.config.partition is not None:
            yield self.config.partition.source
            return
        party = self.config.parties[self.parties.start]
        if not party.data_root:
            yield party.data
            return
        with data.unmoved_in_root(party.data, party.data_root) as path:
            yield path


class LocalData(NamedTuple):
    """An actor's model and samples; each party's samples are rows, not a copy."""

    model: Model
    train: ReadySamples
    test: ReadySamples
    rows: np.ndarray  # of every party's training samples, one party after another
    starts: np.ndarray  # (parties + 1,) where each party's part of `rows` starts
    n_train: np.ndarray  # (parties,) training samples that weight each
    test_starts: np.ndarray  # (parties + 1,) where each one's test samples start
    config: FederationConfig  # with what a DataLoader of the party's says
    data_state: str = SAME  # beside what the run began with: SAME, CHANGED or FIRST
    # of each party's training samples, where DP-SGD keeps account of them
    fingerprints: tuple[str, ...] = ()
    is_in_memory: bool = False  # all training samples: none is read again

    def signature(self, config: FederationConfig) -> tuple[tuple[int, ...], int]:
        """Shape of a sample and number of classes; empty but for ensembles."""
        if not config.has_member_models or not isinstance(self.model, ScoredModel):
            return (), 0
        first = self.train.first()
        if first is None:
            return (), 0
        shape = tuple(first.shape[1:]) if is_one(first) else ()
        return shape, self.model.probabilities(first).shape[1]

    def has_tests(self, parties: np.ndarray) -> np.ndarray:
        """Whether parties have test samples, by their places within the group."""
        return np.diff(self.test_starts)[parties] > 0

    def score(
        self,
        weights: Weights,
        part: tuple[int, int] = (0, 1),
        parties: np.ndarray | None = None,
        round: int = 0,
    ) -> Scores:
        """Evaluate weights on the test samples, all together and by party.

        round : after which.
        part : (i, n) takes the i-th of n equal parts.
        parties : whose samples, by their places within the group; None: everyone's.
        """
        places = np.arange(len(self.n_train)) if parties is None else parties
        lengths = np.diff(self.test_starts)[places]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        test_rows: np.ndarray | slice = slice(*_share(len(self.test), part))
        if parties is not None:
            spans = [np.arange(*self.test_starts[i : i + 2]) for i in parties]
            test_rows = np.concatenate([np.arange(0), *spans])
            test_rows = test_rows[slice(*_share(len(test_rows), part))]
        samples = self.test.take(test_rows)
        if not len(samples) or not isinstance(self.model, ScoredModel):
            return Scores()
        self.model.load(weights)
        low, high = _share(int(starts[-1]), part)
        own_starts = np.clip(starts, low, high) - low
        if len(places) == 1:  # data without a length counts as one sample
            own_starts = np.array([0, len(samples)])
        scores = self.model.evaluate(samples, own_starts, round=round)
        assert scores.by_party is not None
        return scores._replace(by_party=scores.by_party.at(places))


def _share(n_samples: int, part: tuple[int, int]) -> tuple[int, int]:
    """First and last place of the i-th of n equal parts."""
    i, n = part
    return n_samples * i // n, n_samples * (i + 1) // n


def load_local_data(plan: GroupPlan, device: str, node: str = "") -> LocalData:
    """Read the data and make the model; `node` is the Ray id of this one."""
    samples, pieces, n_tests, digest = read_samples(plan, node)
    data_state = compare_with_record(plan.data_record, digest)
    del digest  # and with it all samples of a data set that parties are cut from
    samples, pieces = _flip_hostile_labels(plan, samples, pieces)
    adapter = models.named(plan.blueprint.model_type)
    config = _with_own_batches(plan.config, samples)
    model = adapter.make(plan.blueprint, config, device)
    if config.metrics and isinstance(model, ScoredModel):
        model.metrics = models.plan_metrics(config, plan.blueprint)
    has_account = plan.config.dp_sgd is not None and plan.trains
    lengths = [len(piece) for piece in pieces]
    n_train = [samples.n_train] if plan.config.partition is None else lengths
    return LocalData(
        model,
        model.ready(samples.train),
        model.ready(samples.test),
        pieces[0] if len(pieces) == 1 else np.concatenate(pieces),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.array(n_train),
        np.concatenate([[0], np.cumsum(n_tests)]),
        config,
        data_state,
        tuple(fingerprints(samples, pieces)) if has_account else (),
        isinstance(samples, data.Samples) and not is_mapped(samples.train),
    )


def _with_own_batches(config: FederationConfig, samples: PartyData) -> FederationConfig:
    """The config with a DataLoader's batch size, unless the config itself gives one."""
    if not isinstance(samples.train, DatasetPart):
        return config
    own = samples.train.settings
    new = {key: own[key] for key in own if key not in config.model_fields_set}
    return config.with_changes(**new) if new else config


def party_slices(
    plan: GroupPlan, local_data: LocalData, round: int, parties: np.ndarray
) -> list[PartySlice]:
    """What each of these parties trains in a round, (K,) places in the config."""
    slices = []
    for party in parties.tolist():
        i = party - plan.parties.start
        rows = local_data.rows[local_data.starts[i] : local_data.starts[i + 1]]
        name = plan.config.party_name(party)
        seed = policy.seed_for(plan.config.seed, round, name)
        slices.append(PartySlice(rows, seed, name, round))
    return slices


def last_rates(model: Model, slices: Sequence[PartySlice]) -> np.ndarray:
    """The learning rate of each party's last step in a round."""
    rates = np.full(len(slices), np.nan)
    if not isinstance(model, BatchModel):
        return rates
    rate_at = functools.cache(functools.partial(rate_function, model.config))
    for k, part in enumerate(slices):
        n_steps = model.count_steps(len(part.rows))
        rates[k] = rate_at(part.round, n_steps, part.learning_rate)(n_steps - 1)
    return rates


class PartySamples(NamedTuple):
    """All samples of a group's parties, and each party's places in them.

    n_tests : of each party; its test samples come after those of the one before.
    digest : of the file that they are from, which all parties of a partition share.
    """

    samples: PartyData
    pieces: list[np.ndarray]
    n_tests: list[int]
    digest: Callable[[], str]


def read_samples(plan: GroupPlan, node: str = "") -> PartySamples:
    """Read the samples of this group's parties."""
    with sanitize_errors(plan, READING, node):
        samples = _samples(plan)
        adapter = models.named(plan.config.model_type)
        kind = samples.samples.kind
        if adapter.takes not in (kind, "anything"):
            got = "documents" if kind == "documents" else "samples"
            needed = f"what model_type: {plan.config.model_type} trains on"
            raise DataError(plan.name, f"{got} from the data_handler", needed)
        return samples


def _samples(plan: GroupPlan) -> PartySamples:
    with plan.open_source() as source:
        return _read_source(plan, source)


def _read_source(plan: GroupPlan, source: str) -> PartySamples:
    config, parties = plan.config, plan.parties
    args, origin = plan.data_args, plan.origin
    if models.named(config.model_type).takes == "anything" and not config.partition:
        every = data.load_as_given(plan.handler, source, args, origin, plan.codes)
        rows = [np.arange(every.n_rows)]
        return PartySamples(every, rows, [every.n_test], every.digest)
    whole = plan.load(plan.handler, source, args, origin, plan.codes)
    if config.partition is None:
        pieces = [_all_rows(whole.train)]
        return PartySamples(whole, pieces, [whole.n_test], whole.digest)
    n_parties, seed = config.num_parties or len(parties), config.seed
    own, pieces, n_tests = data.partition_samples(
        whole, parties, n_parties, config.partition, seed
    )
    return PartySamples(own, pieces, n_tests, whole.digest)


def _all_rows(part: Arrays | DatasetPart) -> np.ndarray:
    """Places of all samples; of a stream as many zeros, which take no memory."""
    if isinstance(part, DatasetPart) and part.is_stream:
        return np.broadcast_to(np.int64(0), part.n_samples)
    return np.arange(part.n_samples)


def _flip_hostile_labels(
    plan: GroupPlan, samples: PartyData, pieces: list[np.ndarray]
) -> tuple[PartyData, list[np.ndarray]]:
    """Give hostile parties flipped copies of their samples, if labels are attacked.

    Copies, since the parties of an actor may share samples.
    """
    attack = plan.config.attack
    if attack is None or attack.kind not in attacks.ON_LABELS:
        return samples, pieces
    if isinstance(samples, data.Documents):  # they have no labels to flip
        return samples, pieces
    if isinstance(samples, data.AnyData):
        got = f"data of any form, with attack: {attack.kind}"
        needed = "a partition, whose labels can be flipped, or another attack"
        raise DataError(plan.name, got, needed)
    hostile = {plan.config.party_place(name) for name in attack.parties}
    if not hostile & set(plan.parties):
        return samples, pieces
    if not isinstance(samples, data.Samples) or not is_one(samples.y_train):
        got, needed = "targets that are no array of labels", "one, whose labels flip"
        raise DataError(plan.name, f"attack {attack.kind} on {got}", needed)
    pieces, rows = list(pieces), [np.arange(samples.train.n_samples)]
    y = [samples.y_train[:]]
    n_rows = len(rows[0])
    for k, party in enumerate(plan.parties):
        if party in hostile:
            rows.append(pieces[k])
            y.append(attacks.flip_labels(y[0][pieces[k]], attack.n_classes))
            pieces[k] = np.arange(n_rows, n_rows + len(pieces[k]))
            n_rows += len(pieces[k])
    x = select(samples.x_train, np.concatenate(rows))
    return replace(samples, x_train=x, y_train=np.concatenate(y)), pieces
