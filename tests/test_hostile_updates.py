"""Updates that lie are refused, each with its reason, and the rest goes on."""

import dataclasses

import numpy as np
import pytest
from support.local_rounds import group_of

import fedray
from fedray import fusion
from fedray.aggregator.node_combiner import CombineStep, combine_on_node
from fedray.aggregator.party_actors import WorkItem
from fedray.aggregator.validation import UpdateValidator, check_report, explosion_notes
from fedray.config import parse
from fedray.errors import RoundFailed, TooManyRefused
from fedray.fusion import ExpectedUpdate
from fedray.messages import Origin, Rejection, Report, RoundReport, Update
from fedray.privacy.sample_budget import Spending
from fedray.weights import encoding, schema

BASE = {"w": np.ones((2, 3), "f4"), "b": np.zeros(3, "f2"), "n": np.array(5)}
ORIGIN = Origin("run", 4, 7)
EXPECTED = ExpectedUpdate(ORIGIN, max_samples=100)
RULE = fusion.named("fedavg")
VALIDATOR = UpdateValidator(schema(BASE), "float32", max_norm=10.0)


def sent(origin=ORIGIN, n_samples=100, n_parties=1, **tensors) -> Update:
    return Update({**BASE, **tensors}, n_samples, n_parties, origin)


def without(name: str) -> Update:
    weights = {key: array for key, array in BASE.items() if key != name}
    return Update(weights, 1, 1, ORIGIN)


def w(value=1.0, dtype="f4", shape=(2, 3)) -> np.ndarray:
    return np.full(shape, value, dtype)


