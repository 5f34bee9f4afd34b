# SPDX-License-Identifier: MIT
"""The figure of the demo: accuracy over the budget and along the epochs, and images with where the budget went."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier

from art_wdro._cli.outputs import save
from art_wdro._sources.data import Split
from art_wdro.attacks._pgd import WassersteinPGD
from art_wdro.evaluation._autoattack import AUTOATTACK
from art_wdro.evaluation._report import Report

PAPER = "W-PGD-20, ReDLR, step eps/20 (paper)"
"""What a report calls the attack of the training paper."""
SHOWN = {"PGD-20, CE": "PGD, eps for each", AUTOATTACK: "AutoAttack, eps for each", PAPER: "W-PGD, as in the paper"}
"""Rows that the figure has beside the knapsack, and what it calls them."""


def draw_bracket(report: Report, axes: Any) -> None:
    """Draw what the knapsack leaves over the budget, what is certified, and what other attacks leave at eps."""
    budgets = np.linspace(0, 1.2 * report.eps, 61)
    upper = 100 * report.accuracy(budgets)
    axes.plot(budgets / report.eps, upper, label="knapsack")
    if report.radii is not None:
        lower = 100 * report.certified_accuracy(budgets)
        axes.plot(budgets / report.eps, lower, "--", label="certified")
        axes.fill_between(budgets / report.eps, lower, upper, alpha=0.15, label="the truth")
    for row, mark in zip((row for row in report.rows if row.attack in SHOWN and not row.failure), "x+o", strict=False):
        axes.plot(1.0, 100 * row.accuracy, mark, color="black", label=SHOWN[row.attack])
    axes.set(xlabel="budget in eps", ylabel="accuracy in %", ylim=(0, 100), title="the robust network, attacked")
    axes.legend(fontsize=8, loc="lower left")


def save_figure(
    report: Report, history: list[dict[str, Any]], classifier: PyTorchClassifier, test: Split, args: argparse.Namespace
) -> None:
    """Draw the bracket, accuracy along the epochs, and for some images the attacked image and where the budget went."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    adversarial = WassersteinPGD(classifier, eps=args.eps, verbose=False).generate(*test)
    delta = adversarial - test.x
    length = np.abs(delta).reshape(len(delta), -1).max(1)
    shown = np.argsort(-length)[np.linspace(0, len(length) - 1, 8).astype(int)]
    predicted = classifier.predict(adversarial).argmax(1)

    figure = plt.figure(figsize=(12, 7.5), layout="constrained")
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 1.15)))
    bracket, curves, budget = upper.subplots(1, 3)
    draw_bracket(report, bracket)
    for key, label in (("clean_accuracy", "clean"), ("winf_accuracy", "$W_\\infty$"), ("wp_accuracy", "$W_2$")):
        curves.plot([r["epoch"] + 1 for r in history], [100 * r[key] for r in history], marker="o", label=label)
    curves.set(xlabel="epoch", ylabel="accuracy in %", title="fine-tuning, validation images")
    curves.set_ylim(bottom=max(0, 100 * min(r["wp_accuracy"] for r in history) - 15), top=102)
    curves.legend(loc="lower center", ncols=3)
    budget.hist(length, bins=40)
    budget.locator_params(axis="x", nbins=5)
    budget.axvline(args.eps, color="black", linestyle="--")
    budget.set(
        xlabel="largest pixel change (dashed: eps)",
        ylabel="test images",
        title="how W-PGD shares the budget",
    )
    lower.suptitle("from most to least budget: image, attacked image, change")
    rows = lower.subplots(3, len(shown))
    for column, i in zip(rows.T, shown, strict=True):
        span = np.abs(delta).max()
        parts = (test.x[i], adversarial[i], delta[i] / (2 * span) + 0.5 if span > 0 else delta[i] + 0.5)
        titles = (f"label {test.y[i]}", f"seen as {predicted[i]}", f"{length[i] / args.eps:.1f} eps")
        for axis, part, title in zip(column, parts, titles, strict=True):
            axis.imshow(part.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=9)
            axis.axis("off")
    save(args.figure, lambda path: figure.savefig(path, dpi=120))
    plt.close(figure)
    print(f"Figure saved as {args.figure}")
