"""All exceptions of fedray; messages say who, what was got and needed, what to do.

Exceptions are pickled between processes: each passes exactly its own arguments to
`super().__init__`, so that Ray can rebuild it and `except` matches.
"""

MAX_PATH = 250  # characters in a message


def describe_late(round_timeout_s: float) -> str:
    """Why a party that has not answered in time is late, and what to do."""
    return f"did not report within round_timeout_s: {round_timeout_s:g} s; raise it"


def format_count(n: float, noun: str, plural: str = "") -> str:
    """Format a number with its noun, as messages have it: 1 round, 1,200 parties.

    plural : of the noun and what else depends on the number; without it, an s is added.
    """
    number = f"{int(n):,}" if n == int(n) else f"{n:g}"
    return f"{number} {noun if n == 1 else plural or noun + 's'}"


def shorten(path: str) -> str:
    """A path as messages have it: of one that is very long the two ends."""
    return path if len(path) <= MAX_PATH else f"{path[:60]}...{path[-60:]}"


def describe_error(error: Exception) -> str:
    """An error's message; of one of the system's the file and why, in one line."""
    if not isinstance(error, OSError):
        return str(error)
    why = error.strerror or str(error)
    return f"{shorten(str(error.filename))}: {why}" if error.filename else why


# options of the command line, as arguments of fedray.run
IN_PYTHON = {
    "--resume": "resume=True",
    "--run-dir": "run_dir=...",
    "--as-new-run": "as_new_run=True",
}


class FedrayError(Exception):
    """Base class of all exceptions of fedray."""

    @property
    def summary(self) -> str:
        """The message without what to do on the command line; REST answers carry it."""
        return str(self)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: the message says what to do."""
        text = str(self)
        for option, argument in IN_PYTHON.items():
            text = text.replace(option, argument)
        return [f"{type(self).__name__}: {text}"]


class ConfigError(FedrayError):
    """A config is not valid: all mistakes at once, one line each."""

    def __init__(self, problems: list[str]):
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        return f"{len(self.problems)} mistakes in the config:{lines}"


class ModelFileError(FedrayError):
    """A model file cannot be read, or is not safe to read."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"model file {self.path}: {self.reason}"


class DataError(FedrayError):
    """Data has another form than a handler or model needs."""

    def __init__(self, source: str, got: str, needed: str):
        super().__init__(source, got, needed)
        self.source, self.got, self.needed = source, got, needed

    def __str__(self) -> str:
        return f"data {self.source}: got {self.got}; needed {self.needed}"


class MetricError(FedrayError):
    """A metric of the config cannot be measured for this model or these targets."""

    def __init__(self, metric: str, got: str, needed: str):
        super().__init__(metric, got, needed)
        self.metric, self.got, self.needed = metric, got, needed

    def __str__(self) -> str:
        return f"metrics: {self.metric}: got {self.got}; needed {self.needed}"


class TrialFailed(FedrayError):
    """A step that joining tries, of a training or an evaluation, does not work."""

    def __init__(self, source: str, step: str, reason: str, remedy: str):
        super().__init__(source, step, reason, remedy)
        self.source, self.step, self.reason = source, step, reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.step} of {self.source} fails {self.reason}; {self.remedy}"


class ModelClassError(FedrayError):
    """A class of `model_type: file.py:ClassName` does not do what it has to."""

    def __init__(self, owner: str, call: str, got: str, needed: str):
        super().__init__(owner, call, got, needed)
        self.owner, self.call, self.got, self.needed = owner, call, got, needed

    def __str__(self) -> str:
        return f"{self.call} of {self.owner} gave {self.got}; needed {self.needed}"


class FrozenMoved(FedrayError):
    """Training moved a frozen tensor, though a step of it at joining did not."""

    def __init__(self, party: str, names: list[str]):
        super().__init__(party, names)
        self.party, self.names = party, names

    def __str__(self) -> str:
        some = ", ".join(self.names[:3])
        more = f" and {len(self.names) - 3} more" if len(self.names) > 3 else ""
        return (
            f"training of {self.party} moved {some}{more}, which is frozen and does "
            "not travel, since no first step of training moved it: give trainable a "
            "pattern for it beside those that train (trainable: ['*'] trains and "
            "sends all), or mend the model"
        )


class WeightsMismatch(FedrayError):
    """Weights have other names, shapes or dtypes than their model."""

    def __init__(self, owner: str, difference: str):
        super().__init__(owner, difference)
        self.owner, self.difference = owner, difference

    def __str__(self) -> str:
        return (
            f"{self.owner}: {self.difference}. All parties must have the same tensor "
            "names, shapes and dtypes: start them from one model file."
        )


class TooFewUpdates(FedrayError):
    """A fusion rule got fewer updates than it is defined for."""

    def __init__(self, rule: str, n_got: int, n_needed: int):
        super().__init__(rule, n_got, n_needed)
        self.rule, self.n_got, self.n_needed = rule, n_got, n_needed

    def __str__(self) -> str:
        needed = format_count(self.n_needed, "update")
        return (
            f"{self.rule} needs {needed}, got {self.n_got}: "
            "wait for more parties (round_timeout_s) or look at why they were refused."
        )


