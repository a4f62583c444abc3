"""The zoo: models and data that people bring, in the lines that they may take."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from zoo import CASES, play

by_name = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.number} {c.name}")


@by_name
def test_a_case_takes_no_more_lines_than_it_may(case):
    n_lines = case.lines()
    assert all(n <= most for n, most in zip(n_lines, case.most, strict=True)), n_lines


def test_the_table_of_the_docs_has_each_case_with_its_lines():
    page = Path(__file__).parent.parent / "docs" / "benchmarks.md"
    _, _, rest = page.read_text(encoding="utf-8").partition("## Lines of code")
    table = [row for row in rest.partition("\n## ")[0].splitlines() if row[:1] == "|"]
    for case, row in zip(CASES, table[2:], strict=True):
        outcome = "an error that says what to do" if case.error else "trains"
        n_python, n_yaml = case.lines()
        assert row == f"| {case.name} | {n_python} | {n_yaml} | {outcome} |"


@by_name
@pytest.mark.usefixtures("cluster")
def test_a_case_works_or_is_refused_in_clear_words(case, tmp_path):
    for package in case.needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    assert not play(case, tmp_path).startswith("WRONG")
