"""A party's own books: budgets of data sets over all runs, and who may begin anew."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.faulty_disk import CUTS, FaultyDisk, Point, PowerCut

from fedray import cli, data, nested
from fedray.errors import BudgetExceeded, LedgerError
from fedray.party.data_fingerprint import fingerprints
from fedray.privacy.central_records import CentralRun, ranges_of
from fedray.privacy.data_accounts import Accounts, DataSet, Limit, Training
from fedray.privacy.party_book import (
    CENTRAL,
    FIRST_LIMIT,
    OWNER_LIMIT,
    TRAINING,
    PartyBook,
    begin_anew,
    forget_all,
)
from fedray.privacy.private_steps import sampling_plan
from fedray.privacy.sample_budget import (
    RunTerms,
    epsilon_of_spent,
    first_limit,
    noise_of,
    require_round,
    require_rounds,
)

A = DataSet("/data/a.npz", "aa")


def training(round=1, tag=None, run="run-1", n_steps=10, z=1.0) -> Training:
    tag = tag or f"{run} {round}"
    return Training(run, "", round, "a", tag, 500, 0.1, z, n_steps, 1e-3)


def terms(run="run-1", rounds=10, epsilon=None, z=1.0, n_steps=10) -> RunTerms:
    return RunTerms(run, rounds, epsilon, z, 1e-3, 0.1, n_steps)


def add(book: PartyBook, data_set=A, limit=3.0, **of_training) -> None:
    """Charge a training to the books, as a party does."""
    with book.locked():
        if book.accounts.of(data_set).first is None:
            book.add(FIRST_LIMIT, **data_set.to_line(), epsilon=limit, delta=1e-3)
        one = training(**of_training)
        if not book.accounts.has(one.tag):
            book.add(TRAINING, **data_set.to_line(), **one._asdict())


def steps_of(accounts: Accounts, data_set: DataSet) -> int:
    return accounts.of(data_set).spent_by(data_set).total()


# which trainings count together


def accounts_of(*sets: DataSet) -> Accounts:
    """Each of them was trained on once, by 10 steps."""
    accounts = Accounts()
    for i, one in enumerate(sets):
        accounts.add(one, training(i))
    return accounts


@pytest.mark.parametrize(
    "other",
    [
        DataSet("/data/a.npz", "bb"),  # the file has grown
        DataSet("/data/renamed.npz", "aa"),
        DataSet("", "aa"),  # given in memory
        DataSet("/data/a.npz", ""),  # read anew in each pass
        DataSet("/data/a.npz", "cc", "cut 1", 4),
        DataSet("/data/b.npz", "aa", "cut 1", 4),
    ],
)
def test_what_may_be_the_same_people_counts_together(other):
    accounts = accounts_of(A, other)
    assert steps_of(accounts, A) == steps_of(accounts, other) == 20


@pytest.mark.parametrize(
    "other", [DataSet("/data/b.npz", "bb"), DataSet("/data/b.npz"), DataSet("", "bb")]
)
def test_other_data_has_an_account_of_its_own(other):
    accounts = accounts_of(A, other)
    assert steps_of(accounts, A) == steps_of(accounts, other) == 10


def test_a_copy_that_then_grows_still_counts():
    copy, grown = DataSet("/data/copy.npz", "aa"), DataSet("/data/copy.npz", "bb")
    accounts = accounts_of(A, grown)
    assert steps_of(accounts, A) == 10
    accounts.add(copy, training(3))  # which shows that both are one
    assert steps_of(accounts, A) == steps_of(accounts, grown) == 30
    assert accounts.limit_of(A) is None


def test_limits_of_data_that_turns_out_to_be_one_become_the_lowest():
    accounts, other = Accounts(), DataSet("/data/b.npz", "bb")
    accounts.of(A).first = Limit(3.0, 1e-4)
    accounts.of(other).first = Limit(2.0, 1e-3)
    assert accounts.limit_of(DataSet("/data/a.npz", "bb")) == Limit(2.0, 1e-4)
    assert accounts.limit_of(A) == accounts.limit_of(other) == Limit(2.0, 1e-4)
    accounts.owner_epsilon = 9.0
    assert accounts.limit_of(A) == Limit(9.0, 1e-4)


def part(i: int, content: str = "", cut: str = "cut 1") -> DataSet:
    return DataSet("/data/all.npz", content or f"{cut} part {i}", cut, i)


def test_parts_of_one_cut_have_accounts_of_their_own():
    accounts = accounts_of(*map(part, range(5)), part(3))
    assert [steps_of(accounts, part(i)) for i in range(6)] == [10, 10, 10, 20, 10, 0]


def test_of_another_cut_the_part_counts_that_has_spent_most():
    accounts = accounts_of(*map(part, range(5)), part(3), part(0, cut="cut 2"))
    assert steps_of(accounts, part(0, cut="cut 2")) == 30
    assert steps_of(accounts, part(0)) == 20
    assert steps_of(accounts, DataSet("/data/all.npz", "whole")) == 30
    accounts.add(DataSet("/data/all.npz", "whole"), training(9))
    assert steps_of(accounts, part(0)) == 30


def test_most_of_a_cut_is_of_each_kind_of_step():
    accounts = accounts_of(part(0), part(1))
    accounts.add(part(1), training(7, z=2.0))
    whole = DataSet("/data/all.npz")
    expected = Counter({(0.1, 1.0): 10, (0.1, 2.0): 10})
    assert accounts.of(whole).spent_by(whole) == expected


def test_parts_with_the_same_samples_are_one_data_set():
    accounts = accounts_of(part(0, "same"), part(1, "same"), part(2))
    assert [steps_of(accounts, part(i, "same")) for i in (0, 1)] == [20, 20]
    assert steps_of(accounts, part(2)) == 10


def test_a_thousand_parts_are_looked_up_in_no_time():
    accounts, parts = Accounts(), [part(i) for i in range(1000)]
    for round in range(3):
        for i, one in enumerate(parts):
            assert accounts.of(one).spent_by(one).total() == 10 * round
            accounts.add(one, training(round, f"{round} {i}"))


# what a run may spend


BY_ORACLE = [  # dp-accounting 0.6.0: PLDAccountant() of PoissonSampledDpEvent's
    ({(0.1, 1.0): 100}, 1e-5, 7.04660),
    ({(0.1, 1.0): 150}, 1e-3, 6.00548),  # opacus 1.6.0, prv: 6.02
    ({(0.1, 2.0): 150}, 1e-3, 1.94803),  # the same: 1.97
    ({(0.1, 1.0): 50, (0.05, 2.0): 80}, 1e-5, 5.25328),  # of two runs
]


@pytest.mark.parametrize(("steps", "delta", "epsilon"), BY_ORACLE)
def test_epsilon_is_that_of_the_oracle(steps, delta, epsilon):
    spent = epsilon_of_spent(Counter(steps), delta)
    assert spent == pytest.approx(epsilon, rel=1e-3)
    assert epsilon_of_spent(Counter(), delta) == 0


def test_a_pass_has_as_many_steps_as_batches_the_last_one_included():
    assert sampling_plan(500, 50, 15, None) == (0.1, 150)
    assert sampling_plan(500, 64, 2, None) == (0.128, 16)
    assert sampling_plan(500, 64, 2, 5) == (0.128, 5)
    assert sampling_plan(30, 64, 1, None) == (1.0, 1)


def test_noise_follows_from_epsilon_and_keeps_to_it():
    asked = terms(epsilon=2.0, z=None)
    z = noise_of(Accounts(), A, asked)
    spent = epsilon_of_spent(Counter({(0.1, z): 100}), 1e-3)
    assert 1.98 <= spent <= 2.0


def test_a_resumed_run_keeps_its_noise_whatever_rounds_it_has():
    accounts = Accounts()
    before = noise_of(accounts, A, terms(epsilon=2.0, z=None))
    accounts.add(A, training(1, z=before))
    longer = terms(rounds=30, epsilon=2.0, z=None)
    assert noise_of(accounts, A, longer) == before
    assert noise_of(accounts, A, longer._replace(run="run-2")) > before


def spend_rounds(accounts: Accounts, asked: RunTerms, numbers: range) -> int:
    """Train until the party refuses; rounds that were trained."""
    for round in numbers:
        one = training(round, run=asked.run)
        try:
            require_round(accounts, A, asked, one, "~/party")
        except BudgetExceeded:
            return round - numbers.start
        if accounts.of(A).first is None:
            accounts.of(A).first = first_limit(asked, 1.0)
        accounts.add(A, one)
    return len(numbers)


def test_without_a_limit_the_first_run_sets_it_and_no_other_gets_more():
    accounts, asked = Accounts(), terms(rounds=10)
    assert spend_rounds(accounts, asked, range(1, 12)) == 10
    whole = epsilon_of_spent(Counter({(0.1, 1.0): 100}), 1e-3)
    assert accounts.limit_of(A) == Limit(whole, 1e-3)
    for other in ("renamed", "another aggregator's"):
        assert spend_rounds(accounts, terms(other), range(1, 3)) == 0


def test_runs_under_other_names_add_up_until_the_owners_limit():
    accounts = Accounts()
    accounts.owner_epsilon = epsilon_of_spent(Counter({(0.1, 1.0): 75}), 1e-3)
    n_done = [
        spend_rounds(accounts, terms(run), range(1, 4)) for run in ("a", "b", "c", "d")
    ]
    assert n_done == [3, 3, 1, 0]


def test_the_whole_run_is_foreseen_before_its_first_round():
    accounts, asked = Accounts(), terms(rounds=10, epsilon=4.0)
    with pytest.raises(BudgetExceeded) as refused:
        require_rounds(accounts, A, asked, "~/party")
    text = str(refused.value)
    assert "this run would bring epsilon of the party's data over all runs to" in text
    assert (
        "its limit is 4 (set by its first run); spent so far: 0 (delta 0.001)" in text
    )
    assert "fedray privacy show ~/party" in text
    assert "fedray privacy limit EPSILON ~/party" in text


def test_rounds_that_a_resumed_run_has_trained_are_not_foreseen_twice():
    accounts, asked = Accounts(), terms(rounds=10)
    assert spend_rounds(accounts, asked, range(1, 7)) == 6
    budget = require_rounds(accounts, A, asked, "~/party")
    assert budget.would_be == pytest.approx(budget.limit.epsilon)
    assert budget.spent < budget.would_be
    with pytest.raises(BudgetExceeded, match="this run would bring"):
        require_rounds(accounts, A, asked._replace(rounds=11), "~/party")


def test_the_limit_of_a_run_holds_beside_that_of_the_data():
    accounts, asked = Accounts(), terms(rounds=10, epsilon=3.0)
    accounts.of(A).first = Limit(100.0, 1e-3)
    with pytest.raises(
        BudgetExceeded, match=r"of this run to .* is 3 \(dp_sgd\.epsilon\);"
    ):
        require_rounds(accounts, A, asked, "~/party")


def test_a_limit_that_is_missed_by_little_is_told_in_full():
    accounts, cost = Accounts(), epsilon_of_spent(Counter({(0.1, 1.0): 10}), 1e-3)
    accounts.owner_epsilon = cost - 1e-6
    with pytest.raises(BudgetExceeded) as refused:
        require_round(accounts, A, terms(), training(), "~/party")
    assert f"to {cost:.8g}, its limit is {cost - 1e-6:.8g} (set by" in str(
        refused.value
    )


# what is on disk


def test_what_one_process_writes_another_reads(tmp_path):
    first, second = PartyBook(tmp_path), PartyBook(tmp_path)
    add(first)
    add(second, round=2)
    with first.locked():
        assert steps_of(first.accounts, A) == 20
    assert first.key.id == second.key.id
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert {modes.pop(name) for name in ("privacy", "books")} == {0o700}
    assert set(modes.values()) == {0o600}


def test_nothing_is_made_by_looking(tmp_path):
    with PartyBook(tmp_path / "none").locked(may_make=False) as is_there:
        assert not is_there
    assert list(tmp_path.iterdir()) == []


def charge_often(folder: str, run: str) -> None:
    book = PartyBook(Path(folder))
    for round in range(20):
        add(book, round=round, run=run)


def test_two_runs_at_once_on_one_data_set_both_count(tmp_path):
    context = multiprocessing.get_context("spawn")
    runs = [
        context.Process(target=charge_often, args=(str(tmp_path), name))
        for name in ("one", "two")
    ]
    for one in runs:
        one.start()
    for one in runs:
        one.join(60)
        assert one.exitcode == 0
    book = PartyBook(tmp_path)
    with book.locked():
        assert steps_of(book.accounts, A) == 400
        assert sum(line["kind"] == FIRST_LIMIT for line in book.lines) == 1


@pytest.fixture
def book(tmp_path):
    """Two rounds of one run have been charged."""
    book = PartyBook(tmp_path)
    add(book)
    add(book, round=2)
    return book


def damage(book: PartyBook, how: str) -> None:
    path = book.books / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if how == "altered":
        lines[-1] = lines[-1].replace(b'"n_steps": 10', b'"n_steps": 1')
    elif how == "shortened":
        lines.pop()
    elif how == "reordered":
        lines[-2:] = lines[:-3:-1]
    elif how == "another secret":
        (book.books / "secret.key").write_bytes(os.urandom(32))
    elif how == "another end":
        end = json.loads((book.books / "end.json").read_text())
        (book.books / "end.json").write_text(json.dumps({**end, "lines": 2}))
    elif how == "all lost":
        shutil.rmtree(book.books)
    else:
        (book.books / how).unlink()
    if path.exists():
        path.write_bytes(b"".join(lines))


DAMAGES = (
    *("altered", "shortened", "reordered", "another secret", "another end"),
    *("all lost", "secret.key", "ledger.jsonl", "end.json"),
)


@pytest.mark.parametrize("how", DAMAGES)
def test_books_that_are_lost_or_altered_are_refused_until_the_owner_begins_anew(
    book, how
):
    damage(book, how)
    folder = book.party_dir
    remedy = f"as the owner of the data, begin anew: fedray privacy reset {folder}"
    for _ in range(2):
        with pytest.raises(LedgerError, match=remedy), PartyBook(folder).locked():
            pass
    assert cli.main(["privacy", "show", str(folder)]) == 1
    assert cli.main(["privacy", "reset", "--yes", str(folder)]) == 0
    again = PartyBook(folder)
    with again.locked():
        assert steps_of(again.accounts, A) == 0
        (reset,) = [line for line in again.lines if line["kind"] == "reset"]
        assert reset["problem"]
    kept = [p for p in book.folder.iterdir() if p.name.startswith("before-")]
    assert len(kept) == (how != "all lost")  # what is left of them is not thrown away


def test_a_secret_that_others_may_read_is_no_reason_to_begin_anew(book):
    secret = book.books / "secret.key"
    secret.chmod(0o644)
    with pytest.raises(LedgerError, match=f"chmod 600 {secret}") as refused:
        add(PartyBook(book.party_dir), round=3)
    assert "reset" not in str(refused.value)
    secret.chmod(0o600)
    add(book, round=3)


def test_a_process_that_has_the_books_open_sees_that_they_were_lost(book):
    damage(book, "shortened")
    with pytest.raises(LedgerError, match="lines are missing"), book.locked():
        pass
    with pytest.raises(LedgerError, match=r"end\.json knows 4"), book.locked():
        pass


def test_a_line_that_a_crash_cut_off_is_dropped_since_nothing_was_trained(book):
    path = book.books / "ledger.jsonl"
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"kind": "training", "ru')
    for one in (book, PartyBook(book.party_dir)):
        with one.locked():
            assert steps_of(one.accounts, A) == 20
    assert path.read_bytes() == whole
    add(book, round=3)
    with book.locked():
        assert steps_of(book.accounts, A) == 30


def test_a_crash_between_the_ledger_and_its_end_loses_nothing(book):
    before = (book.books / "end.json").read_bytes()
    add(book, round=3)
    (book.books / "end.json").write_bytes(before)
    again = PartyBook(book.party_dir)
    with again.locked():
        assert steps_of(again.accounts, A) == 30
    assert (book.books / "end.json").read_bytes() != before


def test_a_disk_that_refuses_counts_nothing_and_is_an_error(book, monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(LedgerError, match="No space left") as refused:
            add(book, round=3)
        assert "reset" not in str(refused.value)
    with book.locked():
        assert steps_of(book.accounts, A) == 20
    add(book, round=3)
    with book.locked():
        assert steps_of(book.accounts, A) == 30


def test_an_error_before_anything_is_written_counts_nothing(book):
    def fail():
        with book.locked():
            book.add(TRAINING, **A.to_line(), **training(3)._asdict())
            raise KeyError("a mistake")

    with pytest.raises(KeyError):
        fail()
    with book.locked():
        assert steps_of(book.accounts, A) == 20


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="party_dir has to be a folder"):
        add(PartyBook(tmp_path / "file"))


class Charges:
    """Three trainings that are charged on a disk that may fail.

    done : rounds of which the party knows that they may be trained.
    """

    def __init__(self, folder: Path):
        self.folder, self.done = folder, []
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def play(self) -> None:
        book = PartyBook(self.folder / "party")
        for round in (1, 2, 3):
            add(book, round=round)
            self.done.append(round)

    def look(self) -> list[int]:
        """Rounds that the ledger has, after the machine has started again."""
        for path in self.folder.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        book = PartyBook(self.folder / "party")
        with book.locked():
            return [line["round"] for line in book.lines if line["kind"] == TRAINING]


@pytest.fixture
def points(tmp_path) -> list[Point]:
    """Every call by which the charges change the disk."""
    charges = Charges(tmp_path / "disk")
    disk = FaultyDisk(charges.folder)
    with disk.mounted():
        charges.play()
    assert charges.look() == [1, 2, 3]
    assert len(disk.points) > 30
    return disk.points


@pytest.mark.parametrize("cut", CUTS)
def test_no_training_that_may_begin_is_lost_when_power_is_cut(points, tmp_path, cut):
    for point in points:
        charges = Charges(tmp_path / "disk")
        disk = FaultyDisk(charges.folder, point)
        with disk.mounted(), pytest.raises(PowerCut):
            charges.play()
        disk.restart(cut)
        known = charges.look()
        assert known in (charges.done, [*charges.done, len(charges.done) + 1]), point
        charges.play()
        assert charges.look() == [1, 2, 3], point


def test_a_call_that_fails_is_an_error_and_all_is_well_afterwards(points, tmp_path):
    for point in points:
        charges = Charges(tmp_path / "disk")
        with FaultyDisk(charges.folder, point, errno.EIO).mounted():
            with contextlib.suppress(LedgerError):
                charges.play()
            charges.play()
        assert charges.look() == [1, 2, 3], point


def test_an_older_ledger_alone_is_refused_an_older_day_as_a_whole_is_not(book):
    older = {p.name: p.read_bytes() for p in book.books.iterdir()}
    add(book, round=3)
    (book.books / "ledger.jsonl").write_bytes(older["ledger.jsonl"])
    with pytest.raises(LedgerError, match=r"end\.json knows 5"):
        add(PartyBook(book.party_dir), round=4)
    for name, content in older.items():  # said on the page of privacy, not promised
        (book.books / name).write_bytes(content)
    again = PartyBook(book.party_dir)
    add(again, round=4)
    assert steps_of(again.accounts, A) == 30


# what the owner of the data does


def show(capsys, folder: Path, *options: str) -> str:
    capsys.readouterr()
    assert cli.main(["privacy", "show", str(folder), *options]) == 0
    return capsys.readouterr().out


def test_show_says_what_was_spent_of_each_data_set(book, capsys):
    add(book, DataSet("/data/b.npz", "bb"), run="run-2")
    text = show(capsys, book.party_dir)
    assert "/data/a.npz (party a; 500 samples)" in text
    spent = f"{epsilon_of_spent(Counter({(0.1, 1.0): 20}), 1e-3):.4g}"
    assert f"epsilon {spent} spent, of 3, the limit set by its first run" in text
    assert f"run run-1: epsilon {spent}, 2 rounds, 2 trainings of together 20" in text
    assert "/data/b.npz" in text
    plain = json.loads(show(capsys, book.party_dir, "--json"))
    first, second = plain["data"]
    assert first["sources"] == ["/data/a.npz"]
    assert first["runs"][0]["steps"] == 20
    assert first["epsilon"] > second["epsilon"] > 0
    assert plain["limit"] is None


def test_the_owners_commands_load_neither_ray_nor_a_framework(book):
    code = f"""
