"""Secret noise: exact rounding, its distribution, keys, and memory."""

import struct
import tracemalloc
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.stats
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

import fedray
from fedray.privacy import noise
from fedray.privacy.noise import CHUNK, GaussianStream, NoiseScale, add_noise

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def keystream(key: bytes, nonce: bytes, size: int) -> bytes:
    return Cipher(algorithms.ChaCha20(key, nonce), None).encryptor().update(bytes(size))


def exact(first: int, second: int, extra: bytes, is_sine: bool) -> mpmath.mpf:
    """Box-Muller with 100 digits of two words of 64 bits and 256 bits more of each."""
    with mpmath.workdps(100):
        more = int.from_bytes(extra[:32]), int.from_bytes(extra[32:])
        u = (mpmath.mpf((first << 256) + more[0]) + 0.5) / mpmath.mpf(2) ** 320
        turn = mpmath.mpf((second << 256) + more[1]) / mpmath.mpf(2) ** 320
        trig = mpmath.sin if is_sine else mpmath.cos
        return mpmath.sqrt(-2 * mpmath.log(u)) * trig(2 * mpmath.pi * turn)


def reference(key: bytes, block: int, size: int) -> list[mpmath.mpf]:
    """The numbers of a block with 100 digits, by the layout that is documented."""
    half = (size + 1) // 2
    words = np.frombuffer(
        keystream(key, struct.pack("<IIQ", 0, 0, block), 16 * half), "<u8"
    ).tolist()
    numbers = []
    for i in range(size):
        pair = i % half
        extra = keystream(key, struct.pack("<IIQ", 0, 1 + pair, block), 64)
        numbers.append(exact(words[pair], words[half + pair], extra, i >= half))
    return numbers


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0**20, 3.7e9])
def test_noise_is_the_rounded_gaussian_to_the_last_integer(scale):
    rounded = GaussianStream(KEY).rounded(3, 501, scale)
    by_reference = [int(mpmath.nint(scale * g)) for g in reference(KEY, 3, 501)]
    assert rounded.tolist() == by_reference


def test_an_offset_is_added_before_rounding():
    rng = np.random.default_rng(0)
    offset = rng.integers(0, 1 << 20, 300) / 2.0**20
    rounded = GaussianStream(KEY).rounded(0, 300, 1e6, offset)
    pairs = zip(reference(KEY, 0, 300), offset.tolist(), strict=True)
    assert rounded.tolist() == [int(mpmath.nint(1e6 * g + o)) for g, o in pairs]


def test_what_float64_cannot_round_is_rounded_with_more_digits(monkeypatch):
    """All numbers by the slow way: as those of the fast one."""
    scale = 2.0**20
    fast = GaussianStream(KEY).rounded(0, 601, scale).copy()
    monkeypatch.setattr(noise, "ERROR", 2.0**-20)
    assert (GaussianStream(KEY).rounded(0, 601, scale) == fast).all()


def test_numbers_near_a_boundary_are_found_and_float64_alone_would_err(monkeypatch):
    """At the greatest deviation many are; without a second look some would err."""
    stream, scale, size = GaussianStream(KEY), noise.MAX_SCALE, CHUNK
    calls, slow = [], stream._round_exactly
    monkeypatch.setattr(
        stream, "_round_exactly", lambda *args: calls.append(args[2]) or slow(*args)
    )
    right = stream.rounded(0, size, scale).copy()
    monkeypatch.setattr(noise, "ERROR", 0.0)
    monkeypatch.setattr(noise, "_extreme_pairs", lambda first: [])
    calls_before = set(calls)
    wrong = set(np.flatnonzero(stream.rounded(0, size, scale) != right).tolist())
    assert wrong
    assert wrong <= calls_before
    assert len(calls_before) < size / 10


@pytest.mark.parametrize(
    "first",
    [noise.LOW, noise.LOW + 12345, 1 << 53, (1 << 63) - 1, 1 << 63, noise.HIGH - 1],
)
@pytest.mark.parametrize(
    "second", [0, 1, 1 << 62, (1 << 62) + 1, 1 << 63, (1 << 64) - 1, 3 << 60]
)
def test_float64_is_as_near_as_its_error_bound_says(first, second):
    for nudge in (0, 1, 1000):
        words = np.array([first, (second + nudge) % (1 << 64)], np.uint64)
        values, most = GaussianStream(KEY)._polar(words)
        for i, is_sine in enumerate((False, True)):
            for extra in (bytes(64), b"\xff" * 64):
                value = exact(int(words[0]), int(words[1]), extra, is_sine)
                assert abs(values[i] - value) < noise.ERROR * (6 + most) / 2


@pytest.mark.parametrize("first", [0, 1, noise.LOW - 1, noise.HIGH, (1 << 64) - 1])
def test_extreme_words_are_computed_with_more_digits(first, monkeypatch):
    words = np.array([first, 1 << 61], np.uint64)
    stream = GaussianStream(KEY)
    monkeypatch.setattr(stream, "_words", lambda block, size: words)
    rounded = stream.rounded(5, 2, 2.0**30).tolist()
    extra = keystream(KEY, struct.pack("<IIQ", 0, 1, 5), 64)
    values = [exact(first, 1 << 61, extra, is_sine) for is_sine in (False, True)]
    assert rounded == [int(mpmath.nint(2.0**30 * value)) for value in values]


