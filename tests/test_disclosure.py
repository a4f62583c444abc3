"""What of a private run leaves the aggregator, and what its operator alone may read."""

import dataclasses
import json
import logging
import os
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_privacy_config import CENTRAL, DISTRIBUTED, DP_SGD

from fedray import models
from fedray.aggregator.disclosure import PUBLIC, Disclosure, public_report
from fedray.aggregator.round_record import RoundRecord
from fedray.checkpoint import RunFolder, read_for_operator
from fedray.checkpoint.run_folder import Checkpoint
from fedray.config import FederationConfig
from fedray.data import config_problems
from fedray.errors import (
    ClusterError,
    ConfigError,
    JoinFailed,
    OutOfMemory,
    PartyError,
    RoundFailed,
    Stopped,
)
from fedray.federation.kernel import NotebookDisplay
from fedray.federation.stats import stats
from fedray.federation.survey import without_private_data
from fedray.messages import PartyLine, Progress, Report, RoundReport
from fedray.metrics.tracking import metric_values
from fedray.observers import Guard
from fedray.party.actor_log import log_joining, log_round
from fedray.party.updates import conceal
from fedray.progress_display import round_line, troubles_of
from fedray.report import write_report
from fedray.report.notebook import result_html
from fedray.report.statistics import merge_groups
from fedray.service.federation_actor import update_metrics
from fedray.survey import NUMBER, DataSurvey, Moments, ValueCounts

SECRET = 0.123456  # wherever a party's number stands
WHY = "failed: ValueError: x_train of patient 7"
LINE = PartyLine("a", "node-1", 17, SECRET, SECRET, SECRET, WHY, "lost vectors", "call")
SPREAD = {"n_samples": {"sum": 34}}  # where not all parties have a line
WHOLE = RoundReport(
    round=3, chosen=2, reported=2, fused=1, aggregated=True, refused=1, loss=None,
    accuracy=None, bytes_moved=4321, seconds=2.5, train_seconds=SECRET,
    evaluate_seconds=0.5, evaluated=0, parties=[LINE, replace(LINE, name="b")],
    wait_seconds=SECRET, combine_seconds=SECRET,
    bytes_saved=99, restarts=5, spread={"loss": {"min": SECRET}},
    tests={"loss": [SECRET]}, learning_rate=0.1,
)  # fmt: skip
NULL = {"refused", "restarts", "train_seconds", "wait_seconds", "combine_seconds",
        "bytes_moved", "bytes_saved", "summary"}  # fmt: skip
MECHANISMS_WITH = [
    {"privacy": CENTRAL},
    {"dp_sgd": DP_SGD},
    {"secure_aggregation": True, "clip_norm": 1.0},
]
WITH_POISSON = {"party_fraction": 0.5, "privacy": CENTRAL | {"sampling": "poisson"}}


def config_with(**changes) -> FederationConfig:
    return FederationConfig(num_parties=2, **changes)


def disclosure(folder, **changes) -> Disclosure:
    return Disclosure(config_with(**changes), folder, Guard("operator.jsonl"))


@pytest.fixture(params=[CENTRAL, DISTRIBUTED], ids=["central", "distributed"])
def hidden(request, tmp_path) -> Disclosure:
    return disclosure(tmp_path, privacy=request.param)


def assert_tells_nothing(text: str) -> None:
    for part in (str(SECRET), "patient", "ValueError", "node-1", "vectors", "4321"):
        assert part not in text, part


def test_without_a_mechanism_a_report_is_as_it_was_and_no_file_is_written(tmp_path):
    own = disclosure(tmp_path)
    assert own.report(WHOLE) is WHOLE
    assert own.notes(["party a failed"]) == ["party a failed"]
    error = RoundFailed(1, "x", {"a": "b"}, "c")
    assert own.error(error) is error
    assert list(tmp_path.iterdir()) == []


def test_what_tells_of_single_parties_is_null_and_stands_in_the_operators_file(hidden):
    public = hidden.report(WHOLE)
    line = json.loads(json.dumps(public.to_json()))
    assert_tells_nothing(json.dumps(line))
    assert {name for name in NULL if line[name] is not None} == set()
    assert [party.pop("name") for party in line["parties"]] == ["a", "b"]
    for party in line["parties"]:
        assert set(party.values()) == {None, ""}
    assert (line["chosen"], line["reported"], line["fused"]) == (2, 2, 2)
    (whole,) = read_for_operator(hidden.folder)
    assert whole["parties"][0]["outcome"] == WHY
    assert (whole["refused"], whole["restarts"], whole["fused"]) == (1, 5, 1)
    assert whole["train_seconds"] == whole["wait_seconds"] == SECRET


