"""Parts of secure aggregation against hand computation, RFCs and exact tails."""

import hashlib
import itertools
from fractions import Fraction
from math import comb, log2

import numpy as np
import pytest

from fedray.errors import SecureSumError
from fedray.secure_sum import (
    Attempt,
    Member,
    choose_parameters,
    default_min_sum,
    grid_parameters,
    scale_weight,
    shamir,
)
from fedray.secure_sum.graph import degree_and_threshold
from fedray.secure_sum.keys import (
    Identity,
    agreement,
    box_key,
    is_signed,
    is_usable,
    own_mask_key,
    pair_mask_key,
    public_key,
    seal,
    unseal,
)
from fedray.secure_sum.masks import add_masks

# Shamir


def test_shares_rebuild_a_secret_by_hand():
    """f(x) = 1234 + 166 x + 94 x^2: f(1) = 1494, f(2) = 1942, f(3) = 2578, f(4) = 3402.

    At 0 from 1, 2, 4: 1494 * 8/3 - 1942 * 2 + 3402 * 1/3 = 3984 - 3884 + 1134 = 1234.
    """
    values = {1: 1494, 2: 1942, 3: 2578, 4: 3402}
    for places in itertools.combinations(values, 3):
        shares = {x: values[x].to_bytes(66, "big") for x in places}
        assert int.from_bytes(shamir.combine(shares), "big") == 1234
    thirds = pow(3, -1, 2**521 - 1)
    wanted = (8 * thirds, -2, thirds)
    prime = 2**521 - 1
    assert shamir.lagrange_at_zero((1, 2, 4)) == tuple(f % prime for f in wanted)


def test_any_t_of_n_shares_rebuild_and_fewer_do_not():
    secret = bytes(range(200, 232))
    shares = dict(enumerate(shamir.split(secret, 4, 6), start=1))
    assert {len(share) for share in shares.values()} == {66}
    for places in itertools.combinations(shares, 4):
        assert shamir.combine({x: shares[x] for x in places}) == secret
    for places in itertools.combinations(shares, 3):
        try:
            assert shamir.combine({x: shares[x] for x in places}) != secret
        except ValueError as error:  # most often a number that is no secret
            assert "no secret" in str(error)  # noqa: PT017


def test_shares_of_one_secret_are_random():
    secret = bytes(32)
    first, second = (shamir.split(secret, 2, 3) for _ in range(2))
    assert not {*first} & {*second}


# neighbours


def tail(n_all, n_marked, n_drawn, least):
    """P(X >= least), X hypergeometric."""
    ways = sum(
        comb(n_marked, x) * comb(n_all - n_marked, n_drawn - x)
        for x in range(least, n_drawn + 1)
    )
    return Fraction(ways, comb(n_all, n_drawn))


