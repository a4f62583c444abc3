"""HTML of report.html: a title with the results, then a section for each topic.

Topics are rounds, parties, groups or an ensemble's members, and how to repeat the run:
command, settings, versions, commit.
"""

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

import yaml

from fedray.config import split_by_default
from fedray.errors import format_count
from fedray.messages import RoundReport
from fedray.report.charts import MemberCurves, draw_curves, draw_member_curves
from fedray.report.edges import edges_section
from fedray.report.formatting import (
    NO_VALUE,
    escape,
    format_bytes,
    format_duration,
    format_number,
    format_percent,
    html_table,
    is_number,
    total,
    truncation_note,
)
from fedray.report.metric_tables import metric_tables, read_label_names
from fedray.report.party_charts import outcome_grid, timeline
from fedray.report.party_tests import (
    comparison_table,
    read_comparison,
    spread_table,
)
from fedray.report.privacy import privacy_section
from fedray.report.statistics import (
    N_ROWS,
    by_group,
    last_scores,
    merge_groups,
    party_statistics,
    party_table,
    reason_list,
)
from fedray.report.style import STYLE
from fedray.user_code import is_in_memory

N_METRICS = 5  # numbers beside loss and accuracy that have a column
ARRIVALS = {  # columns of asynchronous steps
    "staleness": "staleness",
    "expired": "leases over",
    "virtual_s": "virtual time (s)",
}
PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<title>$name: fedray report</title>
<style>
$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")
NO_CURVES = (
    "Curves are drawn by matplotlib, which is missing or failed; "
    "pip install 'fedray[report]' brings it."
)

HIDDEN_PARTIES = (
    "Noise hides what single parties did. Their losses, sample counts, times and what "
    "became of their updates stand in operator.jsonl alone, which the noise does not "
    "cover."
)
PACKAGES = ("fedray", "ray", "torch", "numpy")
MAX_CONFIG_LINES = 2_000  # a federation may list very many parties

TESTED_ON_OWN = "Each member was tested on its own party's samples, which differ."
TESTED_ON_TEST_DATA = "All were tested by the aggregator on test_data."
TESTED_ON_HALVES = (
    "Members were tested on all of test_data. Every second sample of it made their "
    "weights; together and student are tested on the others."
)