def test_a_new_field_of_a_report_is_hidden_unless_it_is_declared_public(hidden):
    fields = {field.name: field for field in dataclasses.fields(RoundReport)}
    assert fields.keys() - PUBLIC == NULL | {
        "tests", "spread", "estimate", "threshold", "growth", "best",
        "staleness", "expired", "virtual_s", "order", "edges",
    }  # fmt: skip
    whole = replace(WHOLE, best="a", estimate=SECRET, threshold=SECRET, growth=SECRET)
    whole = replace(whole, staleness=SECRET, virtual_s=SECRET, order=[[0, 1]])
    public = hidden.report(whole)
    for name in fields.keys() - PUBLIC:
        assert getattr(public, name) in (None, {}, []), name


def test_the_operators_file_is_for_its_owner_alone_and_grows(hidden):
    file = hidden.folder / "operator.jsonl"
    file.write_text("")
    file.chmod(0o644)
    for _ in range(2):
        hidden.report(WHOLE)
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(read_for_operator(hidden.folder)) == 2


def test_no_file_elsewhere_is_written_through_a_link(hidden, tmp_path):
    target = tmp_path / "target"
    target.write_text("")
    (hidden.folder / "operator.jsonl").symlink_to(target)
    hidden.guard.warn = said = lambda text: said.lines.append(text)
    said.lines = []
    assert_tells_nothing(json.dumps(hidden.report(WHOLE).to_json()))
    assert target.read_text() == ""
    assert "the run goes on without it" in said.lines[0]


def test_what_samples_spend_tells_how_many_there_are(hidden):
    of_samples = {"epsilon": SECRET, "delta": 1e-5}
    privacy = {"epsilon": 2.0, "delta": 1e-3, "releases": 3}
    public = hidden.report(replace(WHOLE, privacy=privacy | {"samples": of_samples}))
    assert public.privacy == privacy | {"weights": "equal"}


def test_that_an_update_was_refused_shows_in_no_count(hidden):
    refused = hidden.report(WHOLE)
    fine = hidden.report(replace(WHOLE, fused=2, refused=0, bytes_moved=8642))
    assert refused == fine


def test_poisson_hides_who_was_chosen_and_how_many(tmp_path):
    own = disclosure(tmp_path, **WITH_POISSON)
    public = own.report(WHOLE)
    assert (public.chosen, public.reported, public.fused) == (None, None, None)
    assert public.parties == []
    progress = own.progress(progress_with({"a": WHY}))
    assert (progress.chosen, progress.reported) == (0, 0)
    failed = own.error(RoundFailed(3, "1 reported, 2 needed", {"a": WHY}, "kept."))
    assert "1 reported" not in str(failed)


def test_which_parties_have_a_line_does_not_go_by_their_trouble(hidden):
    cut = replace(WHOLE, parties=[LINE], summary=SPREAD)  # the one in trouble, of two
    assert hidden.report(cut).parties == []
    whole = hidden.report(WHOLE)
    assert [line.name for line in whole.parties] == ["a", "b"]


def test_a_rate_by_steps_tells_how_many_batches_a_party_has(tmp_path):
    by_step = {"scheduler": "cosine", "scheduler_every": "step"}
    own = config_with(privacy=CENTRAL, **by_step)
    assert public_report(WHOLE, own).learning_rate is None
    own = config_with(privacy=CENTRAL, scheduler="cosine")
    assert public_report(WHOLE, own).learning_rate == 0.1


def test_masks_hide_sample_counts_and_dp_sgd_nothing_that_reports_have(tmp_path):
    masked = disclosure(tmp_path, secure_aggregation=True, clip_norm=1.0)
    line = masked.report(WHOLE).parties[0]
    assert (line.n_samples, line.outcome) == (None, WHY)
    summed = masked.report(replace(WHOLE, summary=SPREAD))
    assert summed.summary == {"n_samples": None}
    assert disclosure(tmp_path, dp_sgd=DP_SGD).report(WHOLE) is WHOLE
    assert read_for_operator(tmp_path) == []


def test_followers_see_no_party_of_the_round_under_way(hidden):
    progress = hidden.progress(progress_with({"a": WHY}))
    assert (progress.troubled, progress.working) == ({}, {})
    assert (progress.chosen, progress.reported) == (2, 1)
    # who adds a field has thought of what it tells of single parties
    assert {field.name for field in dataclasses.fields(Progress)} == {
        "reports", "round", "stage", "chosen", "reported", "troubled", "notes",
        "rounds", "folder", "working", "waited_s", "timeout_s",
    }  # fmt: skip


