# %% [markdown]
# # Honest evaluation
#
# An attack shows how bad it can get at least; what it leaves is an upper bound on the accuracy under the threat, and a
# weak attack leaves a flattering one. A certificate shows how bad it can get at most. This page draws both over the
# budget for one network: two strengths of W-PGD, the knapsack, first-order bounds, and the certificate.

# %%
from typing import Any

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainer
from art.estimators.classification import PyTorchClassifier
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import nn

from art_wdro import WassersteinPGD, accuracy_bounds, adversarial_accuracy, evaluate

plt.style.use("tableau-colorblind10")

# %% [markdown]
# ## An adversarially trained network
#
# Small enough for certificates: 64 hidden units. ART's adversarial training, ART's PGD.

# %%
torch.manual_seed(0)
np.random.seed(0)
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
x, y = (digits.images[order, None] / 16).astype(np.float32), digits.target[order]
x_train, y_train, x_test, y_test = x[:1297], y[:1297], x[1297:1597], y[1297:1597]

model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
classifier = PyTorchClassifier(
    model,
    loss=nn.CrossEntropyLoss(),
    input_shape=(1, 8, 8),
    nb_classes=10,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    clip_values=(0, 1),
)
pgd = ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.03, max_iter=5, verbose=False)
AdversarialTrainer(classifier, pgd, ratio=1.0).fit(x_train, y_train, batch_size=64, nb_epochs=15)

# %% [markdown]
# ## One call
#
# `evaluate` runs all of it at one budget. The rows of W_2 differ by attack, not by threat: the least accuracy
# of them is the one to quote. The last line brackets the truth.

# %%
eps = 0.05
report = evaluate(classifier, x_test, y_test, p=2, norm=np.inf, eps=eps, autoattack=False, verbose=False)
print(report)

# %% [markdown]
# ## Accuracy over the budget
#
# The report keeps the least distance and the certified radius of every image, so the knapsack and the certificate
# answer every budget without further work. W-PGD and the first-order bounds need a run at each.

# %%
budgets = np.linspace(0, 0.12, 121)
few = np.linspace(0.01, 0.12, 12)


def by_wpgd(budget: float, **setting: Any) -> float:
    attack = WassersteinPGD(classifier, p=2, eps=budget, verbose=False, **setting)
    return adversarial_accuracy(classifier, x_test, y_test, attack)


paper = [by_wpgd(budget, max_iter=20, eps_step=budget / 20) for budget in few]
strong = [by_wpgd(budget, max_iter=100, schedule="linear") for budget in few]
first_order = [accuracy_bounds(classifier, x_test, y_test, p=2, eps=budget, loss="ce").lower for budget in few]
knapsack = report.accuracy(budgets, p=2)
certified = report.certified_accuracy(budgets, p=2)
assert np.all(certified <= knapsack)

figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
axes.plot(few, 100 * np.array(paper), "s-", label="W-PGD, 20 steps, the training paper's length")
axes.plot(few, 100 * np.array(strong), "o-", label="W-PGD, 100 steps, linear schedule")
axes.plot(few, 100 * np.array(first_order), "x:", label="first-order lower bound (cross-entropy)")
axes.plot(budgets, 100 * knapsack, "-", linewidth=2.5, label="knapsack")
axes.plot(budgets, 100 * certified, "--", linewidth=2.5, label="certified")
axes.fill_between(budgets, 100 * certified, 100 * knapsack, alpha=0.2, label="where the truth is")
axes.set(xlabel="budget eps under $W_2$, $l_\\infty$", ylabel="accuracy in %", ylim=(0, 102), xlim=(0, 0.12))
axes.set_title(f"{len(x_test)} test images of the digits")
axes.legend(loc="lower left")
plt.show()

# %%
for name, curve in (
    ("W-PGD, the training paper's length", np.interp(eps, few, paper)),
    ("W-PGD, 100 steps, linear", np.interp(eps, few, strong)),
    ("first-order lower bound", np.interp(eps, few, first_order)),
    ("knapsack", report.accuracy(eps)),
    ("certified", report.certified_accuracy(eps)),
):
    print(f"{name:36}{100 * curve:6.1f} % at eps = {eps}")

# %% [markdown]
# How to read it:
#
# - Every curve of an attack is an upper bound on the true accuracy, so the lowest counts. Quoting W-PGD alone would
#   overstate the accuracy by at least the gap between its curve and the knapsack's.
# - The first-order lower bound is asymptotic in eps. Where it lies above the knapsack it is plainly not a bound.
# - Nothing is known inside the shaded band. It is narrow at small budgets and widens as linear bounds loosen;
#   [certificates](../../docs/certificates.md) has networks trained for narrow ones.
