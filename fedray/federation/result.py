"""The result of a run, as Python and notebooks have it."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedray.checkpoint import RunFolder
from fedray.ensemble import load
from fedray.errors import MissingExtra
from fedray.messages import RoundReport, Scores
from fedray.policy import merge_scores
from fedray.report import result_html
from fedray.weights import Weights

NO_TESTS = "No test samples: loss and accuracy are not measured. Give test=(x, y)."


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a run; in a notebook a small table and curves.

    model : file of the global model; with groups, of the first.
    report : None if it could not be written.
    models : files by group; under None where there is one for all.
    ensemble : loss and accuracy of a whole ensemble on `test_data`.
    """

    folder: Path
    model: Path
    report: Path | None
    history: list[RoundReport]
    models: dict[str | None, Path] = field(default_factory=dict)
    ensemble: tuple[float, float] | None = None

    @property
    def loss(self) -> float | None:
        """Mean loss over the test samples; None if nothing was evaluated."""
        return self._scores[0]

    @property
    def accuracy(self) -> float | None:
        """Share of test samples classified correctly; None for regression."""
        return self._scores[1]

    def weights(self, group: str | None = None) -> Weights:
        """Weights of the last global model, of a group if there are any."""
        return RunFolder(self.folder, group=group).last_checkpoint().weights

    def load(self) -> Any:
        """The trained model, ready to predict: ``fedray.load(result.folder)``."""
        return load(self.folder)

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
            del row["parties"], row["summary"]
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
        note = "" if is_tested else NO_TESTS
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
