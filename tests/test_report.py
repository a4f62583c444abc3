"""report.html: one file that needs nothing else, and says what happened."""

import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from fedray import report as report_room
from fedray.federation.result import Result
from fedray.messages import PartyLine, RoundReport
from fedray.report import format_bytes, write_report
from fedray.report.charts import draw_curves
from fedray.report.formatting import axis_ticks, format_duration
from fedray.report.statistics import party_statistics

CONFIG = {"name": "mnist", "fusion_algorithm": "fedavg", "rounds": 3, "seed": 0}
VOID = {"meta"}
HOSTILE = "<script src=http://evil.example/x>\"'&"


def line(name, outcome="fused", **known):
    return PartyLine(name, outcome=outcome, **known)


def round_(n, parties=(), loss=0.5, accuracy=0.9):
    counts = dict.fromkeys(("chosen", "reported", "fused"), len(parties))
    seconds = {"seconds": 4.0, "train_seconds": 3.0, "evaluate_seconds": 0.5}
    rest = {"aggregated": True, "refused": 0, "bytes_moved": 2_400_000, "evaluated": 9}
    scores = {"loss": loss, "accuracy": accuracy, "parties": [*parties]}
    return RoundReport(n, **counts, **seconds, **rest, **scores)


@pytest.fixture
def written(tmp_path):
    """Write a report and give back its text."""

    def write(history, config=CONFIG, note=""):
        return write_report(tmp_path, config, history, note).read_text("utf-8")

    return write


@pytest.fixture
def plain(written, monkeypatch):
    """The same where matplotlib is not installed."""
    for name in [*sys.modules]:
        if name.partition(".")[0] == "matplotlib":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    return written


