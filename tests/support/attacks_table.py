"""Table in docs/security-and-privacy.md of attacks on the service and their outcomes.

``make docs`` runs this file, which writes it into the page.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests")] * (str(ROOT / "tests") not in sys.path)

from support.attacks import ATTACKS  # noqa: E402
from support.page_tables import with_table  # noqa: E402

PAGE = ROOT / "docs" / "security-and-privacy.md"
MARKS = ("<!-- attacks: written by make docs -->\n", "<!-- /attacks -->\n")


def table() -> str:
    """A row for each attack."""
    rows = [("attack", "outcome"), ("---", "---")]
    rows += [(attack.name, attack.outcome) for attack in ATTACKS]
    return "".join(f"| {name} | {outcome} |\n" for name, outcome in rows)


def page_with_table(page: str) -> str:
    """The page's text with the table between its marks."""
    return with_table(page, MARKS, table())


if __name__ == "__main__":
    text = page_with_table(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
