"""Exit codes of every command: each means one thing, so that scripts can rely on it."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command ends with; docs/command-line.md lists the same."""

    DONE = 0  # it did what was asked; of a check: a run would start
    FAILED = 1  # it did not; the reason is on stderr (of check and query: in --json)
    USAGE = 2  # the command line itself is wrong: no such command, option or value
    STOPPED = 130  # Ctrl-C, SIGTERM or `fedray stop`: finished rounds are kept
