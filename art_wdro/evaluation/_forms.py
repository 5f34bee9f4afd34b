# SPDX-License-Identifier: MIT
"""The forms in which a report is read: a table for a terminal, in Markdown and in HTML, and the notes under it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from art_wdro.evaluation._intervals import LEVEL, written

if TYPE_CHECKING:
    from art_wdro.evaluation._report import Report

HEAD = ["threat", "attack", "accuracy in %", "spent / eps", "gradients a sample", "seconds"]
"""Columns of the table."""
SHORT = ["threat", "attack", "acc. %", "spent/eps", "gradients", "seconds"]
"""The same for a terminal."""


def markdown(report: Report) -> str:
    """Return a table in Markdown."""
    return "\n".join([*markdown_lines(HEAD, _cells(report)), "", *(f"{note}  " for note in _notes(report))])


def markdown_lines(head: list[str], body: list[list[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    blank = [""] * len(head)
    return ["| " + " | ".join([*cells, *blank[len(cells) :]]) + " |" for cells in (head, ["---"] * len(head), *body)]


def html(report: Report) -> str:
    """Return a table in HTML."""
    rows = [("th", HEAD), *(("td", cells) for cells in _cells(report))]
    table = "\n".join(_html_row(kind, cells) for kind, cells in rows)
    return f"<table>\n{table}\n</table>\n" + "\n".join(f"<div>{escape(note)}</div>" for note in _notes(report))


def _html_row(kind: str, cells: list[str]) -> str:
    """Return a row whose last cell takes the room of those that lack."""
    *before, last = (escape(cell) for cell in cells)
    span = len(HEAD) - len(before)
    opened = f"<{kind}>" if span == 1 else f'<{kind} colspan="{span}">'
    return f"<tr>{''.join(f'<{kind}>{cell}</{kind}>' for cell in before)}{opened}{last}</{kind}></tr>"


def terminal(report: Report) -> str:
    """Return a table for a terminal."""
    table = [SHORT, *_cells(report)]
    full = [cells for cells in table if len(cells) == len(SHORT)]
    widths = [max(len(cells[i]) for cells in full) for i in range(len(SHORT))]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=False)))
        for cells in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *_notes(report)])


def _cells(report: Report) -> list[list[str]]:
    """Return the cells of all rows; that of an attack that is not installed has fewer, the last of which says so."""
    scale = report.eps if report.eps > 0 else 1.0
    return [
        [
            row.threat,
            row.attack,
            "failed" if row.failure else written(row.accuracy, report.intervals[row.attack]),
            "" if row.order is None or row.failure else f"{row.spent / scale:.3f}",
            "" if row.failure else f"{row.gradients:.0f}",
            f"{row.seconds:.1f}",
        ]
        if row.installed
        else [row.threat, row.attack, str(row.failure)]
        for row in report.rows
    ]


def _notes(report: Report) -> list[str]:
    drawn = f" of {report.drawn_from}, drawn at random by class (seed {report.seed})"
    taken = f"{report.samples} samples" + ("" if report.indices is None else drawn)
    notes = [
        f"{taken}, (W_{report.p:g}, l_{report.norm:g}), eps = {report.eps:.6g}",
        f"±: how far the interval of {100 * LEVEL:g} % over the draw of samples reaches, on its longer side",
    ]
    notes += [f"{row.attack} failed: {row.failure}" for row in report.rows if row.failure and row.installed]
    if report.surer is None:
        notes.append(f"Upsilon (ReDLR) = {report.upsilon:.6g}")
    notes += [
        f"first-order bounds ({loss}; asymptotic, no certificate): [{100 * b.lower:.1f}, {100 * b.upper:.1f}] %"
        for loss, b in report.bounds.items()
    ]
    if report.radii is not None:
        ends = report.certified_accuracy(report.eps), report.accuracy(report.eps)
        if ends[0] > 0 or ends[1] == 0:
            sure = "" if report.confidence is None else f", with a confidence of {100 * report.confidence:g} %"
            bracket = f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}] %: the truth lies between{sure}"
            notes += [f"[certified, knapsack] = {bracket}"]
            notes += [f"certified: {written(ends[0], report.intervals['certified'])} %"]
        else:  # below nothing lies no accuracy
            notes.append("nothing is certified at this eps")
    elif report.uncertified is not None:
        notes.append(f"no certificate: {report.uncertified}")
    return notes + [f"Warning: {text}" for text in report.warnings]
