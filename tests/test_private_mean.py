"""PrivateMean: clipped integer sums of any grouping, and the step they stand for."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedray import fusion
from fedray.aggregator.round import LateUpdate
from fedray.aggregator.stragglers import discount_of, rebase
from fedray.aggregator.validation import UpdateValidator
from fedray.config.conditions import MEANS
from fedray.errors import TooFewUpdates
from fedray.fusion import ExpectedUpdate, PrivateMean, RoundContext, combine
from fedray.fusion.private_mean import MAX_NARROW, SUM, IntegerSum
from fedray.messages import Origin, Rejection, Update
from fedray.privacy.grid import GRID
from fedray.weights import encoding, schema

RNG = np.random.default_rng(0)
BASE = {
    "a": RNG.normal(size=(3, 4)).astype("f4"),
    "n": np.array(3),
    "b": np.array([1.5, 2], "f2"),
}
N_FLOATS = 14


def party_weights(n: int, scale: float = 0.1) -> list[dict[str, np.ndarray]]:
    return [
        {k: np.asarray(a + scale * RNG.normal(size=a.shape), a.dtype)
         for k, a in BASE.items()}
        for _ in range(n)
    ]  # fmt: skip


def rule_of(name: str = "fedavg", clip_norm: float | None = 0.4, n: float = 5):
    return PrivateMean(fusion.named(name), clip_norm, 0.4, n)


def context_of(rule: PrivateMean) -> RoundContext:
    return RoundContext(1, BASE, rule.party_state(rule.init(BASE)))


def additive(rule: PrivateMean, weights: list[dict]) -> list[Update]:
    state = context_of(rule).state
    updates = [Update(own, n_samples=i + 1) for i, own in enumerate(weights)]
    return [rule.to_additive(update, BASE, state) for update in updates]


def difference(weights: dict) -> np.ndarray:
    return np.concatenate(
        [(weights[k].astype(float) - BASE[k]).ravel() for k in ("a", "b")]
    )


def clipped(weights: dict, clip_norm: float = 0.4) -> np.ndarray:
    u = difference(weights)
    return u * min(1, clip_norm / np.linalg.norm(u))


@pytest.mark.parametrize("name", ["fedavg", "iter_avg"])
def test_without_noise_it_is_the_plain_mean_of_clipped_differences(name):
    rule, weights = rule_of(name), party_weights(5)
    total = combine(rule, additive(rule, weights), context_of(rule))
    new, state = rule.step(BASE, total, rule.init(BASE))
    mean = np.mean([clipped(own) for own in weights], axis=0)
    assert difference(new) == pytest.approx(mean, abs=1e-6)
    assert new["n"] == BASE["n"]
    assert state == {}


def test_who_does_not_report_counts_as_one_that_has_not_moved():
    rule, weights = rule_of(n=5), party_weights(2)
    total = combine(rule, additive(rule, weights), context_of(rule))
    new, _ = rule.step(BASE, total, {})
    by_hand = sum(clipped(own) for own in weights) / 5
    assert difference(new) == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("clip_norm", [0.4, None])
def test_any_order_and_grouping_gives_the_same_integers(clip_norm):
    rule, weights = rule_of(clip_norm=clip_norm), party_weights(9)
    context, terms = context_of(rule), additive(rule, weights)
    whole = combine(rule, terms, context)
    for cut in range(1, 9):
        groups = [combine(rule, part, context) for part in (terms[cut:], terms[:cut])]
        again = combine(rule, groups, context)
        assert (again.weights[SUM] == whole.weights[SUM]).all()
        assert (again.n_parties, again.n_samples) == (9, whole.n_samples)
    stack = {k: np.stack([own[k] for own in weights]) for k in BASE}
    merged = rule.merge(stack, np.arange(1, 10), context)
    assert (merged.weights[SUM] == whole.weights[SUM]).all()
    assert (merged.n_parties, merged.n_samples) == (9, 45)
    assert len(whole.weights[SUM]) == N_FLOATS + (clip_norm is None)


def test_a_count_says_how_many_were_within_the_clip_norm():
    rule = rule_of(clip_norm=None)
    weights = [*party_weights(3, scale=1e-3), *party_weights(4, scale=9.0)]
    total = combine(rule, additive(rule, weights), context_of(rule))
    assert total.weights[SUM][-1] == 3 - 4
    _, state = rule.step(BASE, total, rule.init(BASE))
    by_hand = 0.4 * np.exp(-0.2 * (-1 / 2 / 5))
    assert rule.clip_norm(state) == pytest.approx(by_hand)
    assert set(rule.party_state(state)) == {"privacy"}


@pytest.mark.parametrize("name", MEANS)
def test_server_optimizers_step_from_the_mean_that_is_released(name):
    rule, inner = rule_of(name, clip_norm=None), fusion.named(name)
    state, own_state = rule.init(BASE), inner.init(BASE)
    base = BASE
    for _ in range(3):
        total = np.rint(RNG.normal(size=N_FLOATS + 1) * GRID).astype(np.int64)
        total[-1] = 3
        update = Update({SUM: total}, 5, 5)
        factor = rule.clip_norm(state) / ((GRID - N_FLOATS**0.5 / 2) * 5)
        mean = dict(base)
        mean["a"] = base["a"] + (total[:12] * factor).astype("f4").reshape(3, 4)
        mean["b"] = base["b"] + (total[12:14] * factor).astype("f4")
        wanted, own_state = inner.step(base, Update(mean, 5, 5), own_state)
        new, state = rule.step(base, update, state)
        for key, array in wanted.items():
            assert new[key] == pytest.approx(array, abs=1e-5)
        base = {k: np.asarray(new[k], BASE[k].dtype) for k in BASE}
    assert set(state) == {*own_state, "privacy"}
    assert set(rule.party_state(state)) == {"privacy"}  # no momentum travels


def test_sums_travel_narrow_while_they_surely_fit_and_are_added_wide():
    accumulator, most = IntegerSum("fedavg"), np.full(3, GRID, np.int32)
    accumulator.add(Update({SUM: most * 2047}, 2047, 2047))
    narrow = accumulator.result().weights[SUM]
    assert (narrow.dtype, narrow[0]) == (np.int32, 2047 * GRID)
    accumulator.add(Update({SUM: most}, 1))
    wide = accumulator.result().weights[SUM]
    assert (wide.dtype, wide[0]) == (np.int64, 2048 * GRID)
    assert MAX_NARROW == 2047
    with pytest.raises(TooFewUpdates, match="iter_avg needs 1 update"):
        IntegerSum("iter_avg").result()


def test_a_late_sum_counts_less_and_no_party_moves_it_by_more_than_the_grid():
    rule = rule_of()
    for scale in (2**-0.5, 3**-0.5, 0.1):
        for _ in range(20):
            direction = RNG.normal(size=1000)
            own = np.rint(direction / np.linalg.norm(direction) * (GRID - 16))
            others = RNG.integers(-(2**24), 2**24, 1000)
            sums = [others.astype(np.int32), (others + own).astype(np.int32)]
            late = [
                rule.discount(Update({SUM: s}, 9, 9), scale).weights[SUM] for s in sums
            ]
            moved = np.linalg.norm(late[1].astype(float) - late[0])
            assert moved <= GRID
            assert moved == pytest.approx(scale * GRID, rel=0.01)
            assert late[0].dtype == np.int32


def test_a_late_update_of_one_party_is_discounted_once():
    rule, update = rule_of(), Update(BASE, 1)
    assert rule.discount(update, 0.5) is update


def test_a_late_update_counts_from_todays_weights_by_its_age():
    """By hand: two rounds late, so 1/√3 of what it moved, then clipped."""
    now = {k: np.asarray(a + 1, a.dtype) for k, a in BASE.items()}
    then, today = SimpleNamespace(weights=BASE), SimpleNamespace(weights=now)
    late, rule = LateUpdate(None, 1, then), rule_of(clip_norm=100.0)
    (own,) = party_weights(1)
    rebased = rebase(Update(own, 1), late, today, round=3)
    rebased = rule.discount(rebased, discount_of(late, 3))
    values = rule.to_additive(rebased, now, {}).weights[SUM]
    moved = values * 100 / (GRID - N_FLOATS**0.5 / 2)
    assert moved == pytest.approx(difference(own) * 3**-0.5, abs=2e-3)  # half floats
    total = combine(rule, additive(rule, party_weights(3)), context_of(rule))
    rebased = rebase(total, late, today, round=3)
    assert (rebased.weights[SUM] == total.weights[SUM]).all()
    scaled = rule.discount(rebased, discount_of(late, 3)).weights[SUM]
    assert (scaled == np.rint(total.weights[SUM] * 3**-0.5)).all()


def test_a_step_without_a_number_of_parties_is_refused():
    with pytest.raises(ValueError, match="number of parties expected"):
        rule_of(n=0).step(BASE, Update({SUM: np.zeros(14, np.int64)}, 1), {})


def test_a_sum_of_another_model_is_refused_at_the_step():
    with pytest.raises(ValueError, match=r"shape \(13,\)"):
        rule_of().step(BASE, Update({SUM: np.zeros(13, np.int64)}, 1), {})


def validator(rule: PrivateMean, wire_dtype: str = "float32") -> UpdateValidator:
    form = schema(BASE)
    return UpdateValidator(form, wire_dtype, sums=rule.sum_schema(form))


@pytest.mark.parametrize("wire_dtype", ["float32", "bfloat16"])
def test_sums_are_checked_where_they_arrive_and_are_not_rounded(wire_dtype):
    rule = rule_of()
    total = combine(rule, additive(rule, party_weights(3)), context_of(rule))
    packed = sent(total, wire_dtype)
    received = validator(rule, wire_dtype).validate(packed, BASE, None)
    assert (received.weights[SUM] == total.weights[SUM]).all()


def sent(update: Update, wire_dtype: str) -> Update:
    """As an actor sends it."""
    packed = encoding.pack(update.weights, wire_dtype, BASE)
    return Update(packed, update.n_samples, update.n_parties)


@pytest.mark.parametrize(
    ("weights", "n_parties", "code"),
    [
        ({}, 3, "schema"),
        ({SUM: [1] * 14}, 3, "schema"),
        ({SUM: np.zeros(13, np.int32)}, 3, "schema"),
        ({SUM: np.zeros((14, 1), np.int32)}, 3, "schema"),
        ({SUM: np.zeros(14, np.float64)}, 3, "schema"),
        ({SUM: np.zeros(14, np.uint32)}, 3, "schema"),
        ({SUM: np.zeros(14, np.int32), "a": BASE["a"]}, 3, "schema"),
        (BASE, 3, "schema"),
        ({SUM: np.full(14, 3 * GRID + 1)}, 3, "other"),
        ({SUM: np.full(14, -(2**63))}, 3, "other"),
        ({SUM: np.zeros(14, np.int32)}, 0, "count"),
        ({SUM: np.zeros(14, np.int32)}, 2.5, "count"),
        ({SUM: np.zeros(14, np.int32)}, True, "count"),
    ],
)
def test_a_sum_that_cannot_be_one_is_refused(weights, n_parties, code):
    answer = validator(rule_of()).validate(Update(weights, 9, n_parties), BASE, None)
    assert isinstance(answer, Rejection)
    assert answer.code == code


def test_what_is_no_update_is_refused():
    assert validator(rule_of()).validate({SUM: 1}, BASE, None).code == "type"


def test_one_partys_weights_travel_and_are_checked_as_ever():
    origin = Origin("run", 1, 0)
    update = Update(party_weights(1)[0], 5, origin=origin)
    expected = ExpectedUpdate(origin, 5)
    checks = validator(rule_of())
    assert checks.validate(update, BASE, expected).weights.keys() == BASE.keys()
    bad = Update(BASE | {"a": np.full((3, 4), np.nan, "f4")}, 5, origin=origin)
    assert checks.validate(bad, BASE, expected).code == "non_finite"