HOSTILE = {
    "NaN": (sent(w=w(np.nan)), "tensor 'w' is not finite"),
    "infinity": (sent(w=w(-np.inf)), "tensor 'w' is not finite"),
    "float16 overflow": (sent(b=w(np.inf, "f2", 3)), "'b' is not finite"),
    "integers": (sent(w=w(1, "i4")), "'w' got int32[2, 3], needed float32[2, 3]"),
    "float64": (sent(w=w(1, "f8")), "got float64"),
    "complex": (sent(w=w(1, "c8")), "got complex64"),
    "objects": (sent(w=w(None, object)), "got object"),
    "another byte order": (sent(w=w(1, ">f4")), "needed float32"),
    "another shape": (sent(w=w(shape=(6,))), "got float32[6]"),
    "transposed": (sent(w=w(shape=(3, 2))), "got float32[3, 2]"),
    "a scalar for a count": (sent(n=np.array([5])), "got int64[1]"),
    "a missing tensor": (without("b"), "tensors missing: ['b']"),
    "an extra tensor": (sent(x=w()), "not of this model: ['x']"),
    "a renamed tensor": (
        Update({"W": w(), "b": BASE["b"], "n": BASE["n"]}, 1, 1, ORIGIN),
        "missing: ['w'], not of this model: ['W']",
    ),
    "nothing": (Update({}, 1, 1, ORIGIN), "tensors missing"),
    "lists": (Update(BASE | {"w": [[1.0] * 3] * 2}, 1, 1, ORIGIN), "is a list"),
    "no mapping": (Update([w()], 1, 1, ORIGIN), "weights are a list"),
    "no update": ({"w": w()}, "sent a dict, not an Update"),
    "no samples": (sent(n_samples=0), "from 1 to 100, got 0"),
    "negative samples": (sent(n_samples=-3), "from 1 to 100, got -3"),
    "NaN samples": (sent(n_samples=float("nan")), "from 1 to 100, got nan"),
    "too many samples": (sent(n_samples=10**18), "from 1 to 100"),
    "more samples than declared": (sent(n_samples=101), "from 1 to 100, got 101"),
    "samples as a float": (sent(n_samples=1e18), "from 1 to 100"),
    "samples as a bool": (sent(n_samples=True), "from 1 to 100, got True"),
    "samples as text": (sent(n_samples="9" * 999), "from 1 to 100, got '9999"),
    "speaking for others": (sent(n_parties=9), "speaks for itself, not for 9"),
    "a stale round": (
        sent(Origin("run", 3, 7)),
        "round 3, party at place 7, asked for",
    ),
    "another party's": (sent(Origin("run", 4, 6)), "party at place 6, asked for was"),
    "another federation's": (sent(Origin("other", 4, 7)), "is of run 'other', round 4"),
    "no origin": (sent(None), "is of a NoneType instead of an origin"),
    "a step a million times too long": (sent(w=w(1e6)), "above max_update_norm 10"),
    "a step of infinite length": (sent(w=w(3e38)), "above max_update_norm 10"),
    "a long step of the buffers": (sent(b=np.full(3, 99, "f2")), "max_update_norm 10"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_false_metadata_is_refused_with_its_reason(kind):
    update, told = HOSTILE[kind]
    rejection = VALIDATOR.validate(update, BASE, EXPECTED)
    assert isinstance(rejection, Rejection)
    assert told in rejection.detail
    assert len(rejection.detail) < 300  # it goes into every record


def test_valid_updates_zeros_and_unchanged_weights_are_accepted():
    for update in (sent(), sent(n_samples=1), sent(w=w(0.0))):
        assert VALIDATOR.validate(update, BASE, EXPECTED).weights is update.weights


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_travels_narrow_is_checked_once_it_is_wide(dtype):
    validator = dataclasses.replace(VALIDATOR, wire_dtype=dtype)

    def validated(weights):
        packed = encoding.pack(BASE | weights, dtype, BASE)
        return validator.validate(Update(packed, 1, 1, ORIGIN), BASE, EXPECTED)

    assert isinstance(validated({}), Update)
    assert "not finite" in validated({"w": w(np.inf)}).detail
    assert "max_update_norm" in validated({"w": w(100.0)}).detail


def test_a_node_that_combines_refuses_the_same_and_folds_the_rest():
    lies = [update for update, _ in HOSTILE.values()]
    honest = sent(Origin("run", 4, 99), w=w(3.0), n_samples=2)
    expected = [ExpectedUpdate(Origin("run", 4, 7), 100)] * len(lies)
    expected.append(ExpectedUpdate(honest.origin, 2))
    for update, (kind, (_, told)) in zip(lies, HOSTILE.items(), strict=True):
        step = CombineStep(RULE, VALIDATOR, [expected[0], expected[-1]], True)
        fused, refused = combine_on_node._function(
            step, BASE, None, None, update, honest
        )
        assert told in refused[7].detail, kind
        assert (fused.weights["w"] == 3).all()
        assert (fused.n_samples, fused.n_parties) == (2, 1)


def test_a_group_refuses_steps_that_are_too_long(settings):
    del settings["parties"]
    settings |= {"num_parties": 3, "partition": {"samples_per_party": 20}}
    group, weights = group_of(settings, range(3))
    report, _ = group.train(1, np.arange(3), weights)
    middle = float(np.sort(report.drift)[1])
    strict, _ = group_of(settings | {"max_update_norm": middle * 1.0001}, range(3))
    report, update = strict.train(1, np.arange(3), weights)
    (far,) = report.refused
    assert "above max_update_norm" in report.refused[far].detail
    assert report.drift[far] == report.drift.max()
    assert update.n_parties == 2


ITEM = WorkItem("a", "node", np.array([3, 5]), False)
COLUMN = np.array([10, 20])
NONE, ENDLESS = Rejection("none of the codes", ""), Rejection("norm", "x" * 10**6)


def report(**changed) -> Report:
    good = Report(4, "node", ITEM.parties, COLUMN, COLUMN / 7, COLUMN / 9, 0.5, 100)
    return dataclasses.replace(good, **changed)


def spent(**changed) -> Report:
    n_steps = np.array([5, 5])
    good = Spending(COLUMN / 7, COLUMN / 8, COLUMN / 9, COLUMN / 99, n_steps, 1e-5)
    return report(spending=good._replace(**changed))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("hello", "is a str"),
        (report(spending=(1, 2)), "does not say what its privacy has cost"),
        (spent(delta=1.0), "does not say what its privacy has cost"),
        (spent(delta=None), "does not say what its privacy has cost"),
        (spent(epsilon=COLUMN / -1), "does not say what its privacy has cost"),
        (spent(run_epsilon=COLUMN * np.nan), "does not say what its privacy has cost"),
        (spent(run_epsilon=COLUMN[:1] / 1), "does not say what its privacy has cost"),
        (spent(n_steps=COLUMN / 1), "does not say what its privacy has cost"),
        (report(round=3), "is of round 3, not of round 4"),
        (report(round=True), "is of round True"),
        (report(parties=np.array([3, 6])), "names other parties"),
        (report(parties=np.array([3, 3, 5])), "names other parties"),
        (report(parties=[3, 5]), "names other parties"),
        (report(n_samples=np.array([10, 0])), "counts no samples"),
        (report(n_samples=np.array([10, 21])), "more than the party declared"),
        (report(n_samples=np.array([10, 2**60])), "more than the party declared"),
        (report(n_samples=np.array([10.0, np.nan])), "has no sample count"),
        (report(n_samples=np.array([10])), "has no sample count"),
        (report(loss=None), "has no loss and drift"),
        (report(drift=np.ones((2, 2))), "has no loss and drift"),
        (report(seconds=float("nan")), "has no seconds"),
        (report(seconds=-1.0), "has no seconds"),
        (report(n_bytes=-1), "has no count of bytes"),
        (report(n_bytes=2**60), "has no count of bytes"),
        (report(node=None), "names no node or process"),
        (report(node="x" * 10**6), "names no node or process"),
        (
            report(refused={4: Rejection("norm", "no")}),
            "refuses parties in another form",
        ),
        (report(refused={3: "no"}), "refuses parties in another form"),
        (report(refused={3: NONE}), "refuses parties in another form"),
        (report(refused={3: ENDLESS}), "refuses parties in another form"),
    ],
)
def test_a_report_is_believed_in_nothing_it_makes_up(answer, told):
    outcome = check_report(answer, ITEM, 4, np.array([10, 20]))
    assert (outcome.kind, outcome.code) == ("refused", "report")
    assert told in str(outcome)