class Reader(HTMLParser):
    """Collects tags and what they hold; complains of what is not closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.ids, self.words = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def shown(page):
    return " ".join(" ".join(Reader(page).words).split())


TROUBLED = [
    round_(1, [line("a"), line("b", "failed: the actor died")], loss=None),
    round_(2, [line("a", "late"), line("b", "failed: the actor died")]),
    round_(3, [line("a", "refused: 3 values are not finite"), line("b", "failed")]),
]


@pytest.fixture(scope="module")
def troubled(tmp_path_factory):
    """The text of a report with curves, where matplotlib is there."""
    folder, config = tmp_path_factory.mktemp("run"), {**CONFIG, "rounds": 5}
    return write_report(folder, config, TROUBLED, "stopped early").read_text("utf-8")


def test_the_page_is_well_formed_and_no_id_is_given_twice(written, troubled):
    for page in (troubled, written([])):
        reader = Reader(page)
        assert len(reader.ids) == len(set(reader.ids))
        assert ("h1", {}) in reader.tags


def test_the_page_loads_nothing_and_runs_nothing(troubled):
    for tag, attrs in Reader(troubled).tags:
        assert tag not in {"script", "link", "img", "iframe", "image", "object", "base"}
        assert not {"src", "srcset", "data", "poster", "action"} & set(attrs)
        assert not [key for key in attrs if key.startswith("on")]
        assert attrs.get("href", "#").startswith("#")
    assert not re.search("https?:|@import", troubled)
    assert set(re.findall(r"url\(.", troubled)) <= {"url(#"}
    assert "default-src 'none'" in troubled  # a browser holds it to that, too


def test_a_run_is_repeated_by_a_command_or_in_python(plain):
    assert "--run-dir NEW" in plain([])
    parties = [{"name": "a", "data": "in memory/a"}]
    page = plain([], {**CONFIG, "parties": parties})
    assert "--run-dir NEW" not in page
    assert "the same call of fedray.run in Python" in page


def test_a_plot_has_whole_rounds_and_says_what_is_not_measured(tmp_path):
    pytest.importorskip("matplotlib")
    history = [round_(n, accuracy=None) for n in (1, 2, 3)]
    loss, accuracy = Result(tmp_path, tmp_path, None, history).plot()
    assert all(tick == round(tick) for tick in loss.get_xticks())
    assert accuracy.get_xlabel() == "not measured"


def test_untrusted_text_is_escaped(plain):
    party = line(HOSTILE, f"failed: {HOSTILE}", node=HOSTILE)
    odd = line("b", f"{HOSTILE}: why")
    config = {"name": HOSTILE, "fusion_algorithm": HOSTILE, HOSTILE: HOSTILE}
    page = plain([round_(1, [party, odd])], config, note=HOSTILE)
    assert "<script" not in page
    assert page.count("&lt;script") >= 9  # title, h1, rule, note, party 3x, why, config
    unseen = plain([round_(1, [line("a\u202eb\x00c\udc80d")])])
    assert r"a\u202eb\u0000c\udc80d" in unseen  # marked, and fit to be stored


def test_the_page_shows_progress_results_and_note(troubled, plain):
    words = shown(troubled)
    assert "3 of 5 rounds done with 2 parties, fused by fedavg" in words
    assert "stopped early" in words
    assert "Loss 0.5 Accuracy 90.00% Bytes moved 7.2 MB Time 12.0 s" in words
    last_unknown = [round_(1), round_(2, loss=None, accuracy=None)]
    assert "Loss after round 1 0.5" in shown(plain(last_unknown))


def test_rounds_without_a_loss_are_gaps_in_the_curve(written):
    pytest.importorskip("matplotlib")
    losses = [4.0, 3.0, None, 2.0, float("nan"), float("inf"), 2.0, 1.0]
    page = written([round_(n, loss=loss) for n, loss in enumerate(losses, 1)])
    drawn = re.search(r'<g id="loss-line">\s*<path d="([^"]*)"', page)[1]
    assert (drawn.count("M"), drawn.count("L")) == (3, 2)  # 1-2, 4 alone, 7-8
    assert "<td>–</td>" in page
    assert not re.search("nan|inf", drawn)


def test_a_value_that_was_never_measured_has_no_curve(written):
    pytest.importorskip("matplotlib")
    words = shown(written([round_(1, loss=None, accuracy=None)]))
    assert not re.search("(Loss|Accuracy) by round", words)


def test_an_empty_history_makes_a_report(written):
    words = shown(written([], note="PlacementError: no node has the label"))
    assert "No round was finished." in words
    assert "PlacementError: no node has the label" in words


def test_without_matplotlib_there_are_tables_and_a_hint_to_install_it(plain):
    page = plain(TROUBLED)
    assert "pip install 'fedray[report]'" in shown(page)
    assert "<figure>" not in page
    assert "<details open>" in page
    assert page.count("<table>") == 2


def test_failures_of_every_party_are_listed_with_rounds_and_reasons(troubled):
    words = shown(troubled)
    assert "a refused in round 3 3 values are not finite" in words
    assert "failed in rounds 1–2 the actor died" in words
    assert "failed in round 3 No reason was given." in words


def test_party_statistics_count_rounds_and_sort_party_2_before_party_10():
    told = {"seconds": 1.0, "loss": 0.7, "n_samples": 10, "node": "n" * 56}
    history = [
        round_(1, [line("p-10", **told), line("x")]),
        round_(2, [line("p-2"), line("p-10", "late")]),
        round_(3, [line("p-10", seconds=3.0, loss=0.6)]),
    ]
    p2, p10, x = party_statistics(history)
    assert [p.name for p in (p2, p10, x)] == ["p-2", "p-10", "x"]
    assert (p2.kinds, x.kinds) == ({2: "fused"}, {1: "fused"})
    assert p10.kinds == {1: "fused", 2: "late", 3: "fused"}
    assert (p10.seconds, p10.loss) == ([1.0, 3.0], 0.6)
    assert (p10.n_samples, p10.node) == (10, "n" * 56)


def test_long_lists_of_parties_are_truncated_to_the_most_troubled(plain):
    parties = [line(f"p{n}") for n in range(1_200)] + [line("zz", "late")]
    page = plain([round_(1, parties)])
    words = shown(page)
    assert "Shown: 50 of 1,201 parties, those with most trouble." in words
    assert "Shown: 1,000 of 1,201 parties, those with most trouble." in words
    assert page.count(">zz</") == 3  # in both pictures and in the table


def test_long_histories_are_truncated_with_a_note(plain):
    words = shown(plain([round_(n, [line("a")]) for n in range(1, 1_201)]))
    assert "Shown: 40 of 1,200 rounds, the last." in words  # the timeline
    assert "Shown: 200 of 1,200 rounds, the last." in words  # the grid of outcomes
    assert "Shown: 1,000 of 1,200 rounds, the last." in words  # the table


def test_curves_of_long_histories_are_averaged_with_a_note(written):
    pytest.importorskip("matplotlib")
    # 3: the fewest rounds a point that make 1,200 rounds at most 500 points
    page = written([round_(n, loss=float(n)) for n in range(1, 1_201)])
    assert "Each point is the mean of 3 rounds." in shown(page)
    drawn = re.search(r'<g id="loss-line">\s*<path d="([^"]*)"', page)[1]
    points = re.findall(r"[ML] (\S+) (\S+)", drawn)
    assert len(points) <= 400  # 1,200 / 3; points on one line are left out
    first, last = points[0], points[-1]
    rising = float(first[0]) < float(last[0]) and float(first[1]) > float(last[1])
    assert rising  # y of SVG grows downwards
    short = shown(written([round_(n) for n in range(1, 501)]))
    assert "Each point is the mean" not in short


def test_the_page_has_the_command_that_repeats_the_run(tmp_path):
    words = shown(write_report(tmp_path / "my run", CONFIG, []).read_text("utf-8"))
    assert f"fedray run '{tmp_path}/my run/config.yaml' \\ --run-dir NEW" in words
    assert "fusion_algorithm: fedavg" in words


def test_without_git_or_a_repository_there_is_no_commit(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "git commit" not in written([])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git commit" not in written([])


def test_curves_are_deterministic_and_leave_matplotlibs_settings_unchanged():
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    assert draw_curves(TROUBLED) == draw_curves(TROUBLED)
    assert dict(matplotlib.rcParams) == before


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    written, tmp_path, monkeypatch
):
    old = written([])
    monkeypatch.setattr(
        report_room, "render_page", lambda *_: "\udc80"
    )  # no file can hold it
    with pytest.raises(UnicodeEncodeError):
        write_report(tmp_path, CONFIG, [])
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text("utf-8") == old


def test_importing_the_report_loads_no_matplotlib():
    code = "import fedray.report, sys; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_bytes_and_durations_are_formatted_with_units():
    assert [format_bytes(n) for n in (0, 999, 4_800_000, 999_600)] == [
        "0 B", "999 B", "4.8 MB", "1.0 MB"
    ]  # fmt: skip
    assert [format_duration(s) for s in (0.85, 12.4, 59.96, 65, 7_380, None)] == [
        "850 ms", "12.4 s", "1 min 00 s", "1 min 05 s", "2 h 03 min", "–"
    ]  # fmt: skip


def test_ticks_are_round_numbers_and_few():
    assert axis_ticks(range(1, 41)) == [1, 5, 10, 15, 20, 25, 30, 35, 40]
    assert axis_ticks(range(501, 701)) == [501, 550, 600, 650, 700]


def test_omitted_party_lines_are_noted(written):
    whole = written([round_(1, [line("a"), line("b")])])
    assert "history_parties" not in Reader(whole).words
    part = dataclasses.replace(
        round_(1, [line("party-7", "late")]),
        chosen=4_000,
        summary={"outcomes": {"fused": 3_999, "late": 1}},
    )
    page = " ".join(Reader(written([part], CONFIG | {"num_parties": 5_000})).words)
    assert "with 5,000 parties" in page
    assert "Up to 4,000 parties were chosen in a round" in page
    assert "history.jsonl sums up all of them" in page


def adaptive(n, aggregated, estimate):
    parties = [line("a", "fused" if aggregated else "apart"), line("b", "late")]
    loss, accuracy = (0.5, 0.9) if aggregated else (None, None)
    whole = round_(n, parties, loss, accuracy)
    limits = {"estimate": estimate, "threshold": 2.0, "aggregated": aggregated}
    return dataclasses.replace(whole, **limits)


def test_an_adaptive_run_shows_disagreement_and_threshold(written):
    history = [adaptive(1, True, 0.5), adaptive(2, False, 1.25), adaptive(3, True, 2.5)]
    page = written(history)
    words = shown(page)
    assert "fused in 2 of 3 rounds" in words
    assert "disagreement fuse above" in words
    assert 'aria-label="Disagreement by round, fused in 2 of 3 rounds"' in page
    assert {party.name: party.n_trouble for party in party_statistics(history)} == {
        "a": 0,
        "b": 3,
    }


def test_every_group_has_its_own_curves(written):
    history = [
        dataclasses.replace(round_(n, [line(name)], accuracy=0.5), group=group)
        for n in (1, 2)
        for group, name in (("eu", "a"), ("<us>", "b"))
    ]
    page = written(history)
    reader = Reader(page)
    assert len(reader.ids) == len(set(reader.ids))
    assert "<h3>eu</h3>" in page
    assert "<h3>&lt;us&gt;</h3>" in page
    assert "2 of 3 rounds done with 2 parties" in shown(page)


MEMBERS = {"fusion_algorithm": "ensemble", "rounds": 2, "test_data": "t.npz"}
TOLD = {"members": [["a", "pytorch", 3.0], ["<b>", "keras", 1.0]],
        "loss": 0.25, "accuracy": 0.75, "student_loss": 0.5,
        "student_accuracy": 0.625}  # fmt: skip


def of_members():
    """Two rounds of 4 s: a is right in 0.5, <b> in 0.6."""
    return [
        dataclasses.replace(round_(n, [line(name)], 1.5, right), group=name)
        for n in (1, 2)
        for name, right in (("a", 0.5), ("<b>", 0.6))
    ]


def test_an_ensemble_has_a_table_of_its_members(tmp_path):
    path = write_report(tmp_path, MEMBERS, of_members(), ensemble=TOLD)
    page = path.read_text("utf-8")
    reader, words = Reader(page), shown(page)
    assert len(reader.ids) == len(set(reader.ids))
    assert "2 of 2 rounds done with 2 parties, members of an ensemble" in words
    # rounds of 4 s in which both trained, 2.4 MB each
    figures = "Loss together 0.25 Accuracy together 75.00%"
    assert f"{figures} Bytes moved 9.6 MB Time 8.0 s" in words
    assert "a pytorch 75.00% 1.5 50.00% <b> keras 25.00% 1.5 60.00%" in words
    assert "together – – 0.25 75.00% student – – 0.5 62.50%" in words
    assert "tested by the aggregator on test_data" in words
    half = MEMBERS | {"member_weights": "accuracy"}
    page = write_report(tmp_path, half, of_members(), ensemble=TOLD).read_text("utf-8")
    assert "Every second sample of it made their weights" in shown(page)


def test_an_ensembles_charts_have_a_curve_for_each_member(written):
    pytest.importorskip("matplotlib")
    page = written(of_members(), MEMBERS)
    for name in ("loss", "accuracy"):
        assert page.count(f'aria-label="{name.capitalize()} by round') == 1
        assert all(f'<g id="{name}-line{i}">' in page for i in (0, 1))
        assert f'id="{name}-together"' not in page  # it did not come so far
    assert "Loss together" not in shown(page)
    assert "Accuracy 60.00%" not in shown(page)  # nobody's stands for all


def test_scores_of_groups_are_weighted_by_samples_and_time_is_counted_once(plain):
    history = [
        dataclasses.replace(line, group=line.parties[0].name, evaluated=n)
        for line, n in zip(of_members()[:2], (1, 3), strict=True)
    ]
    words = shown(plain(history))  # accuracies 0.5 and 0.6, of 1 and 3 samples
    assert "Accuracy 57.50% Bytes moved 4.8 MB Time 4.0 s" in words


def bars(page, kind):
    """(from, to, row) of every bar of one kind in the last picture of parties."""
    path = re.findall(rf'<path class="{kind}" d="([^"]*h[^"]*)"', page)[-1]
    found = re.findall(r"M(\d+) (\d+)h(\d+)v", path)
    return [(int(x), int(x) + int(w), int(y) // 50) for x, y, w in found]


def test_the_timeline_shows_training_and_waiting_of_each_party(written):
    page = written(
        [
            round_(1, [line("a", seconds=1.0), line("b", seconds=3.0)]),
            round_(2, [line("a", seconds=2.0), line("b", "late")]),
        ]
    )  # two rounds of 4 s: 10,000 units are 8 s
    trained = [(0, 1250, 0), (0, 3750, 1), (5000, 7500, 0)]
    waited = [(1250, 5000, 0), (3750, 5000, 1), (7500, 10_000, 0)]
    for kind, spans in (("fused", trained), ("rest", waited)):
        found = bars(page, kind)
        assert [(x, row) for x, _, row in found] == [(x, row) for x, _, row in spans]
        for (_, end, _), (_, wanted, _) in zip(found, spans, strict=True):
            assert wanted - 20 <= end <= wanted  # a gap before the next round
    ((start, end, row),) = bars(page, "late")
    assert (start, row) == (5000, 1)
    assert end > 9900


def test_the_timeline_shows_refused_and_failed_parties(written):
    lines = [line("a", "refused: nan", seconds=1.0), line("b", "failed: gone")]
    page = written([round_(1, lines)])
    assert bars(page, "refused")[0][0] == 0
    assert abs(bars(page, "refused")[0][1] - 2500) < 20
    assert abs(bars(page, "failed")[0][1] - 10_000) < 20


def test_rounds_of_no_time_have_no_timeline(written):
    still = dataclasses.replace(round_(1, [line("a")]), seconds=0.0)
    assert '<svg viewBox="0 0 10000' not in written([still])


def test_settings_are_those_with_an_effect_and_changed_ones_come_first():
    import yaml

    from fedray.config import parse
    from fedray.report.page import settings_yaml

    config, problems = parse({"architecture": "m.py:f", "num_parties": 2, "rounds": 5,
                              "partition": {"source": "mnist"}})  # fmt: skip
    assert problems == []
    text = settings_yaml(config.to_dict())
    changed, by_default = text.split("# by default\n")
    changed = yaml.safe_load(changed.removeprefix("<pre># other than by default\n"))
    assert set(changed) == {"architecture", "num_parties", "rounds", "partition"}
    assert "alpha" not in changed["partition"]  # of scheme dirichlet
    by_default = yaml.safe_load(by_default.removesuffix("</pre>"))
    assert by_default["quorum"] == 1
    others = {"doc2vec", "share", "server_tau", "bucketing", "drift_tolerance"}
    assert others.isdisjoint(by_default)
    assert {"epochs", "batch_size", "seed"} < set(by_default)
