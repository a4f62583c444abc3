"""Replay of an asynchronous run: the same updates in the recorded order, trained again.

Updates are not kept, but a training repeats: its result follows from the party's data,
the seed and the weights that it began with, which the history names by their version.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedray.checkpoint import RunFolder, runs_folder
from fedray.checkpoint.recorded_order import write_order
from fedray.config import FederationConfig
from fedray.errors import ConfigError, FedrayError, RunFolderError, UnknownRun
from fedray.federation.actors import Watch
from fedray.federation.result import Result
from fedray.federation.run import read_config, run
from fedray.messages import RoundReport
from fedray.weights import Weights


@dataclass(frozen=True)
class Replay:
    """A replay that is done.

    result : of the run that followed the other one's order.
    difference : from that one, in words; empty if the last weights have the same bits.
    """

    result: Result
    difference: str


def replay(
    run_dir: str | Path,
    new_dir: str | Path | None = None,
    watch: Watch | None = None,
) -> Replay:
    """Run an asynchronous run (`aggregation: buffered`) again in its recorded order.

    Needs the same data, code and kind of processor: every update is trained again.

    Parameters
    ----------
    run_dir : the run's folder, or the name of one in ``~/.fedray/runs``.
    new_dir : folder of the replay; default: beside it, with ``-replay`` at the end.
    watch : as of `fedray.run`.

    Raises
    ------
    UnknownRun, RunFolderError, ConfigError
        If there is no such run, or it cannot be replayed.
    """
    folder = _find_folder(run_dir)
    history = RunFolder(folder).history()
    config = _config_of(folder, history)
    new = Path(new_dir or folder.with_name(f"{folder.name}-replay")).expanduser()
    new = new.absolute()
    if (new / ".lock").exists():
        remedy = "Name another folder: --run-dir NEW"
        raise RunFolderError(str(new), "there is a run in it already", remedy)
    write_order(new, history)
    result = run(config, run_dir=new, watch=watch)
    return Replay(result, _compare(folder, result.folder, history, result.history))


def _find_folder(run_dir: str | Path) -> Path:
    """The folder of a run, by its path or its name."""
    path = Path(run_dir).expanduser()
    for folder in (path, runs_folder() / path):
        if (folder / "config.yaml").exists():
            return folder.absolute()
    home = runs_folder()
    names = sorted(p.name for p in home.iterdir()) if home.is_dir() else []
    raise UnknownRun(str(run_dir), names)


def _config_of(folder: Path, history: Sequence[RoundReport]) -> FederationConfig:
    """The config of a run, for as many rounds as it has done."""
    config = read_config(folder / "config.yaml")
    if config.aggregation != "buffered":
        raise ConfigError(
            [
                f"{folder} fuses by aggregation: {config.aggregation}, which has no "
                "order of arrival: fedray run with its config.yaml gives it again"
            ]
        )
    n_done = max((report.round for report in history), default=0)
    if not n_done:
        raise RunFolderError(str(folder), "no step of it is done, nothing to replay")
    is_over = n_done == config.rounds or any(r.stop_reason for r in history)
    if config.scheduler is not None and not is_over:
        remedy = "Go on with it first: fedray run ... --resume"
        reason = f"{n_done} of {config.rounds} rounds are done, and the scheduler goes "
        raise RunFolderError(str(folder), f"{reason}by all of them", remedy)
    if config.scheduler is None:
        config = config.with_changes(rounds=n_done)
    return config.with_changes(max_training_s=None)


def _compare(
    first: Path,
    second: Path,
    before: Sequence[RoundReport],
    after: Sequence[RoundReport],
) -> str:
    """How a replay differs from its run; empty if the last weights do not."""
    for group in RunFolder(first).groups():
        ours, theirs = (RunFolder(path, group=group) for path in (first, second))
        same = sorted({*ours.saved_rounds()} & {*theirs.saved_rounds()})
        if not same:
            return "the weights of the last round are not kept"
        try:
            weights = [own.checkpoint_of(same[-1]).weights for own in (ours, theirs)]
        except FedrayError as error:
            return str(error)
        if name := _first_difference(*weights):
            of_group = f" of {group}" if group else ""
            where = _first_other_loss(before, after)
            return f"tensor {name!r}{of_group} differs after round {same[-1]}{where}"
    return ""


def _first_difference(ours: Weights, theirs: Weights) -> str:
    """Name of a tensor whose bits differ; empty if none do."""
    for name, array in ours.items():
        other = theirs.get(name)
        if other is None or array.tobytes() != other.tobytes():
            return name
    return ""


def _first_other_loss(
    before: Sequence[RoundReport], after: Sequence[RoundReport]
) -> str:
    """Since when the losses differ, as far as rounds were evaluated."""
    losses = {(r.round, r.group): r.loss for r in before if r.loss is not None}
    for report in after:
        loss = losses.get((report.round, report.group))
        if loss is not None and report.loss not in (None, loss):
            return f"; the loss does since round {report.round}"
    return ""