def render_page(  # noqa: PLR0913  (as `write_report`)
    folder: Path,
    config: dict[str, Any],
    history: Sequence[RoundReport],
    note: str,
    ensemble: Mapping[str, Any] | None = None,
    edges: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Render the whole file; parameters as of `fedray.report.write_report`."""
    name = escape(config.get("name") or folder.absolute().name)
    if is_ensemble(config):
        scores, rounds = ensemble_scores(ensemble), _members_section(history, ensemble)
    else:
        scores, rounds = _score_results(history), _rounds_section(history)
    sections = [_header(name, config, history, scores), _note(note)]
    if ensemble:
        table = member_table(history, config, ensemble)
        sections.append(section("Members", table))
    sections.append(rounds)
    if metrics := metric_tables(history, config, read_label_names(folder)):
        sections.append(section("Metrics", metrics))
    if privacy := privacy_section(history, config):
        sections.append(section("Privacy", privacy))
    if of_edges := edges_section(history, edges):
        sections.append(section("Edges", of_edges))
    sections += [*_test_sections(folder, history), *_party_sections(history)]
    sections += [
        section("Repeat this run", repeat_command(folder, config)),
        section("Settings", settings_yaml(config)),
        section("Versions", version_list()),
    ]
    return document(name, sections)


def document(name: str, sections: Sequence[str]) -> str:
    """A whole file: its name, as HTML, and its sections; empty ones are left out."""
    body = "\n".join(filter(None, sections))
    return PAGE.substitute(name=name, style=STYLE, body=body)


def _test_sections(folder: Path, history: Sequence[RoundReport]) -> list[str]:
    """How the global model does at each party, beside what it would have alone."""
    tables = {
        "Tests by party": spread_table(history),
        "Models compared, by party": comparison_table(read_comparison(folder)),
    }
    return [section(title, table) for title, table in tables.items() if table]


def _party_sections(history: Sequence[RoundReport]) -> list[str]:
    parties = party_statistics(history)
    if any(line.outcome is None for report in history for line in report.parties):
        return [section("Parties", f"<p>{HIDDEN_PARTIES}</p>")]
    if not parties:
        return []
    return [
        section("Parties by round", outcome_grid(parties, history)),
        section("Time by party", timeline(parties, merge_groups(history))),
        section("Parties", _omitted_lines_note(history) + party_table(parties)),
        section("Reasons", reason_list(parties)),
    ]


def _header(
    name: str,
    config: dict[str, Any],
    history: Sequence[RoundReport],
    scores: dict[str, str],
) -> str:
    n_done, n_rounds = len({r.round for r in history}), config.get("rounds")
    done = format_count(n_done, "round") + " done"
    if isinstance(n_rounds, int):
        done = f"{n_done:,} of {format_count(n_rounds, 'round')} done"
    if parties := {line.name for report in history for line in report.parties}:
        n_parties = config.get("num_parties") or len(parties)
        done += " with " + format_count(n_parties, "party", "parties")
    rule = config.get("fusion_algorithm")
    by = f", fused by <b>{escape(rule)}</b>" if rule else ""
    if is_ensemble(config):
        by = ", members of an <b>ensemble</b>"
    return (
        f'<header><p class="small">fedray report</p><h1>{name}</h1>'
        f"<p>{done}{by}.</p>{_results(history, scores)}</header>"
    )


def _omitted_lines_note(history: Sequence[RoundReport]) -> str:
    """Say that rounds kept the lines of some parties only, where they did."""
    if not any(report.summary for report in history):
        return ""
    n_most = max(report.chosen or 0 for report in history)
    return (
        f'<p class="small">Up to {n_most:,} parties were chosen in a round; lines were '
        "kept of those in trouble and the first others (history_parties), so that the "
        "counts here are of kept lines. history.jsonl sums up all of them.</p>"
    )


def _score_results(history: Sequence[RoundReport]) -> dict[str, str]:
    """Loss and accuracy of the global model; of groups' models, over all samples."""
    if not history or not has_scores(history):
        return {}
    loss, accuracy, round_ = last_scores(history)
    if not round_:
        loss, accuracy = history[-1].loss, history[-1].accuracy
    when = f" after round {round_}" if 0 < round_ < history[-1].round else ""
    return {
        f"Loss{when}": format_number(loss),
        f"Accuracy{when}": format_percent(accuracy),
    }


def _results(history: Sequence[RoundReport], scores: dict[str, str]) -> str:
    if not history:
        return ""
    seconds = sum(report.seconds for report in merge_groups(history))
    results = {
        **scores,
        "Bytes moved": format_bytes(total(report.bytes_moved for report in history)),
        "Time": format_duration(seconds),
    }
    items = "".join(
        f"<div><dt>{label}</dt><dd>{value}</dd></div>"
        for label, value in results.items()
    )
    return f'<dl class="results">{items}</dl>'


def has_scores(history: Sequence[RoundReport]) -> bool:
    """Whether any round measured a loss or an accuracy: doc2vec has neither."""
    return any(r.loss is not None or r.accuracy is not None for r in history)


def _note(note: str) -> str:
    return f'<p class="note" role="note">{escape(note.strip())}</p>' if note else ""


def _rounds_section(history: Sequence[RoundReport]) -> str:
    if not history:
        return section("Rounds", "<p>No round was finished.</p>")
    groups = by_group(history).items()
    parts = [_group_part(own, group, i) for i, (group, own) in enumerate(groups)]
    return section("Rounds", "".join(parts))


def _group_part(own: Sequence[RoundReport], group: str | None, i: int) -> str:
    """Charts and numbers of one global model."""
    charts = draw_curves(own, f"g{i}-" if group else "")
    heading = f"<h3>{escape(group)}</h3>\n" if group else ""
    numbers = _numbers("Numbers", own, is_open=charts is None)
    return heading + (charts or _no_charts()) + numbers


def _members_section(
    history: Sequence[RoundReport], ensemble: Mapping[str, Any] | None
) -> str:
    """Charts with a curve for each member of an ensemble, numbers of each."""
    if not history:
        return _rounds_section(history)
    charts = member_charts(history, ensemble)
    numbers = "".join(
        _numbers(f"Numbers of {escape(name)}", own, is_open=charts is None)
        for name, own in by_group(history).items()
    )
    return section("Rounds", (charts or _no_charts()) + numbers)


def _no_charts() -> str:
    return f"<p>{escape(NO_CURVES)}</p>"


def _numbers(summary: str, history: Sequence[RoundReport], is_open: bool) -> str:
    state = " open" if is_open else ""
    return (
        f"<details{state}><summary>{summary}</summary>"
        f"{_rounds_table(history)}</details>"
    )


def _rounds_table(history: Sequence[RoundReport]) -> str:
    head = [
        "round", "chosen", "reported", "fused", "refused", "loss", "accuracy",
        "bytes moved", "time", "train", "wait", "combine", "evaluate",
    ]  # fmt: skip
    is_adaptive = any(is_number(r.threshold) for r in history)
    if is_adaptive:
        head += ["disagreement", "fuse above"]
    arrivals = [n for n in ARRIVALS if any(is_number(getattr(r, n)) for r in history)]
    head += [ARRIVALS[name] for name in arrivals]
    names = list(dict.fromkeys(n for report in history for n, _ in report.numbers))
    names = names[:N_METRICS]
    head += [escape(name) for name in names]
    rows = [
        _round_row(report, is_adaptive, arrivals, names) for report in history[-N_ROWS:]
    ]
    if not has_scores(history):
        head, *rows = (line[:5] + line[7:] for line in (head, *rows))
    note = truncation_note(len(rows), len(history), "rounds, the last")
    return html_table("Rounds", head, rows) + note


def _round_row(
    report: RoundReport,
    is_adaptive: bool,
    arrivals: Sequence[str],
    metrics: Sequence[str],
) -> list[str]:
    counts = (
        report.round, report.chosen, report.reported, report.fused, report.refused,
    )  # fmt: skip
    seconds = (
        report.seconds, report.train_seconds, report.wait_seconds,
        report.combine_seconds, report.evaluate_seconds,
    )  # fmt: skip
    disagreement = (report.estimate, report.threshold) if is_adaptive else ()
    return [
        *(NO_VALUE if count is None else str(count) for count in counts),
        format_number(report.loss),
        format_percent(report.accuracy),
        format_bytes(report.bytes_moved),
        *map(format_duration, seconds),
        *map(format_number, disagreement),
        *(format_number(getattr(report, name)) for name in arrivals),
        *(format_number(report.metrics.get(name)) for name in metrics),
    ]


def section(title: str, inside: str) -> str:
    """HTML of a topic under its title."""
    return f"<section><h2>{title}</h2>\n{inside}</section>"


def repeat_command(folder: Path, config: dict[str, Any]) -> str:
    """HTML of the command that runs the same settings again."""
    if _has_objects(config):
        text = (
            "Make the same call of fedray.run in Python again, with another name or "
            "run_dir: a model, data or code was given in memory."
        )
        return f"<p>{text}</p>"
    file = shlex.quote(str(folder.expanduser().absolute() / "config.yaml"))
    command = f"fedray run {file} \\\n  --run-dir NEW"
    return f"<pre>{escape(command)}</pre>"


def _has_objects(settings: Any) -> bool:
    """Whether a setting stands for an object of a Python caller."""
    if isinstance(settings, dict):
        return any(map(_has_objects, settings.values()))
    if isinstance(settings, list | tuple):
        return any(map(_has_objects, settings))
    return isinstance(settings, str) and is_in_memory(settings)


def settings_yaml(config: dict[str, Any]) -> str:
    """HTML of the settings that have an effect, as YAML: not the defaults first."""
    lines: list[str] = []
    titles = "other than by default", "by default"
    for title, part in zip(titles, split_by_default(config), strict=True):
        plain = json.loads(json.dumps(part, default=str))
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        lines += [f"# {title}", *text.splitlines(), ""] if plain else []
    if len(lines) > MAX_CONFIG_LINES:
        more = format_count(
            len(lines) - MAX_CONFIG_LINES, "more line is", "more lines are"
        )
        lines[MAX_CONFIG_LINES:] = [f"# {more} in config.yaml"]
    text = "\n".join(lines).rstrip()
    return f"<pre>{escape(text)}</pre>"


def version_list() -> str:
    """HTML list of the versions of Python and packages, and the git commit if any."""
    versions = {"python": platform.python_version()}
    versions |= {name: _version(name) for name in PACKAGES}
    if commit := _commit():
        versions["git commit"] = commit
    items = "".join(
        f"<dt>{name}</dt><dd>{escape(version)}</dd>"
        for name, version in versions.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _version(package: str) -> str:
    """Version of an installed package, without importing it: torch takes seconds."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Commit of the working folder; empty without git, a repository or a commit."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    env = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=True, env=env
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout.strip().replace("-dirty", " with uncommitted changes")


def is_ensemble(config: Mapping[str, Any]) -> bool:
    """Whether a run's parties are members of an ensemble."""
    return config.get("fusion_algorithm") == "ensemble"


def ensemble_scores(summary: Mapping[str, Any] | None) -> dict[str, str]:
    """Loss and accuracy of the whole ensemble, for the top of the page."""
    if not summary or "loss" not in summary:
        return {}
    return {
        "Loss together": format_number(summary["loss"]),
        "Accuracy together": format_percent(summary["accuracy"]),
    }


def member_table(
    history: Sequence[RoundReport],
    config: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> str:
    """HTML table: a row for each member, then all together, then the student."""
    lines, rows = by_group(history), []
    total = sum(weight for _, _, weight in summary["members"])
    for name, model_type, weight in summary["members"]:
        loss, accuracy, _ = last_scores(lines.get(name, []))
        row = [escape(name), escape(model_type), format_percent(weight / total)]
        rows.append([*row, format_number(loss), format_percent(accuracy)])
    for label, prefix in (("together", ""), ("student", "student_")):
        loss, accuracy = summary.get(f"{prefix}loss"), summary.get(f"{prefix}accuracy")
        if is_number(loss):
            row = [f"<b>{label}</b>", NO_VALUE, NO_VALUE]
            rows.append([*row, format_number(loss), format_percent(accuracy)])
    head = "member", "model", "weight", "last loss", "last accuracy"
    note = f'<p class="small">{_test_note(config)}</p>'
    return html_table("Members", head, rows) + note


def _test_note(config: Mapping[str, Any]) -> str:
    if config.get("member_weights") == "accuracy":
        return TESTED_ON_HALVES
    return TESTED_ON_TEST_DATA if config.get("test_data") else TESTED_ON_OWN


def member_charts(
    history: Sequence[RoundReport], summary: Mapping[str, Any] | None
) -> str | None:
    """HTML of the charts: a curve for each member; bytes and seconds of all.

    None where matplotlib is not installed.
    """
    lines = {str(name): own for name, own in by_group(history).items()}
    summary = summary or {}
    together = {name: summary.get(name) for name in ("loss", "accuracy")}
    return draw_member_curves(merge_groups(history), MemberCurves(lines, together))
