# SPDX-License-Identifier: MIT
"""The figure of a report: accuracy over the budget, and where the budget went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from art_wdro._threat.knapsack import knapsack

if TYPE_CHECKING:
    from art_wdro.evaluation._report import Report

BUDGETS = 200
"""Budgets at which the curves are computed."""
BINS = 30
"""Bins of distances."""


def draw(report: Report, figure: Any, orders: Sequence[float]) -> None:
    """Draw both on a figure of matplotlib.

    :param report: The report.
    :param figure: The figure.
    :param orders: Orders beside the report's and inf.
    """
    curves, spending = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_curves(report, curves, orders)
    _draw_spending(report, spending)


def _draw_curves(report: Report, axes: Any, orders: Sequence[float]) -> None:
    """Draw accuracy over eps by the knapsack, the bracket below it shaded, and the attacks where they were run."""
    finite = report.distances[np.isfinite(report.distances)]
    budgets = np.linspace(0, max(2 * report.eps, float(np.quantile(finite, 0.9)) if len(finite) else 0.0), BUDGETS)
    for order in sorted({report.p, math.inf, *orders}):
        name = "$W_{\\infty}$" if math.isinf(order) else f"$W_{{{order:g}}}$"
        upper = 100 * report.accuracy(budgets, order)
        (line,) = axes.plot(budgets, upper, label=f"knapsack, {name}")
        if report.radii is not None:
            lower = 100 * report.certified_accuracy(budgets, order)
            axes.plot(budgets, lower, "--", color=line.get_color(), label=f"certified, {name}")
            if order == report.p:
                axes.fill_between(budgets, lower, upper, color=line.get_color(), alpha=0.15, linewidth=0)
    for row in report.rows:
        if row.failure:
            continue
        low, high = report.intervals[row.attack]
        if row.order is None:
            (line,) = axes.plot(budgets[[0, -1]], [100 * row.accuracy] * 2, ":", color="grey", label="clean")
            axes.axhspan(100 * low, 100 * high, color="grey", alpha=0.1, linewidth=0)
            continue
        error = [[100 * (row.accuracy - low)], [100 * (high - row.accuracy)]]
        axes.errorbar(report.eps, 100 * row.accuracy, error, fmt="o", label=f"{row.attack}, {row.threat}", capsize=3)
    axes.set(xlabel="eps, in input units", ylabel="accuracy in %", ylim=(0, None), xlim=(0, budgets[-1] or None))
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)


def _draw_spending(report: Report, axes: Any) -> None:
    """Draw how many samples lie at which distance, and which part of the budget the knapsack spends there."""
    distances = report.distances
    filling = knapsack(distances, report.eps, report.p)
    reachable = (distances > 0) & np.isfinite(distances)
    axes.set(xlabel="least distance, in input units", ylabel="share in %", title="where the budget went")
    if not reachable.any():
        return
    whole = filling.flipped.astype(float)
    if filling.partial is not None:
        whole[filling.partial] = filling.fraction
    largest = float(np.quantile(distances[reachable], 0.99))
    bins = np.linspace(0, max(largest, filling.threshold, report.eps), BINS + 1)
    share = np.full(len(distances), 100 / len(distances))
    axes.hist(distances[reachable], bins, weights=share[reachable], histtype="step", label="of the samples")
    if math.isfinite(report.p) and report.eps > 0:
        with np.errstate(over="ignore", invalid="ignore"):
            spent = share * np.nan_to_num(whole * (distances / report.eps) ** report.p)
        axes.hist(distances[reachable], bins, weights=spent[reachable], alpha=0.6, label="of the budget, spent")
    axes.axvline(report.eps, color="black", linestyle="--", label="eps, of a pointwise attack")
    axes.axvline(filling.threshold, color="grey", linestyle=":", label="farthest sample flipped")
    axes.legend(fontsize=8)