def test_integers_have_the_probabilities_of_a_rounded_gaussian():
    """Chi-square of 10⁶ numbers of deviation 2 against Φ(k + ½) − Φ(k − ½)."""
    n, cells = 10**6, np.arange(-8, 9)
    total = np.zeros(n, np.int64)
    add_noise(total, KEY, NoiseScale(2.0))
    edges = np.concatenate([[-np.inf], cells[:-1] + 0.5, [np.inf]])
    expected = np.diff(scipy.stats.norm.cdf(edges / 2)) * n
    counts = np.bincount(np.clip(total, -8, 8) + 8, minlength=17)
    assert scipy.stats.chisquare(counts, expected).pvalue > 0.001


def test_the_difference_of_two_releases_is_gaussian_with_the_scale_that_was_asked():
    """What really was added to the same sum of 10⁶ numbers under two keys."""
    rng, n, scale = np.random.default_rng(0), 10**6, 1.3 * 2**20
    sums = rng.integers(-(2**24), 2**24, n)
    one, other = sums.copy(), sums.copy()
    add_noise(one, KEY, NoiseScale(scale))
    add_noise(other, OTHER, NoiseScale(scale))
    for added, deviation in ((one - sums, scale), (one - other, scale * 2**0.5)):
        assert added.std() == pytest.approx(deviation, rel=0.01)
        assert abs(added.mean()) < 4 * deviation / n**0.5
        assert scipy.stats.kstest(added / deviation, "norm").pvalue > 0.001
        blocks = added[: n // CHUNK * CHUNK].reshape(-1, CHUNK).astype(float)
        # sines beside cosines, one number beside the next, one block beside the next
        halves = blocks[:, : CHUNK // 2], blocks[:, CHUNK // 2 :]
        for a, b in (
            halves,
            (blocks[:, 1:], blocks[:, :-1]),
            (blocks[1:], blocks[:-1]),
            (abs(halves[0]), abs(halves[1])),
        ):
            limit = 4 / a.size**0.5
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < limit


def test_tails_are_as_heavy_as_they_should_be():
    n = 4 * 10**6
    total = np.zeros(n, np.int64)
    add_noise(total, KEY, NoiseScale(1000.0))
    for far in (4, 4.75):
        expected = 2 * scipy.stats.norm.sf(far) * n
        n_far = int((abs(total) > far * 1000).sum())
        assert abs(n_far - expected) < 4 * expected**0.5


def test_a_key_gives_the_same_bits_and_another_key_independent_ones():
    vectors = []
    for key in (KEY, KEY, OTHER):
        total = np.zeros(200_000, np.int64)
        add_noise(total, key, NoiseScale(2.0**20))
        vectors.append(total)
    assert (vectors[0] == vectors[1]).all()
    correlation = np.corrcoef(vectors[0].astype(float), vectors[2].astype(float))[0, 1]
    assert abs(correlation) < 4 / 200_000**0.5


@pytest.mark.parametrize("size", [1, 2, 3, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 7])
def test_every_number_of_a_vector_gets_noise_whatever_its_length(size):
    total = np.zeros(size, np.int64)
    add_noise(total, KEY, NoiseScale(2.0**20))
    assert (total != 0).all()
    assert len(set(total.tolist())) > 0.9 * size
    blocks = [
        GaussianStream(KEY).rounded(i, min(CHUNK, size - start), 2.0**20).copy()
        for i, start in enumerate(range(0, size, CHUNK))
    ]
    assert (total == np.concatenate(blocks)).all()


def test_a_count_has_noise_of_its_own_deviation():
    counts = []
    for i in range(400):
        total = np.zeros(4, np.int64)
        add_noise(total, bytes([i % 256, i // 256]) * 16, NoiseScale(2.0**20, 30.0))
        assert (abs(total[:3]) > 30).any()
        counts.append(int(total[3]))
    assert np.std(counts) == pytest.approx(30, rel=0.15)
    assert max(map(abs, counts)) < 150


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 2.0**41])
def test_a_deviation_that_is_none_is_refused(scale):
    with pytest.raises(ValueError, match="deviation above 0 and up to"):
        add_noise(np.zeros(2, np.int64), KEY, NoiseScale(scale))


def test_a_key_is_32_bytes_and_is_never_shown():
    with pytest.raises(ValueError, match="32 bytes") as error:
        GaussianStream(b"a secret that is too short")
    assert "secret" not in str(error.value)
    stream = GaussianStream(b"K" * 32)
    assert "K" * 4 not in repr(stream)
    assert "K" * 4 not in str(vars(stream))


def test_nothing_secret_comes_from_a_generator_whose_state_can_be_found():
    for room in ("privacy", "secure_sum"):
        for file in (Path(fedray.__file__).parent / room).glob("*.py"):
            source = file.read_text(encoding="utf-8")
            for word in ("np.random", "import random", "default_rng", "config.seed"):
                assert word not in source, f"{file.name} has {word}"


def test_noise_takes_the_memory_of_blocks_not_of_the_vector():
    total = np.zeros(64 * CHUNK, np.int64)
    add_noise(total, KEY, NoiseScale(2.0**20))  # scratch memory is there now
    tracemalloc.start()
    add_noise(total, KEY, NoiseScale(2.0**20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < total.nbytes / 4