def odds(n, degree, threshold):
    """log2 of the odds that privacy, and that the sum fails, with 20 % and 5 %."""
    n_corrupt, n_absent = -(-n // 5), -(-n // 20)
    corrupt = n * tail(n - 1, n_corrupt, degree, threshold)
    # an absent party lacks its own share: t of k; one that is there has t of k + 1
    fails = n_absent * tail(n - 1, n_absent - 1, degree, degree - threshold + 1)
    fails += (n - n_absent) * tail(n - 1, n_absent, degree, degree - threshold + 2)
    return [log2(p) if p else -1000 for p in (corrupt, fails)]


@pytest.mark.parametrize(("n", "wanted"), [(100, (24, 19)), (1000, (56, 39))])
def test_neighbours_and_threshold_are_the_least_for_the_odds(n, wanted):
    assert degree_and_threshold(n) == wanted
    corrupt, fails = odds(n, *wanted)
    assert corrupt <= -40
    assert fails <= -30
    degree, threshold = wanted
    assert odds(n, degree, threshold - 1)[0] > -40
    for fewer in range(1, degree - 1):  # no threshold serves with two neighbours less
        corrupt, fails = odds(n, degree - 2, fewer)
        assert corrupt > -40 or fails > -30


@pytest.mark.parametrize(
    ("n", "degree", "threshold"),
    [(2, 1, 2), (3, 2, 3), (4, 3, 3), (10, 9, 7), (64, 63, 43)],
)
def test_few_parties_are_all_neighbours(n, degree, threshold):
    assert degree_and_threshold(n) == (degree, threshold)


@pytest.mark.parametrize("n", [65, 100, 333])
def test_being_neighbours_is_mutual_and_connects_all(n):
    attempt = attempt_of(n)
    degree, _ = degree_and_threshold(n)
    near = {v: attempt.neighbours(v) for v in range(n)}
    assert {len(others) for others in near.values()} == {degree}
    assert all(v in near[u] for v, others in near.items() for u in others)
    reached, todo = {0}, [0]
    while todo:
        new = {*near[todo.pop()]} - reached
        reached |= new
        todo += new
    assert len(reached) == n
    assert near != {v: attempt_of(n, number=2).neighbours(v) for v in range(n)}


def attempt_of(n, **changes):
    roster = tuple(
        Member(f"p{i}", hashlib.sha256(b"%d" % i).digest()) for i in range(n)
    )
    values = {"run": "r", "group": "", "round": 1, "number": 1, "roster": roster}
    parameters = choose_parameters(10, n)
    return Attempt(**{**values, "parameters": parameters, **changes})


# context


def test_everything_of_an_attempt_is_in_its_context():
    attempt = attempt_of(3)
    roster, parameters = attempt.roster, attempt.parameters
    others = [
        attempt_of(3, run="s"),
        attempt_of(3, run="", group="r"),
        attempt_of(3, round=2),
        attempt_of(3, number=2),
        attempt_of(3, roster=roster[::-1]),
        attempt_of(3, roster=(*roster[:2], Member("p2", bytes(32)))),
        attempt_of(3, roster=(*roster[:2], Member("p3", roster[2].identity))),
        attempt_of(4),
        *(
            attempt_of(3, parameters=type(parameters)(**{**vars(parameters), **change}))
            for change in (
                {"n_coordinates": 11},
                {"bound": parameters.bound - 1},
                {"max_weight": 2},
                {"ring_bits": 64},
                {"noise_variance": 1},
            )
        ),
    ]
    assert len({a.context for a in [attempt, *others]}) == 1 + len(others)
    assert Attempt.decode(attempt.encode()) == attempt
    assert Attempt.decode(attempt.encode()).context == attempt.context


# keys


def test_keys_differ_by_purpose_attempt_weights_and_parties():
    alice, bob = bytes([1] * 32), bytes([2] * 32)
    shared = agreement(alice)(public_key(bob))
    assert shared == agreement(bob)(public_key(alice))
    made = [
        box_key(shared, b"c", 1, 2),
        box_key(shared, b"c", 2, 1),
        box_key(shared, b"d", 1, 2),
        box_key(shared, b"c", 1, 22),
        pair_mask_key(shared, b"c", b"w", (1, 2)),
        pair_mask_key(shared, b"c", b"x", (1, 2)),
        pair_mask_key(shared, b"cw", b"", (1, 2)),
        pair_mask_key(shared, b"c", b"w", (1, 3)),
        own_mask_key(shared, b"c", b"w", 1),
        own_mask_key(shared, b"c", b"w", 2),
        own_mask_key(shared, b"c", b"x", 1),
    ]
    assert len({*made}) == len(made)
    assert pair_mask_key(shared, b"c", b"w", (2, 1)) == made[4]
    assert {len(key) for key in made} == {32}


def test_a_key_of_small_order_is_refused():
    """RFC 7748, section 6.1: the shared secret would be all zeros for anybody."""
    for bad in (bytes(32), bytes([1, *bytes(31)])):
        assert not is_usable(bad)
        with pytest.raises(SecureSumError, match="small order"):
            agreement(bytes([1] * 32))(bad)
    assert is_usable(public_key(bytes([7] * 32)))


def test_a_signature_is_of_one_purpose_and_context():
    identity = Identity(bytes([3] * 32))
    signature = identity.sign("keys", b"context", 1)
    assert is_signed(identity.public, signature, "keys", b"context", 1)
    for about in [("alive", b"context", 1), ("keys", b"context", 2), ("keys", b"c", 1)]:
        assert not is_signed(identity.public, signature, *about)
    assert not is_signed(identity.public, signature[:-1], "keys", b"context", 1)
    assert not is_signed(bytes(31), signature, "keys", b"context", 1)
    assert not is_signed(Identity(bytes(32)).public, signature, "keys", b"context", 1)


def test_a_box_opens_for_its_sender_and_recipient_only():
    box = seal(bytes([9] * 32), b"shares", 1, 2)
    assert unseal(bytes([9] * 32), box, 1, 2) == b"shares"
    assert unseal(bytes([9] * 32), box, 2, 1) is None
    assert unseal(bytes([8] * 32), box, 1, 2) is None
    assert unseal(bytes([9] * 32), box[:-1] + b"x", 1, 2) is None
    assert unseal(bytes([9] * 32), b"", 1, 2) is None


# masks


def test_a_mask_is_the_keystream_of_chacha20():
    """RFC 8439, appendix A.1, test vectors 1 and 2: a key of zeros, blocks 0 and 1."""
    blocks = bytes.fromhex(
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )
    for dtype in ("<u4", "<u8"):
        vector = np.zeros(128 // np.dtype(dtype).itemsize, dtype)
        add_masks(vector, [(bytes(32), 1)])
        assert vector.tobytes() == blocks


def test_masks_cancel_across_blocks_and_wrap_around():
    vector = np.arange(200_001, dtype="<u4")
    keys = [bytes([i] * 32) for i in range(3)]
    add_masks(vector, [(key, 1) for key in keys])
    assert (vector != np.arange(200_001)).mean() > 0.99
    add_masks(vector, [(keys[1], -1)])
    add_masks(vector, [(keys[0], -1), (keys[2], -1)])
    assert (vector == np.arange(200_001)).all()


# ring


@pytest.mark.parametrize(
    ("n_parties", "max_weight", "n_bits", "ring_bits"),
    [
        (10, 1, 28, 32),  # floor((2^31 - 1) / 10) = 214,748,364 < 2^28
        (100, 1, 25, 32),
        (1000, 1, 22, 32),
        (100, 256, 17, 32),
        (100, 655, 16, 32),  # 32,786: 2^15 or more
        (100, 656, 47, 64),  # 32,736: below 2^15, so the larger ring
    ],
)
def test_the_ring_leaves_sixteen_bits(n_parties, max_weight, n_bits, ring_bits):
    parameters = choose_parameters(1, n_parties, max_weight)
    assert parameters.bound.bit_length() == n_bits
    assert parameters.ring_bits == ring_bits
    largest = n_parties * max_weight * parameters.bound
    assert largest <= 2 ** (ring_bits - 1) - 1


def test_sums_that_cannot_fit_are_an_error():
    with pytest.raises(SecureSumError, match="smaller weights: 2\\^47"):
        choose_parameters(1, 1000, max_weight=2**39)
    with pytest.raises(SecureSumError, match=r"sums up to .* of 3000 parties"):
        grid_parameters(1, 3000, bound=2**52, max_weight=1)
    for n in (0, 1):
        with pytest.raises(SecureSumError, match="min_sum"):
            choose_parameters(1, n)
    with pytest.raises(SecureSumError, match="max_weight 1 where noise"):
        grid_parameters(1, 3, bound=5, max_weight=2, noise_variance=1)


def test_the_privacy_grid_fits_as_many_parties_as_computed_by_hand():
    """2,047 * 2^20 < 2^31 - 1 < 2,048 * 2^20; noise: 8 sqrt(n * variance) more."""
    grid = 2**20
    assert grid_parameters(1, 2047, grid).ring_bits == 32
    assert grid_parameters(1, 2048, grid).ring_bits == 64
    # z = 1, n = 10, min_sum 7: 10 + 8 sqrt(10 / 7) = 19.6 of 2,047
    assert grid_parameters(1, 10, grid, noise_variance=grid**2 // 7).ring_bits == 32
    # z = 300: 10 + 8 * 300 * sqrt(10 / 7) = 2,878 of 2,047
    loud = (300 * grid) ** 2 // 7
    assert grid_parameters(1, 10, grid, noise_variance=loud).ring_bits == 64


def test_default_min_sum_by_hand():
    assert [default_min_sum(n) for n in (2, 3, 4, 5, 10, 100)] == [2, 3, 3, 4, 7, 67]


def test_sample_counts_as_weights():
    assert [scale_weight(n, 200, 256) for n in (1, 7, 200)] == [1, 7, 200]
    # 500 stand for 256: 100 for 51.2, 1 for 0.5, never 0
    assert [scale_weight(n, 500, 256) for n in (500, 100, 1, 0)] == [256, 51, 1, 1]