def test_a_true_report_has_no_flaw_also_of_parties_that_had_not_joined():
    assert check_report(spent(), ITEM, 4, np.array([10, 20])) is None
    assert check_report(report(), ITEM, 4, np.array([10, 20])) is None
    assert check_report(report(), ITEM, 4, np.zeros(2, int)) is None
    diverged = report(loss=np.array([np.nan, np.inf]))  # its update is looked at
    assert check_report(diverged, ITEM, 4, np.zeros(2, int)) is None


@pytest.mark.usefixtures("cluster")
def test_every_refusal_is_counted_and_too_many_end_the_federation(settings, tmp_path):
    settings |= {"max_update_norm": 1e-6, "max_refused": 1, "quorum": 0.5}
    with pytest.raises(RoundFailed, match="no update could be fused"):
        fedray.run(settings, run_dir=tmp_path / "all")
    # one party of two steps too far: found by the norms of an honest run
    first = settings | {"max_update_norm": None, "rounds": 1}
    honest = fedray.run(first, run_dir=tmp_path / "first").history[0]
    near, far = sorted(honest.parties, key=lambda party: party.drift)
    settings["max_update_norm"] = (near.drift + far.drift) / 2
    with pytest.raises(
        TooManyRefused, match=r"2 updates were refused, max_refused is 1"
    ):
        fedray.run(settings, run_dir=tmp_path / "run", rounds=5)
    from fedray.checkpoint import RunFolder

    history = RunFolder(tmp_path / "run").history()
    assert [report.refused for report in history] == [1, 1]
    told = {p.name: p.outcome for p in history[0].parties}
    assert told[near.name] == "fused"
    assert told[far.name].startswith("refused: its step of length")
    with pytest.raises(TooManyRefused):  # nothing is trained before it is told again
        fedray.run(settings, run_dir=tmp_path / "run", rounds=5, resume=True)
    assert len(RunFolder(tmp_path / "run").history()) == 2


def test_the_bounds_are_checked_in_the_config(mlp):
    base = {"architecture": mlp, "partition": {}, "num_parties": 2}
    for keys, told in {
        "max_update_norm": (0, "max_update_norm must be above 0"),
        "max_refused": (-1, "max_refused must be between 0"),
    }.items():
        _, found = parse(base | {keys: told[0]})
        assert told[1] in found[0]


@pytest.mark.usefixtures("cluster")
def test_refused_updates_are_missing_in_the_quorum_unless_they_are_borne(
    settings, digits, tmp_path
):
    settings["rounds"] = 1
    settings["parties"].append({"name": "c", "data": digits("c", 40, skip=104)})
    honest = fedray.run(settings, run_dir=tmp_path / "honest").history[0]
    *_, near, far = sorted(honest.parties, key=lambda party: party.drift)
    settings["max_update_norm"] = (near.drift + far.drift) / 2
    needed = f"3 reported, 1 of them refused, 3 needed. Not fused:\n  - {far.name}: ref"
    with pytest.raises(RoundFailed, match=needed):
        fedray.run(settings, run_dir=tmp_path / "mean")
    for i, borne in enumerate(
        [{"fusion_algorithm": "median"}, {"max_refused": 1}, {"quorum": 0.6}]
    ):
        done = fedray.run(settings | borne, run_dir=tmp_path / str(i)).history[0]
        assert (done.reported, done.fused, done.refused) == (3, 2, 1)


def losses_of(*losses, accuracy=0.5) -> list[RoundReport]:
    sizes = {"chosen": 2, "reported": 2, "fused": 2, "aggregated": True, "refused": 0}
    sizes |= {"bytes_moved": 0, "seconds": 1.0, "train_seconds": 1.0}
    sizes |= {"evaluate_seconds": 0.0, "evaluated": 9}
    return [
        RoundReport(round=i, loss=loss, accuracy=accuracy, **sizes)
        for i, loss in enumerate(losses, 1)
    ]


@pytest.mark.parametrize(
    ("losses", "accuracy", "is_exploding"),
    [
        ([7e29], 0.1, True),
        ([2.3, 2e4], 0.1, True),
        ([float("nan")], None, True),
        ([0.5, 6e3], None, True),
        ([1e12, 1e13], None, False),  # of large targets
        ([2.3, 1e-9, 4.0], 0.9, False),
        ([2.3, None], None, False),
        ([7e29, 8e29], 0.1, False),  # was told in round 1
    ],
)
def test_a_loss_that_explodes_is_told_once_with_what_to_do(
    losses, accuracy, is_exploding
):
    *earlier, report = losses_of(*losses, accuracy=accuracy)
    notes = explosion_notes(report, earlier)
    assert len(notes) == is_exploding
    assert all(f"round {len(losses)}: " in note for note in notes)
    assert all("explodes: lower learning_rate" in note for note in notes)


def test_refused_updates_and_the_runs_error_say_to_lower_the_learning_rate(
    cluster, settings, tmp_path
):
    huge = {"learning_rate": 1e38, "proximal_mu": 0.0}
    with pytest.raises(RoundFailed, match=r"not finite.*exploded: lower"):
        fedray.run(settings | huge, run_dir=tmp_path / "run")
