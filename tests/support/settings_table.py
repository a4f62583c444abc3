"""Tables in docs/rest-api.md of the service's settings, from their declarations.

``make docs`` runs this file, which writes them into the page.
"""

import sys
from pathlib import Path

from fedray.service.options import options_of
from fedray.service.settings import Settings

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests")] * (str(ROOT / "tests") not in sys.path)

from support.page_tables import with_table  # noqa: E402

PAGE = ROOT / "docs" / "rest-api.md"
MARKS = ("<!-- settings: written by make docs -->\n", "<!-- /settings -->\n")


def tables() -> str:
    """The options that are no limits, then the limits."""
    options = options_of(Settings).values()
    lines = ["| option | default | |", "|---|---|---|"]
    lines += [
        f"| `{one.flag}` | {one.default_text} | {one.declared.help} |"
        for one in options
        if not one.declared.scope
    ]
    lines += ["", "| limit | default | of | |", "|---|---|---|---|"]
    for one in options:
        if scope := one.declared.scope.removeprefix("per "):
            text = f"{one.default_text} | {scope} | {one.declared.help}"
            lines.append(f"| `{one.flag}` | {text} |")
    return "\n".join(lines) + "\n"


def page_with_tables(page: str) -> str:
    """The page's text with the tables between their marks."""
    return with_table(page, MARKS, tables())


if __name__ == "__main__":
    text = page_with_tables(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
