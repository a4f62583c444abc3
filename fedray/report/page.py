"""The page: a title and a line of what happened, then one section for each question."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from fedray.messages import RoundReport
from fedray.report import ensemble
from fedray.report.charts import curves
from fedray.report.formatting import (
    count,
    duration,
    is_number,
    number,
    percent,
    sizes,
    table,
    text,
)
from fedray.report.party_charts import picture, timeline
from fedray.report.provenance import repeat, settings, versions
from fedray.report.statistics import (
    N_ROWS,
    by_group,
    cut,
    party_table,
    reason_list,
    scores,
    tally,
    whole,
)
from fedray.report.style import STYLE

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
NO_CURVES = "Curves are drawn by matplotlib; pip install 'fedray[report]' brings it."


def page(
    folder: Path,
    config: dict[str, Any],
    history: Sequence[RoundReport],
    note: str,
    told: Mapping[str, Any] | None = None,
) -> str:
    """The whole file as text; `told` as `fedray.report.ensemble` says."""
    name = text(config.get("name") or folder.absolute().name)
    parties, of_members = tally(history), ensemble.is_ensemble(config)
    scored = ensemble.together(told) if of_members else _scored(history)
    parts = [_head(name, config, history, scored), _note(note)]
    if told:
        inside = ensemble.member_table(history, config, told)
        parts.append(_section("Members", inside))
    parts.append(_of_members(history, told) if of_members else _figures(history))
    if parties:
        parts += [
            _section("Parties by round", picture(parties, history)),
            _section("Time by party", timeline(parties, whole(history))),
            _section("Parties", _left_out(history) + party_table(parties)),
            _section("Reasons", reason_list(parties)),
        ]
    parts += [
        _section("Repeat this run", repeat(folder)),
        _section("Settings", settings(config)),
        _section("Versions", versions()),
    ]
    return PAGE.substitute(name=name, style=STYLE, body="\n".join(filter(None, parts)))


def _head(
    name: str,
    config: dict[str, Any],
    history: Sequence[RoundReport],
    scored: dict[str, str],
) -> str:
    n_done, n_rounds = len({r.round for r in history}), config.get("rounds")
    done = count(n_done, "round", "rounds") + " done"
    if isinstance(n_rounds, int):
        done = f"{n_done:,} of {count(n_rounds, 'round', 'rounds')} done"
    if parties := {line.name for report in history for line in report.parties}:
        n_parties = config.get("num_parties") or len(parties)
        done += " with " + count(n_parties, "party", "parties")
    rule = config.get("fusion_algorithm")
    by = f", fused by <b>{text(rule)}</b>" if rule else ""
    if ensemble.is_ensemble(config):
        by = ", members of an <b>ensemble</b>"
    return (
        f'<header><p class="small">fedray report</p><h1>{name}</h1>'
        f"<p>{done}{by}.</p>{_results(history, scored)}</header>"
    )


def _left_out(history: Sequence[RoundReport]) -> str:
    """Say that rounds kept the lines of some parties only, where they did."""
    if not any(report.summary for report in history):
        return ""
    most = max(report.chosen for report in history)
    return (
        f'<p class="small">Up to {most:,} parties were chosen in a round; lines were '
        "kept of those in trouble and the first others (history_parties), so that the "
        "counts here are of kept lines. history.jsonl sums up all of them.</p>"
    )


def _scored(history: Sequence[RoundReport]) -> dict[str, str]:
    """Loss and accuracy of the global model; of groups' models, over all samples."""
    if not history or not is_scored(history):
        return {}
    loss, accuracy, at = scores(history)
    if not at:
        loss, accuracy = history[-1].loss, history[-1].accuracy
    when = f" after round {at}" if 0 < at < history[-1].round else ""
    return {f"Loss{when}": number(loss), f"Accuracy{when}": percent(accuracy)}


def _results(history: Sequence[RoundReport], scored: dict[str, str]) -> str:
    if not history:
        return ""
    shown = {
        **scored,
        "Bytes moved": sizes(sum(report.bytes_moved for report in history)),
        "Time": duration(sum(report.seconds for report in whole(history))),
    }
    items = "".join(
        f"<div><dt>{what}</dt><dd>{value}</dd></div>" for what, value in shown.items()
    )
    return f'<dl class="results">{items}</dl>'


def is_scored(history: Sequence[RoundReport]) -> bool:
    """Whether any round measured a loss or an accuracy: doc2vec has neither."""
    measured = [(report.loss, report.accuracy) for report in history]
    return any(value is not None for pair in measured for value in pair)


def _note(note: str) -> str:
    return f'<p class="note" role="note">{text(note.strip())}</p>' if note else ""


def _figures(history: Sequence[RoundReport]) -> str:
    if not history:
        return _section("Rounds", "<p>No round was finished.</p>")
    groups = by_group(history).items()
    parts = [_of_group(own, group, i) for i, (group, own) in enumerate(groups)]
    return _section("Rounds", "".join(parts))


def _of_members(history: Sequence[RoundReport], told: Mapping[str, Any] | None) -> str:
    """Curves of an ensemble's members in one picture, numbers of each."""
    if not history:
        return _figures(history)
    drawn = ensemble.figures(history, told)
    numbers = "".join(
        f"<details{'' if drawn else ' open'}><summary>Numbers of {text(name)}</summary>"
        f"{_rounds(own)}</details>"
        for name, own in by_group(history).items()
    )
    return _section("Rounds", (drawn or f"<p>{text(NO_CURVES)}</p>") + numbers)


def _of_group(own: Sequence[RoundReport], group: str | None, i: int) -> str:
    """Curves and numbers of one global model."""
    drawn = curves(own, f"g{i}-" if group else "")
    told = drawn or f"<p>{text(NO_CURVES)}</p>"
    state = "" if drawn else " open"
    heading = f"<h3>{text(group)}</h3>\n" if group else ""
    numbers = f"<details{state}><summary>Numbers</summary>{_rounds(own)}</details>"
    return heading + told + numbers


def _rounds(history: Sequence[RoundReport]) -> str:
    head = (
        "round", "chosen", "reported", "fused", "refused", "loss", "accuracy",
        "bytes moved", "time", "train", "wait", "combine", "evaluate",
    )  # fmt: skip
    is_adaptive = any(is_number(r.threshold) for r in history)
    head += ("disagreement", "fuse above") * is_adaptive
    rows = [
        [
            *map(str, (r.round, r.chosen, r.reported, r.fused, r.refused)),
            number(r.loss),
            percent(r.accuracy),
            sizes(r.bytes_moved),
            *map(duration, (r.seconds, r.train_seconds, r.wait_seconds)),
            *map(duration, (r.combine_seconds, r.evaluate_seconds)),
            *map(number, (r.estimate, r.threshold) * is_adaptive),
        ]
        for r in history[-N_ROWS:]
    ]
    if not is_scored(history):
        head, *rows = (line[:5] + line[7:] for line in ([*head], *rows))
    return table("Rounds", head, rows) + cut(
        len(rows), len(history), "rounds, the last"
    )


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{title}</h2>\n{inside}</section>"
