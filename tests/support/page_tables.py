"""Tables of the docs' pages that are made from declarations, between two marks."""


def table_in(page: str, marks: tuple[str, str]) -> str:
    """What stands between the marks of a page's text."""
    return page.split(marks[0])[1].split(marks[1])[0]


def with_table(page: str, marks: tuple[str, str], table: str) -> str:
    """A page's text with a table between its marks."""
    before, after = page.split(marks[0])
    return before + marks[0] + table + marks[1] + after.split(marks[1])[1]