import sys
from fedray import cli
for action in (["show"], ["limit", "5"], ["reset", "--yes"]):
    assert cli.main(["privacy", *action, {str(book.party_dir)!r}]) == 0
assert not {{"ray", "torch", "gensim"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_folder_of_the_books_may_be_named_too(book, capsys):
    inside = show(capsys, book.folder, "--json")
    assert inside == show(capsys, book.party_dir, "--json")
    assert json.loads(inside)["data"]


def test_a_file_system_without_locks_is_an_error(book, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(LedgerError, match=r"cannot be locked.*flock"):
        add(book, round=3)


def test_show_of_nothing_says_so_and_makes_nothing(tmp_path, capsys):
    folder = tmp_path / "empty"
    folder.mkdir()
    assert "no training with dp_sgd" in show(capsys, folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("words", [["show"], ["reset", "--yes"]])
def test_a_folder_that_is_not_there_is_a_mistake(tmp_path, capsys, words):
    assert cli.main(["privacy", *words, str(tmp_path / "none")]) == 1
    assert "none is no folder: name the party_dir" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_limit_that_is_spent_already_is_said(book, capsys):
    assert cli.main(["privacy", "limit", "0.001", str(book.party_dir)]) == 0
    assert "is spent already of one: nothing more" in capsys.readouterr().out


def test_the_owner_raises_the_limit_without_forgetting(book, capsys):
    assert cli.main(["privacy", "limit", "9", str(book.party_dir)]) == 0
    assert "any data set" in capsys.readouterr().out
    with book.locked():
        assert book.accounts.limit_of(A) == Limit(9.0, 1e-3)
        assert steps_of(book.accounts, A) == 20
    for wrong in ("0", "-1", "nan", "inf"):
        assert cli.main(["privacy", "limit", "--", wrong, str(book.party_dir)]) == 1


def test_a_reset_is_asked_for_and_recorded(book, capsys):
    folder = str(book.party_dir)
    assert cli.main(["privacy", "reset", folder]) == 1  # nobody is there to type yes
    assert "nothing was reset" in capsys.readouterr().err
    with book.locked():
        assert steps_of(book.accounts, A) == 20
    assert cli.main(["privacy", "reset", "--yes", folder]) == 0
    with book.locked():
        assert steps_of(book.accounts, A) == 0
        assert not book.accounts.has(training().tag)  # the same again counts anew
        assert book.accounts.limit_of(A) is None
        assert [line["kind"] for line in book.lines][-1] == "reset"
    assert "reset 20" in show(capsys, book.party_dir)
    add(book, round=1)
    with book.locked():
        assert steps_of(book.accounts, A) == 10


def test_the_owners_limit_outlives_a_reset(book):
    with book.locked():
        book.add(OWNER_LIMIT, epsilon=2.5)
    forget_all(book.party_dir)
    add(book, limit=7.0)
    with book.locked():
        assert book.accounts.limit_of(A) == Limit(2.5, 1e-3)


def test_a_reset_of_what_is_not_there_makes_nothing(tmp_path, capsys):
    folder = tmp_path / "empty"
    folder.mkdir()
    assert cli.main(["privacy", "reset", "--yes", str(folder)]) == 0
    assert "nothing is recorded" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_books_that_were_begun_anew_have_another_secret(book):
    before = book.key.id
    begin_anew(book.party_dir, "lost")
    with book.locked():  # the same process sees it
        assert book.key.id != before
        assert steps_of(book.accounts, A) == 0


# releases of aggregators


def central_run(run="run-1", z=5.0, **fields) -> CentralRun:
    given = {"run": run, "group": "", "source": "/data/a.npz", "cut": ""}
    given |= {"mechanism": "central", "sampling": "all", "noise_multiplier": z}
    given |= {"cycle": 1, "band": 1, "participations": 1, "epsilon": 8.0}
    given |= {"delta": 1e-5, "is_secure": False}
    return CentralRun(**(given | fields))


def record(book: PartyBook, run: CentralRun, rounds: range, parts=((0, 0),)) -> None:
    with book.locked():
        for round in rounds:
            more = {"round": round, "weights": "w", "parts": [*map(list, parts)]}
            book.add(CENTRAL, **run._asdict(), **more)


def test_central_releases_of_all_runs_add_up(tmp_path, capsys):
    book = PartyBook(tmp_path)
    record(book, central_run("run-1"), range(1, 4))
    record(book, central_run("run-2"), range(1, 3))
    (spent,) = book.central.spent()
    # GDP: mu = sqrt(5) / 5; the table of the design has 1.760 (dp-accounting: 1.760)
    assert spent.epsilon == pytest.approx(1.760, abs=1e-3)
    assert dict(spent.releases) == {central_run("run-1"): 3, central_run("run-2"): 2}
    text = show(capsys, tmp_path)
    assert "the whole party: epsilon 1.76 over all runs" in text
    assert "run run-2: 2 rounds, central noise" in text


def test_of_parts_the_one_counts_that_was_in_most_rounds(tmp_path):
    book, run = PartyBook(tmp_path), central_run(cut="cut 1")
    record(book, run, range(1, 4), [(0, 9)])
    record(book, run, range(4, 6), [(2, 3), (7, 7)])
    (spent,) = book.central.spent()
    assert spent.n_parts == 10
    assert spent.releases == {run: 5}
    assert book.central.has(run, (4, "w"), [2, 7])
    assert not book.central.has(run, (4, "w"), [2, 4])


def test_who_knows_that_he_was_drawn_gains_nothing_by_sampling(tmp_path):
    book = PartyBook(tmp_path)
    record(book, central_run(sampling="poisson"), range(1, 6))
    (spent,) = book.central.spent()
    assert spent.epsilon == pytest.approx(1.760, abs=1e-3)


def test_turns_of_cyclic_rounds_cost_what_the_run_does(tmp_path):
    book = PartyBook(tmp_path)
    run = central_run(sampling="cyclic", cycle=4, band=4, participations=3, z=2.0)
    record(book, run, range(1, 13, 4))
    (spent,) = book.central.spent()
    # the whole run is one Gaussian release with mu = 1 / z
    alone = PartyBook(tmp_path / "alone")
    record(alone, central_run(z=2.0), range(1, 2))
    (once,) = alone.central.spent()
    assert spent.epsilon == pytest.approx(once.epsilon, rel=1e-6)


def test_places_in_a_row_are_written_as_one_range():
    assert ranges_of([0, 1, 2, 5, 7, 8]) == [[0, 2], [5, 5], [7, 8]]
    assert ranges_of([]) == []


# fingerprints of data


def samples(x, y=None) -> data.Samples:
    return data.Samples(x, y, None, None, nested.length(x))


def test_a_fingerprint_does_not_go_by_the_order_of_samples():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(9000, 3)), np.arange(9000) % 10
    order, rows = random.permutation(9000), [np.arange(9000)]
    (whole,) = fingerprints(samples(x, y), rows)
    assert fingerprints(samples(x[order], y[order]), rows) == [whole]
    assert fingerprints(samples(x[order], y), rows) != [whole]
    assert fingerprints(samples(x, y), [np.arange(8999)]) != [whole]
    twice = np.concatenate([np.arange(9000), [4]])
    assert fingerprints(samples(x, y), [twice]) != [whole]


def test_fingerprints_of_parts_are_those_of_the_parts_alone():
    x = np.arange(24.0).reshape(8, 3)
    odd, even = np.arange(1, 8, 2), np.arange(0, 8, 2)
    parts = fingerprints(samples(x), [odd, even])
    assert parts == [
        *fingerprints(samples(x[odd]), [np.arange(4)]),
        *fingerprints(samples(x[even]), [np.arange(4)]),
    ]
    nested_x = {"a": x, "b": x[:, 0]}
    assert fingerprints(samples(nested_x), [odd]) != parts[:1]


def test_arrays_in_files_have_the_fingerprint_of_those_in_memory(tmp_path):
    x = np.arange(24.0).reshape(8, 3)
    np.save(tmp_path / "x.npy", x)
    mapped = nested.MappedArray(np.load(tmp_path / "x.npy", mmap_mode="r"), x.dtype)
    rows = [np.arange(8)]
    assert fingerprints(samples(mapped), rows) == fingerprints(samples(x), rows)
    assert fingerprints(object(), rows) == [""]
