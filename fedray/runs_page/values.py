"""Values of files that anyone may have edited, as what they should be or None."""

from collections.abc import Mapping
from typing import Any

from fedray.untrusted_text import encodable

MAX_NUMBER = 1e300
MAX_TEXT = 600  # characters of one text


def number(value: Any) -> float | None:
    """A finite number as it is; else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= MAX_NUMBER:  # NaN is not either
        return None
    return value


def text(value: Any, most: int = MAX_TEXT) -> str:
    """A text of at most so many characters; empty if there is none."""
    if value is None:
        return ""
    whole = encodable(value if isinstance(value, str) else str(value)[: most + 1])
    return whole if len(whole) <= most else f"{whole[: most - 1]}…"


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping as it is; else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> list[Any]:
    """A list as it is; else an empty one."""
    return value if isinstance(value, list) else []
