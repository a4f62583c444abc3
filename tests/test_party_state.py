"""The store of what parties keep on their own node between rounds."""

import numpy as np
import pytest

from fedray.errors import DataError
from fedray.party.state import PartyStateStore


def store_at(folder, writer="a", n_kept=3):
    return PartyStateStore(folder / "state", n_kept, writer)


def value(round, party=0):
    return np.full(2, round * 100 + party, np.float32)


def save(store, round, parties, since=None):
    names = [f"party-{i}" for i in parties]
    store.save(round, names, {"w": [value(round, i) for i in parties]}, since)


def recall(store, party, before):
    """Round that a party's arrays are of, and the first number."""
    (state,) = store.recall([f"party-{party}"], before)
    return state.round, (float(state.arrays["w"][0]) if state.arrays else None)


def n_rows(store):
    return sum(len(file.parties) for file in store._files())


def test_the_newest_arrays_from_before_a_round_are_recalled(tmp_path):
    store = store_at(tmp_path)
    save(store, 1, [0, 1])
    save(store, 2, [1])
    assert recall(store, 0, 3) == (1, 100)
    assert recall(store, 1, 3) == (2, 201)
    assert recall(store, 1, 2) == (1, 101)
    assert recall(store, 1, 1) == (0, None)
    assert recall(store, 7, 3) == (0, None)


def test_arrays_keep_their_bits_shapes_and_dtypes(tmp_path):
    store = store_at(tmp_path)
    arrays = {
        "a": [np.array([[1.5, np.nan]], np.float32), np.zeros((0, 2), np.float32)],
        "file": [np.array(7), np.array(8)],
        "h/é": [np.ones((2, 1), np.float16), np.ones((1, 3), np.float16)],
    }
    store.save(1, ["x", "y"], arrays)
    for i, state in enumerate(store_at(tmp_path).recall(["x", "y"], 2)):
        for name, each in arrays.items():
            assert state.arrays[name].dtype == each[i].dtype
            assert np.array_equal(state.arrays[name], each[i], equal_nan=name == "a")


def test_a_party_is_recalled_by_another_actor_with_another_share(tmp_path):
    save(store_at(tmp_path, "a"), 1, [0, 1])
    save(store_at(tmp_path, "b"), 1, [2, 3])
    other = store_at(tmp_path, "c")
    assert [recall(other, i, 2) for i in range(4)] == [(1, 100 + i) for i in range(4)]
    save(other, 2, [1, 2])
    again = store_at(tmp_path, "a")
    assert [recall(again, i, 3)[0] for i in range(4)] == [1, 2, 2, 1]


def test_what_was_saved_before_a_restart_does_not_come_back(tmp_path):
    store = store_at(tmp_path)
    for round in (1, 2, 3):
        save(store, round, [0])
    store.save(2, ["party-0"], {"w": [value(9)]})  # the round is trained again
    assert recall(store, 0, 3) == (2, 900)
    assert recall(store, 0, 5) == (2, 900)  # not the old round 3


def test_every_round_that_may_be_repeated_has_its_start(tmp_path):
    store = store_at(tmp_path)
    for round in range(1, 11):
        save(store, round, [0, 1])
        for before in range(max(1, round - 2), round + 1):
            assert recall(store, 0, before)[0] == before - 1
    assert n_rows(store) == 2 * 4


def test_rounds_apart_keep_the_start_of_the_last_fusions(tmp_path):
    store = store_at(tmp_path)
    for round in range(1, 31):  # fused after 10 and after 20
        save(store, round, [0], since=(round - 1) // 10 * 10 + 1)
    assert [recall(store, 0, before)[0] for before in (11, 21, 31)] == [10, 20, 30]
    assert n_rows(store) == 3


def test_files_stay_few_when_few_parties_are_chosen(tmp_path):
    store, draw = store_at(tmp_path), np.random.default_rng(0)
    newest = {}
    for round in range(1, 60):
        chosen = sorted(draw.choice(40, 4, replace=False).tolist())
        for party in chosen:
            assert recall(store, party, round)[0] == newest.get(party, 0)
        save(store, round, chosen)
        newest |= dict.fromkeys(chosen, round)
    assert n_rows(store) <= 2 * 40 * (store.n_kept + 1)


def test_parties_that_left_do_not_hold_whole_files(tmp_path):
    store = store_at(tmp_path)
    save(store, 1, range(100))
    for round in range(2, 12):
        save(store, round, range(1, 100))
    assert recall(store, 0, 12) == (1, 100)
    assert n_rows(store) == 1 + 99 * 4


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 nothing", None])
def test_damaged_files_count_as_missing_and_that_is_said(tmp_path, damage):
    store = store_at(tmp_path)
    save(store, 1, [0])
    save(store, 2, [0])
    newest = max(store.folder.iterdir())
    one_bit_off = value(2).tobytes()[:-1] + b"\x42"
    data = newest.read_bytes().replace(value(2).tobytes(), one_bit_off)
    newest.write_bytes(data if damage is None else damage)
    for each in store, store_at(tmp_path):
        (state,) = each.recall(["party-0"], 3)
        assert state.problem == "what is there of round 2 is damaged"
        assert state.round in (0, 1)
        assert not state.round or np.array_equal(state.arrays["w"], value(1))
        assert each.recall(["party-0"], 2)[0].problem == ""
    for round in range(3, 9):
        save(store, round, [0])
    assert not newest.exists()


def test_a_file_that_was_being_written_when_its_actor_died_is_removed(tmp_path):
    store = store_at(tmp_path)
    save(store, 1, [0])
    path = max(store.folder.iterdir())
    half = path.with_name(f".{path.stem}.0a1b2c3d.part.npz")
    others = path.with_name(".000001-000001-deadbeef.0a1b2c3d.part.npz")
    half.write_bytes(b"PK")
    others.write_bytes(b"PK")
    save(store, 2, [0])
    assert not half.exists()
    assert others.exists()  # its actor may live


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(DataError, match=r"party_dir"):
        store_at(tmp_path).check()