class PlacementError(FedrayError):
    """No node can run a party or the aggregator: labels, CPUs, GPUs, name."""

    def __init__(self, who: str, wanted: str, available: str):
        super().__init__(who, wanted, available)
        self.who, self.wanted, self.available = who, wanted, available

    def __str__(self) -> str:
        return f"cannot place {self.who}: wanted {self.wanted}; found {self.available}"


class PartyError(FedrayError):
    """An exception inside a party, without data: its type, perhaps message and place.

    message : empty where it may hold data.
    place : last line of user code, or the module's, that it went through.
    log : file on the party's node that has the whole error.
    """

    def __init__(
        self, party: str, stage: str, kind: str, message: str, place: str, log: str = ""
    ):
        super().__init__(party, stage, kind, message, place, log)
        self.party, self.stage, self.kind = party, stage, kind
        self.message, self.place, self.log = message, place, log

    @property
    def why(self) -> str:
        """The exception, without the party and the stage."""
        what = f"{self.kind}: {self.message}" if self.message else self.kind
        return f"{what} ({self.place})" if self.place else what

    @property
    def summary(self) -> str:
        return f"party {self.party}, {self.stage}: {self.why}"

    def __str__(self) -> str:
        more = f"; the whole error is in {self.log}, on its node" if self.log else ""
        return f"{self.summary}{more}"


class JoinFailed(FedrayError):
    """Some parties cannot take part; every one is named with its reason.

    log : the parties' file of whole errors, if there is more to know.
    """

    def __init__(self, reasons: dict[str, str], log: str = ""):
        super().__init__(reasons, log)
        self.reasons, self.log = reasons, log

    @property
    def summary(self) -> str:
        lines = "".join(f"\n  - {name}: {why}" for name, why in self.reasons.items())
        n_parties = format_count(len(self.reasons), "party", "parties")
        return f"{n_parties} cannot take part:{lines}"

    def __str__(self) -> str:
        return f"{self.summary}{_where_whole(self.log)}"


def _where_whole(log: str) -> str:
    return f"\nWhole errors are in {log} on the parties' nodes." if log else ""


class RoundFailed(FedrayError):
    """Too few parties sent what counts in a round, or nothing could be fused.

    log : the parties' file of whole errors, if there is more to know.
    """

    def __init__(
        self,
        round: int,
        needed: str,
        failures: dict[str, str],
        note: str,
        log: str = "",
    ):
        super().__init__(round, needed, failures, note, log)
        self.round, self.needed, self.failures = round, needed, failures
        self.note, self.log = note, log

    @property
    def summary(self) -> str:
        lines = "".join(f"\n  - {name}: {why}" for name, why in self.failures.items())
        failures = f" Not fused:{lines}\n" if lines else " "
        needed = self.needed.rstrip(". ")
        return f"round {self.round} failed: {needed}.{failures}{self.note}"

    def __str__(self) -> str:
        remedy = "Mend the parties and go on with --resume, or lower quorum."
        return f"{self.summary} {remedy}{_where_whole(self.log)}"


class TooManyRefused(FedrayError):
    """More updates were refused than `max_refused` allows."""

    def __init__(self, n_refused: int, n_most: int, n_done: int, folder: str):
        super().__init__(n_refused, n_most, n_done, folder)
        self.n_refused, self.n_most = n_refused, n_most
        self.n_done, self.folder = n_done, folder

    @property
    def summary(self) -> str:
        refused = format_count(self.n_refused, "update was", "updates were")
        done = format_count(self.n_done, "round is", "rounds are")
        return (
            f"{refused} refused, max_refused is {self.n_most}: history.jsonl in "
            f"{self.folder} says whose and why. {done} kept; leave those parties out"
        )

    def __str__(self) -> str:
        return f"{self.summary}, or go on with --resume and a larger max_refused"


class RunFolderError(FedrayError):
    """A run folder cannot be used as asked; nothing in it was changed."""

    def __init__(self, folder: str, reason: str, remedy: str = ""):
        super().__init__(folder, reason, remedy)
        self.folder, self.reason, self.remedy = folder, reason, remedy

    @property
    def summary(self) -> str:
        return f"run folder {self.folder}: {self.reason}"

    def __str__(self) -> str:
        return f"{self.summary}. {self.remedy}" if self.remedy else self.summary


class CheckpointError(FedrayError):
    """A checkpoint could not be written or read."""

    def __init__(self, path: str, reason: str, remedy: str = ""):
        super().__init__(path, reason, remedy)
        self.path, self.reason, self.remedy = path, reason, remedy

    @property
    def summary(self) -> str:
        return f"checkpoint {self.path}: {self.reason}"

    def __str__(self) -> str:
        return f"{self.summary}. {self.remedy}" if self.remedy else self.summary


