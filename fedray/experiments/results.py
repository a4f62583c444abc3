"""Results of many runs in Python: records for pandas, a table, curves."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedray.errors import MissingExtra
from fedray.experiments.comparison import Comparison, Question, compare
from fedray.experiments.page import series_of, table_html
from fedray.experiments.records import RunRecord, find_runs
from fedray.experiments.tables import record_row, to_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Results:
    """Runs that were found; in a notebook a table of them.

    ``pandas.DataFrame(results.records)`` has a row a run.
    """

    def __init__(self, runs: list[RunRecord]):
        self.runs = runs

    @property
    def records(self) -> list[dict[str, Any]]:
        """A mapping for each run: settings that differ, seed, last and best values."""
        comparison = self.compare()
        return [record_row(comparison, run) for run in self.runs]

    def compare(
        self,
        by: str | None = None,
        metric: str | None = None,
        target: float | None = None,
    ) -> Comparison:
        """The comparison that ``fedray compare`` prints; parameters are its options.

        Raises
        ------
        ConfigError
            If no run has the setting or the metric.
        """
        return compare(self.runs, Question(by, metric, target))

    def table(
        self,
        by: str | None = None,
        metric: str | None = None,
        target: float | None = None,
    ) -> str:
        """The table as text."""
        return to_text(self.compare(by, metric, target))

    def plot(self, metric: str | None = None, by: str | None = None) -> "Figure":
        """A figure of matplotlib: the metric by round, with a band for each variant.

        Raises
        ------
        MissingExtra
            Without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingExtra("plot", "report") from None
        comparison = self.compare(by, metric)
        figure = Figure(layout="constrained")
        axes = figure.add_subplot(xlabel="round", ylabel=comparison.metric)
        for series in series_of(comparison, "rounds"):
            low, high = (series.mean - series.deviation, series.mean + series.deviation)
            (line,) = axes.plot(series.x, series.mean, label=series.label)
            axes.fill_between(series.x, low, high, color=line.get_color(), alpha=0.2)
        axes.legend()
        return figure

    def _repr_html_(self) -> str:
        return table_html(self.compare())

    def __repr__(self) -> str:
        return self.table()


def results(*folders: str | Path) -> Results:
    """The runs in folders, or below them.

    Raises
    ------
    RunFolderError
        For a folder that does not exist, or has no run in it or below.
    """
    return Results(find_runs([Path(folder) for folder in folders]))
