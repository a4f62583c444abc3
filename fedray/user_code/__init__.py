"""User code that a config names as ``path/to/file.py:attribute``, and what it imports.

The file is read as text where the config lies, with the Python files beside it that its
import statements name, and run only where it is used, so that a party's node needs no
copy of them. Whoever may name such a file can run code on the cluster: untrusted
callers must not be able to set these keys.
"""

from fedray.user_code.describing import (
    Paths,
    describe,
    describe_here,
    is_raised_by_fedray,
    last_step,
    module_line,
)
from fedray.user_code.live import (
    IN_MEMORY,
    LOST,
    LiveObject,
    hold,
    is_in_memory,
    is_lost,
    is_source,
    read,
    remember,
)
from fedray.user_code.reading import MAX_BYTES, Source, definitions, may_have, write
from fedray.user_code.running import code_lines, plain_names, run

__all__ = [
    "IN_MEMORY",
    "LOST",
    "MAX_BYTES",
    "LiveObject",
    "Paths",
    "Source",
    "code_lines",
    "definitions",
    "describe",
    "describe_here",
    "hold",
    "is_in_memory",
    "is_lost",
    "is_raised_by_fedray",
    "is_source",
    "last_step",
    "may_have",
    "module_line",
    "plain_names",
    "read",
    "remember",
    "run",
    "write",
]
