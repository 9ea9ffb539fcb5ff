"""Find the report of a target."""

from __future__ import annotations

from headstart.targets.reports import multi_label, number, single_label
from headstart.targets.reports.judged import KindOfReport
from headstart.targets.target import Target

REPORTS = {"single_label": single_label.REPORT, "multi_label": multi_label.REPORT, "number": number.REPORT}


def report_of(target: Target) -> KindOfReport:
    """Return what a target adds to the report."""
    return REPORTS[target.kind]