class LedgerError(FedrayError):
    """A privacy ledger, or its key, cannot be used as it is; nothing was released."""

    def __init__(self, path: str, reason: str, remedy: str = ""):
        super().__init__(path, reason, remedy)
        self.path, self.reason, self.remedy = path, reason, remedy

    @property
    def summary(self) -> str:
        return f"{self.path}: {self.reason}"

    def __str__(self) -> str:
        return f"{self.summary}. {self.remedy}" if self.remedy else self.summary


class BudgetExceeded(FedrayError):
    """A party's data may not be trained on: its epsilon would go past its limit.

    what : "training round 3". whose : whose epsilon; numbers : and what it would be.
    """

    def __init__(self, what: str, whose: str, numbers: str, remedy: str):
        super().__init__(what, whose, numbers, remedy)
        self.what, self.whose, self.numbers = what, whose, numbers
        self.remedy = remedy

    @property
    def summary(self) -> str:
        return f"{self.what} would bring epsilon of {self.whose} {self.numbers}"

    def __str__(self) -> str:
        return f"{self.summary}. {self.remedy}"


class MissingExtra(FedrayError):
    """An optional package is missing; says which extra installs it."""

    def __init__(self, what: str, extra: str):
        super().__init__(what, extra)
        self.what, self.extra = what, extra

    def __str__(self) -> str:
        return f"{self.what} needs an extra: pip install 'fedray[{self.extra}]'"


class OutputError(FedrayError):
    """What a command prints cannot be written: a full disk, a terminal that is gone."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"standard output cannot be written: {self.reason}"


class Stopped(FedrayError):
    """The run was stopped before its last round, by Ctrl-C, CLI or REST."""

    def __init__(self, n_done: int, n_rounds: int, folder: str):
        super().__init__(n_done, n_rounds, folder)
        self.n_done, self.n_rounds, self.folder = n_done, n_rounds, folder

    def __str__(self) -> str:
        n_rounds = format_count(self.n_rounds, "round")
        return (
            f"stopped after {self.n_done} of {n_rounds}, kept in "
            f"{self.folder}; go on with --resume"
        )


class OutOfMemory(FedrayError):
    """A run, or one of its processes, needs more memory than there is or it may take.

    who, why : "party a", "was killed 2 times for the memory that it took".
    advice : what to do.
    """

    def __init__(self, who: str, why: str, advice: str = ""):
        super().__init__(who, why, advice)
        self.who, self.why = who, why
        self.advice = advice or "take a smaller model, smaller batches or less data"

    def __str__(self) -> str:
        return f"{self.who} {self.why}: {self.advice}."


class UnknownRun(FedrayError):
    """No run of that name is alive here, or has a folder here."""

    def __init__(self, run: str, existing: list[str]):
        super().__init__(run, existing)
        self.run, self.existing = run, existing

    @property
    def summary(self) -> str:
        return f"no run {self.run!r} here"

    def __str__(self) -> str:
        there = ", ".join(self.existing) or "none"
        return f"no run {self.run!r} here; there are: {there} (fedray runs lists them)"


class ClusterError(FedrayError):
    """Ray failed: no cluster, no token, an actor that died for good."""

    def __init__(self, what: str, hint: str):
        super().__init__(what, hint)
        self.what, self.hint = what, hint

    @property
    def summary(self) -> str:
        return f"{self.what}."

    def __str__(self) -> str:
        return f"{self.summary} {self.hint}"


class CallRefused(FedrayError):
    """A REST call was refused; `status` is the HTTP status code."""

    def __init__(self, status: int, detail: str, hint: str):
        super().__init__(status, detail, hint)
        self.status, self.detail, self.hint = status, detail, hint

    def __str__(self) -> str:
        return f"{self.detail} {self.hint}"


class EdgeMessageError(FedrayError):
    """A message of the edge protocol is not as it is declared."""

    def __init__(self, message: str, problems: list[str]):
        super().__init__(message, problems)
        self.message, self.problems = message, problems

    def __str__(self) -> str:
        return f"no message {self.message}: {'; '.join(self.problems)}"


class LimitReached(CallRefused):
    """A limit of the service is reached; `limit` is the name of its setting.

    status : 429, or 507 where it is a limit of the disk; others if no waiting helps.
    retry_after_s : seconds after which the same call may succeed; 0: it never does.
    """

    def __init__(
        self,
        limit: str,
        detail: str,
        hint: str,
        status: int = 429,
        retry_after_s: int = 5,
    ):
        super().__init__(status, detail, hint)
        self.args = (limit, detail, hint, status, retry_after_s)
        self.limit, self.retry_after_s = limit, retry_after_s


class SecureSumError(FedrayError):
    """A step of secure aggregation is refused: a message or roster does not fit."""

    def __init__(self, where: str, got: str, needed: str):
        super().__init__(where, got, needed)
        self.where, self.got, self.needed = where, got, needed

    def __str__(self) -> str:
        return f"secure aggregation, {self.where}: got {self.got}; needed {self.needed}"


class SecureSumFailed(SecureSumError):
    """An attempt of secure aggregation cannot end: too few parties, or a wrong sum."""
