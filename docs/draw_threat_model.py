# SPDX-License-Identifier: MIT
"""Draw docs/threat-model.svg: the same budget spent pointwise and shared, on points before a straight boundary.

python docs/draw_threat_model.py
"""

from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Circle

from art_wdro import knapsack_accuracy

EPS = 0.25
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"

rng = np.random.default_rng(3)
distances = np.sort(rng.uniform(0.08, 1.0, 16))
heights = rng.permutation(np.linspace(0.05, 1.55, 16))

within = distances <= EPS
flipped = np.cumsum(distances**2) <= len(distances) * EPS**2
moves = {"pointwise: $W_\\infty$": np.full(16, EPS), "shared: $W_2$": np.where(flipped, distances + 0.004, 0)}

plt.rcParams["svg.hashsalt"] = "threat model"
figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), sharey=True, layout="constrained")
for axis, (name, lengths), wrong in zip(axes, moves.items(), (within, flipped), strict=True):
    axis.axvspan(0, 0.3, color=ORANGE, alpha=0.12, linewidth=0)
    axis.axvline(0, color="black")
    for distance, height, length, lost in zip(distances, heights, lengths, wrong, strict=True):
        if name.startswith("pointwise"):
            axis.add_patch(Circle((-distance, height), EPS, fill=False, color=GREY, linewidth=0.6, alpha=0.7))
        if length:
            style = {"arrowstyle": "->", "color": ORANGE if lost else GREY, "shrinkA": 0, "shrinkB": 0}
            axis.annotate("", (length - distance, height), (-distance, height), arrowprops=style)
        axis.plot(-distance, height, "X" if lost else "o", color=ORANGE if lost else BLUE, markersize=7)
    share = np.mean(~wrong)
    spent = np.sqrt(np.mean(lengths**2))
    axis.set_title(f"{name}, {share:.0%} stay correct")
    axis.set(xlim=(-1.3, 0.3), ylim=(-0.3, 1.9), aspect="equal", xticks=[], yticks=[])
    axis.set_xlabel(f"root mean square of the moves: {spent / EPS:.2f} eps")
axes[1].text(0.15, 1.75, "other class", ha="center", va="center", fontsize=7)
axes[0].text(0.15, 1.75, "other class", ha="center", va="center", fontsize=7)
print(f"knapsack, the last sample in part: {knapsack_accuracy(distances, EPS, p=2):.3f}")
figure.savefig(Path(__file__).parent / "threat-model.svg", metadata={"Date": None})
