"""Outcomes: the texts of history.jsonl, made from values and read back to them."""

import pytest

from fedray.errors import RoundFailed
from fedray.messages import Outcome, PartyLine, Rejection, RoundReport

TEXTS = [
    (Outcome("waiting"), "waiting"),
    (Outcome("fused"), "fused"),
    (Outcome("fused", "late", "3"), "fused: late, of round 3"),
    (Outcome("apart"), "apart"),
    (Outcome("late"), "late"),
    (Outcome("late", "busy", "1"), "late: still trains round 1"),
    (Outcome("failed", "call", "ValueError: x: y"), "failed: ValueError: x: y"),
    (Outcome("failed", "lost", "ObjectLost: z"), "failed: update lost: ObjectLost: z"),
    (Outcome("failed", "combine", "Died: z"), "failed: combining: Died: z"),
    (Outcome("refused", "report", "is a dict"), "refused: its report is a dict"),
    (Outcome("refused", "type", "sent a dict, not an Update"),
     "refused: sent a dict, not an Update"),
    (Outcome("refused", "norm", "its step of length 3 is above max_update_norm 1"),
     "refused: its step of length 3 is above max_update_norm 1"),
]  # fmt: skip


@pytest.mark.parametrize(("outcome", "text"), TEXTS)
def test_an_outcome_becomes_its_text_and_is_read_back(outcome, text):
    assert str(outcome) == text
    assert Outcome.parse(text) == Outcome.parse(text, outcome.code) == outcome
    assert f"{outcome.kind}: {outcome.reason}".removesuffix(": ") == text


def test_a_code_beside_the_text_is_believed():
    text = "refused: something that nobody thought of"
    assert Outcome.parse(text, "count").code == "count"
    assert Outcome.parse(text).code == "other"


def test_a_refused_party_has_the_code_of_its_rejection():
    rejection = Rejection("schema", "tensors missing: ['w']")
    assert Outcome.refused(rejection) == Outcome("refused", "schema", str(rejection))
    assert Rejection.parse(rejection.detail) == rejection


def test_a_line_of_an_older_run_has_no_code():
    line = PartyLine("a", outcome="late", code="")
    old = {key: value for key, value in vars(line).items() if key != "code"}
    plain = {
        "round": 1, "chosen": 1, "reported": 0, "fused": 0, "aggregated": True,
        "refused": 0, "loss": None, "accuracy": None, "bytes_moved": 0, "seconds": 1.0,
        "train_seconds": 0.0, "evaluate_seconds": 0.0, "evaluated": 0, "parties": [old],
    }  # fmt: skip
    assert RoundReport.from_json(plain).parties == [line]


def test_a_party_whose_process_ended_is_told_without_rays_words():
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    from fedray.aggregator.party_actors import reason

    for error in (ActorDiedError(), ActorUnavailableError("rpc_code: 14", b"x" * 16)):
        assert reason(error).startswith("its process ended, or its node cannot be")


def test_a_round_that_failed_says_so_in_whole_sentences():
    failed = RoundFailed(2, "1 was refused.", {"a": "refused: NaN"}, "Kept.")
    assert failed.summary == (
        "round 2 failed: 1 was refused. Not fused:\n  - a: refused: NaN\nKept."
    )
    assert RoundFailed(1, "0 reported", {}, "Kept.").summary == (
        "round 1 failed: 0 reported. Kept."
    )
