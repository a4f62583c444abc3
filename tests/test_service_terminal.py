"""Lines of `fedray serve`'s terminal, and a federation's report, from its folder."""

import dataclasses
import json
import math
from types import SimpleNamespace

from fedray.service import store
from fedray.service.federation_actor import client_report, update_metrics
from fedray.service.store import FAILED, STOPPED, TRAINED, TRAINING, State
from fedray.service.terminal import FederationLines

LINE = {"round": 1, "chosen": 3, "fused": 2, "loss": 0.31, "accuracy": None,
        "seconds": 1.23}  # fmt: skip
MODEL = "a" * 32 + ".pt"


def federation(root, **changes) -> State:
    state = State("8a6d" + "0" * 28, None, {"rounds": "5"}, 2)
    files = {MODEL: "model_file größe.pt"}
    state = dataclasses.replace(state, model_file=f"/x/{MODEL}", files=files, **changes)
    (root / state.id).mkdir(exist_ok=True)
    store.save(root / state.id, state)
    return state


def test_the_terminal_has_a_line_for_each_join_round_and_end(tmp_path):
    before = State("b" * 32, None, {}, 1)
    (tmp_path / before.id).mkdir()
    store.save(tmp_path / before.id, before)
    lines = FederationLines(tmp_path)
    assert lines.new_lines() == []  # what was there before is not told
    state = federation(tmp_path)
    assert lines.new_lines() == ["größe-8a6d: 0 of 2 parties have joined"]
    assert lines.new_lines() == []
    federation(tmp_path, state=TRAINING)
    history = tmp_path / state.id / "history.jsonl"
    whole = json.dumps(LINE) + "\n"
    history.write_text(whole + whole[:20])  # a line that is just being written
    assert lines.new_lines() == [
        "größe-8a6d: training",
        "größe-8a6d: round 1 of 5, 2 of 3 fused, loss 0.31, 1.2 s",
    ]
    history.write_text(whole + json.dumps(LINE | {"round": 2, "accuracy": 0.5}) + "\n")
    assert lines.new_lines() == [
        "größe-8a6d: round 2 of 5, 2 of 3 fused, loss 0.31, accuracy 0.5, 1.2 s"
    ]
    failure = {"status": 502, "detail": "party-1:\n  no data", "hint": ""}
    federation(tmp_path, state=FAILED, error=failure)
    assert lines.new_lines() == ["größe-8a6d: failed: party-1: no data"]
    federation(tmp_path, state=STOPPED)
    assert lines.new_lines() == ["größe-8a6d: stopped"]


def test_a_damaged_folder_only_loses_its_own_lines(tmp_path):
    lines = FederationLines(tmp_path)
    federation(tmp_path, state=TRAINED)
    for name, text in (("c" * 32, "{"), ("d" * 32, '{"id": 1}'), ("e" * 32, "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / store.FILE).write_text(text)
    (tmp_path / "a file").write_text("")
    assert lines.new_lines() == ["größe-8a6d: trained"]


def test_a_loss_that_is_not_finite_is_none_in_the_state_which_is_json(tmp_path):
    metrics = {"round": 1, "loss": 0.5, "accuracy": 0.5, "bytes_moved": 3}
    for loss in (math.inf, math.nan):
        report = SimpleNamespace(
            round=2, loss=loss, accuracy=None, bytes_moved=4, spread={}, stop_reason="",
            privacy={}, staleness=None, numbers=[("f1", 0.25), ("mine", loss)],
        )  # fmt: skip
        after = update_metrics(metrics, report)
        assert after == {
            "round": 2, "loss": None, "accuracy": 0.5, "bytes_moved": 7,
            "metrics": {"f1": 0.25, "mine": None},
        }  # fmt: skip
        later = SimpleNamespace(**vars(report) | {"numbers": []})  # not evaluated
        assert update_metrics(after, later)["metrics"] == after["metrics"]
        state = federation(tmp_path, state=TRAINING, metrics=after)
        assert store.read(tmp_path / state.id).metrics == after


def test_a_report_over_rest_has_the_clients_names_and_no_path_of_the_server(tmp_path):
    folder = tmp_path / "a & b"
    folder.mkdir()
    assert client_report(folder, {}) is None
    shown = str(folder).replace("&", "&amp;")
    page = f"model_file: {shown}/uploads/{MODEL}\nfedray run {shown}/config.yaml"
    page += "\ndata: /srv/data/x.npz"
    (folder / "report.html").write_text(page)
    words = {MODEL: "model_file <b>.pt", "/srv/data/x.npz": "data_path x.npz"}
    assert client_report(folder, words).decode().splitlines() == [
        "model_file: model_file &lt;b&gt;.pt",
        "fedray run config.yaml",
        "data: data_path x.npz",
    ]
