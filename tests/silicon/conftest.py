"""The table of all vectors at the end of a run."""

from collections.abc import Callable

import pytest

from tests.silicon.case import Case
from tests.silicon.rules import Comparison

_ROW = "vector"


@pytest.fixture
def compare(request) -> Callable:
    """Holds a result against a case's rule, and adds a line to the table."""

    def compare(case: Case, out, reference, kernel) -> None:
        found = Comparison.of(kernel, out, reference)
        holds = case.rule.holds(found)
        figures = f"{found.kernel_error:>10.2e}{found.error:>10.2e}{found.difference:>12.2e}"
        row = f"{case.name:<36}{figures}{'' if holds else f'   not: {case.rule.words}'}"
        request.node.user_properties.append((_ROW, row))
        assert holds, f"{case.name}: {case.rule.words}, but {found}"

    return compare


def pytest_terminal_summary(terminalreporter):
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    rows = [row for report in reports for name, row in report.user_properties if name == _ROW]
    if rows:
        terminalreporter.section("TT-NN's kernels and this device: relative RMSE against torch float32")
        terminalreporter.write_line(f"{'operation':<36}{'kernels':>10}{'device':>10}{'difference':>12}")
        for row in rows:
            terminalreporter.write_line(row)