def progress_with(troubled) -> Progress:
    working = {"a": SECRET}
    return Progress([], 3, "training", 2, 1, troubled, [], 5, working=working)


def test_notes_of_parties_are_for_the_operator(hidden):
    assert hidden.notes([f"party a {WHY}"]) == []
    assert read_for_operator(hidden.folder) == [{"notes": [f"party a {WHY}"]}]
    assert hidden.notes([]) == []


@pytest.mark.parametrize(
    "error",
    [
        RoundFailed(3, "1 reported, 2 needed", {"a": WHY}, "2 rounds are kept.", "log"),
        JoinFailed({"a": WHY}, "log"),
        PartyError("a", "training", "ValueError", "x_train of patient 7", "h.py:3"),
        OutOfMemory("party a", "was killed for x_train of patient 7"),
        ValueError(WHY),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_run_fails_without_the_parties_reasons(hidden, error):
    public = hidden.error(error)
    assert_tells_nothing(f"{public} {public.summary} {public!r}")
    assert_tells_nothing(str(pickle.loads(pickle.dumps(public))))
    assert "operator.jsonl" in str(public)
    assert isinstance(public, type(error) if not isinstance(error, ValueError)
                      else ClusterError)  # fmt: skip
    (line,) = read_for_operator(hidden.folder)
    assert "patient 7" in line["error"]


def test_a_failure_says_what_was_needed_and_where_the_reasons_are(hidden):
    failed = hidden.error(RoundFailed(3, "1 reported, 2 needed", {"a": WHY}, "kept."))
    assert str(failed) == (
        "round 3 failed: 1 reported, 2 needed; only operator.jsonl in the run's folder "
        "says why. kept. Mend the parties and go on with --resume, or lower quorum."
    )


def test_poisson_tells_no_partys_name_in_an_error(tmp_path):
    own = disclosure(tmp_path, **WITH_POISSON)
    error = PartyError("hospital-a", "training round 3", "ValueError", WHY, "")
    assert "hospital" not in str(own.error(error))


def test_a_pipe_in_the_operators_place_holds_nothing_up(hidden):
    os.mkfifo(hidden.folder / "operator.jsonl")
    assert_tells_nothing(json.dumps(hidden.report(WHOLE).to_json()))
    assert hidden.guard.has_failed


@pytest.mark.parametrize(
    "needed", [f"party a {WHY}", "1 reported, 1 of them refused, 2 needed"]
)
def test_no_other_words_of_a_failed_round_are_passed_on(hidden, needed):
    failed = hidden.error(RoundFailed(3, needed, {}, "kept."))
    assert_tells_nothing(str(failed))
    assert "refused" not in str(failed)
    assert "there is no sum of enough parties" in str(failed)


def test_why_a_round_is_skipped_is_for_the_operator(hidden):
    assert_tells_nothing(hidden.report(replace(WHOLE, skipped=WHY)).skipped)
    record = RoundRecord(3, np.arange(2), hidden.config)
    record.skipped = WHY
    assert record.notes() == []
    assert record.party_notes() == [f"round 3 is skipped: {WHY}"]


def test_other_errors_are_as_they_were(hidden):
    stopped = Stopped(1, 2, "folder")
    assert hidden.error(stopped) is stopped


def test_every_page_and_table_does_without_what_is_hidden(hidden, tmp_path):
    public = hidden.report(WHOLE)
    config = hidden.config.to_dict()
    assert round_line(public, 5) == (
        "   3 of 5    2 of 2         -         -          -         -    2.50 s"
    )
    assert troubles_of(public) == {}
    page = write_report(tmp_path, config, [public, replace(public, round=4)], "")
    text = page.read_text("utf-8")
    assert_tells_nothing(text)
    assert "operator.jsonl" in text
    assert_tells_nothing(result_html("tiny", [public, public]))
    assert merge_groups([public, replace(public, group="b")])[0].chosen == 4
    assert merge_groups([public, replace(public, group="b")])[0].refused is None
    assert update_metrics({}, public)["bytes_moved"] is None
    assert update_metrics(update_metrics({}, public), public)["bytes_moved"] is None
    display = NotebookDisplay(5)
    display(replace(progress_with({}), reports=[public]))
    assert_tells_nothing(json.dumps(display._repr_mimebundle_()))


def test_metrics_and_trackers_get_no_number_of_a_party(hidden):
    names = {name for name, _ in metric_values(hidden.report(WHOLE))}
    assert names == {"chosen", "reported", "fused", "seconds", "evaluate_seconds",
                     "learning_rate"}  # fmt: skip


def test_poisson_pages_need_no_counts(tmp_path):
    public = disclosure(tmp_path, **WITH_POISSON).report(WHOLE)
    assert "        -" in round_line(public, 5)
    text = write_report(tmp_path, {}, [public], "").read_text("utf-8")
    assert_tells_nothing(text)
    assert_tells_nothing(result_html("tiny", [public]))


def test_a_checkpoint_and_the_history_keep_what_is_public(hidden):
    folder, public = RunFolder(hidden.folder), hidden.report(replace(WHOLE, round=1))
    folder.save(Checkpoint(1, {"w": np.ones(2, np.float32)}, {}, public))
    again, damage = folder.newest_checkpoint()
    assert (again.report, damage) == (public, [])
    assert folder.history() == [public]
    assert_tells_nothing(folder.history_file.read_text())


def test_logs_of_actors_have_no_number_of_a_party(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedray"), "propagate", True)  # to caplog
    loss = np.array([SECRET])
    report = report_of(loss)
    data = SimpleNamespace(n_train=np.array([17]), model=SimpleNamespace(device="cpu"))
    for config, hides in ((config_with(privacy=CENTRAL), True), (config_with(), False)):
        caplog.clear()
        actor = SimpleNamespace(config=config)
        with caplog.at_level(logging.INFO, "fedray"):
            log_joining(actor, 1, data)
            log_round(actor, report, SECRET)
        lines = "".join(caplog.messages)
        assert ("17 samples" not in lines) == hides
        assert ("0.12" not in lines) == hides


@pytest.mark.parametrize(
    ("changes", "loss", "drift"),
    [
        ({}, SECRET, SECRET),
        ({"privacy": CENTRAL}, SECRET, SECRET),  # the operator may know
        ({"dp_sgd": DP_SGD}, None, SECRET),
        ({"secure_aggregation": True, "clip_norm": 1.0}, None, None),
        ({"secure_aggregation": True, "privacy": DISTRIBUTED}, None, None),
    ],
    ids=str,
)
def test_a_party_leaves_out_of_its_report_what_no_mechanism_covers(
    changes, loss, drift
):
    report = report_of(np.array([SECRET]))
    conceal(report, config_with(**changes))
    for column, value in ((report.loss, loss), (report.drift, drift)):
        np.testing.assert_array_equal(column, [np.nan if value is None else value])


def report_of(loss: np.ndarray) -> Report:
    n, drift = np.array([17]), loss.copy()
    return Report(1, "node-1", np.array([0]), n, loss, drift, SECRET, 10)


@pytest.mark.parametrize("changes", MECHANISMS_WITH, ids=str)
def test_a_survey_keeps_names_of_columns_alone(changes):
    moments = {"": Moments.of(np.ones((3, 1)), ["age"])}
    survey = DataSurvey({"age": NUMBER}, moments, n_samples=17)
    kept = without_private_data(config_with(**changes), survey)
    assert (kept.columns, kept.moments, kept.n_samples) == ({"age": NUMBER}, {}, 0)
    assert without_private_data(config_with(), survey) is survey


@pytest.mark.parametrize("part", ["labels", "categories", "words"])
def test_names_of_classes_and_categories_are_not_counted(part):
    names = ValueCounts.uncounted(["Jane Doe"])
    survey = DataSurvey(**{part: {"ward": names} if part == "categories" else names})
    with pytest.raises(ConfigError, match="names of classes or categories") as caught:
        without_private_data(config_with(dp_sgd=DP_SGD), survey)
    assert "Jane" not in str(caught.value)


def test_no_mean_of_all_parties_stands_for_what_is_missing():
    own = config_with(
        privacy=CENTRAL, data_handler="csv", data_args={"missing": "mean"}
    )
    (problem,) = [p for p in config_problems(own) if "missing" in p]
    assert "give a number" in problem
    assert config_problems(own.with_changes(privacy=None)) == []


@pytest.mark.parametrize(
    ("changes", "is_refused"),
    [
        ({"privacy": CENTRAL}, True),
        ({"dp_sgd": DP_SGD}, True),
        ({"secure_aggregation": True, "clip_norm": 1.0}, False),
        ({}, False),
    ],
    ids=str,
)
def test_batch_norms_are_refused_before_a_party_is_asked(tmp_path, changes, is_refused):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))\n"
    )
    config = config_with(architecture=f"{tmp_path}/net.py:net", **changes)
    if not is_refused:
        models.named("pytorch").read(config)
        return
    with pytest.raises(ConfigError, match=r"batch norms \(1\.bias, .*GroupNorm"):
        models.named("pytorch").read(config)


def test_statistics_of_protected_data_are_refused():
    with pytest.raises(ConfigError, match="statistics of the parties' data have no"):
        stats(config_with(privacy=CENTRAL))
