"""The result of a run, as Python and notebooks have it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedray.checkpoint import RunFolder
from fedray.ensemble import BestModel, load
from fedray.ensemble.loading import NO_BEST
from fedray.errors import MissingExtra, RunFolderError
from fedray.messages import (
    BUDGET_SPENT,
    RoundReport,
    Scores,
    is_budget_spent,
)
from fedray.policy import merge_scores, stop_notes
from fedray.report import read_comparison, result_html
from fedray.weights import Weights

NO_TESTS = "No test samples: loss and accuracy are not measured. Give test=(x, y)."


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a run; in a notebook a small table and curves.

    model : file of the global model; with groups, of the first.
    report : None if it could not be written.
    models : files by group; under None where there is one for all.
    ensemble : loss and accuracy of a whole ensemble on `test_data`.
    best : with `keep_best` the best round's model by group: its file, round and value.
    """

    folder: Path
    model: Path
    report: Path | None
    history: list[RoundReport]
    models: dict[str | None, Path] = field(default_factory=dict)
    ensemble: tuple[float, float] | None = None
    best: Mapping[str | None, BestModel] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """Mean loss over the test samples; None if nothing was evaluated."""
        return self._scores[0]

    @property
    def accuracy(self) -> float | None:
        """Share of test samples classified correctly; None for regression."""
        return self._scores[1]

    @property
    def comparison(self) -> dict[str, Any]:
        """What `compare: local` found: `round`, and `columns` with a row a party."""
        return read_comparison(self.folder)

    @property
    def best_model(self) -> Path | None:
        """File of the best round's model; None without `keep_best`.

        With groups, of the first.
        """
        return next((best.file for best in self.best.values()), None)

    @property
    def state(self) -> str:
        """trained, or budget_spent: the next release would have exceeded epsilon."""
        last = {report.group: report.stop_reason for report in self.history}
        return BUDGET_SPENT if any(map(is_budget_spent, last.values())) else "trained"

    @property
    def stop_reason(self) -> str:
        """After which round training stopped, and why; empty if all were trained.

        With groups a line for each that stopped.
        """
        return "\n".join(filter(None, stop_notes(self.history).values()))

    def weights(self, group: str | None = None, *, best: bool = False) -> Weights:
        """Weights of the last global model, of a group if there are any.

        best : of the best round's model, with `keep_best`.

        Raises
        ------
        RunFolderError
            If there is no best model.
        """
        folder = RunFolder(self.folder, group=group)
        if not best:
            return folder.last_checkpoint().weights
        if group not in self.best:
            raise RunFolderError(str(self.folder), NO_BEST)
        return folder.checkpoint_of(self.best[group].round).weights

    def load(self, *, best: bool = False, party: str | None = None) -> Any:
        """The trained model, ready to predict: ``fedray.load(result.folder)``.

        best : the best round's model, with `keep_best`.
        party : the own model of this party, if it is on this machine.
        """
        return load(self.folder, best=best, party=party)

    def to_pandas(self) -> Any:
        """The history as a DataFrame, a row for each round (and group).

        Raises
        ------
        MissingExtra
            If pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtra("Result.to_pandas()", "pandas") from None
        rows = [dataclasses.asdict(report) for report in self.history]
        for row in rows:
            del row["parties"], row["summary"], row["tests"]
        return pandas.DataFrame(rows)

    def plot(self) -> Any:
        """Draw curves of loss and accuracy by round; their two axes, of matplotlib.

        A notebook shows them; elsewhere ``axes[0].figure.savefig(path)`` keeps them.

        Raises
        ------
        MissingExtra
            If matplotlib is not installed.
        """
        try:
            from matplotlib import pyplot
        except ImportError:
            raise MissingExtra("Result.plot()", "report") from None
        _, all_axes = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
        groups = dict.fromkeys(report.group for report in self.history)
        for axes, name in zip(all_axes, ("loss", "accuracy"), strict=True):
            for group in groups:
                own = [report for report in self.history if report.group == group]
                values = [getattr(report, name) for report in own]
                points = [math.nan if value is None else value for value in values]
                rounds = [report.round for report in own]
                axes.plot(rounds, points, "o-", markersize=3, label=group)
            axes.set(xlabel="round", title=name)
            if all(getattr(report, name) is None for report in self.history):
                axes.set(xticks=[], yticks=[], xlabel="not measured")
                continue
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            if groups.keys() != {None}:
                axes.legend()
        return all_axes

    def __repr__(self) -> str:
        n_rounds = len({report.round for report in self.history})
        loss, accuracy = self.loss, self.accuracy
        scores = f"loss={_short(loss)}, accuracy={_short(accuracy)}"
        return f"Result(folder='{self.folder}', rounds={n_rounds}, {scores})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        is_tested = any(report.evaluated for report in self.history)
        note = self.stop_reason if is_tested else NO_TESTS
        return result_html(self.folder.name, self.history, note, self._scores)

    @property
    def _scores(self) -> tuple[float | None, ...]:
        """Loss and accuracy of the ensemble, or of the last global model.

        With groups over all of their models, each on its own samples.
        """
        if self.ensemble:
            return self.ensemble
        last = {report.group: report for report in self.history}.values()
        scores = [Scores(r.evaluated, r.loss, r.accuracy) for r in last]
        return merge_scores(scores)[:2]


def _short(value: float | None) -> str:
    return "None" if value is None else f"{value:.4g}"
