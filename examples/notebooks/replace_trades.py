# %% [markdown]
# # Replacing ART's TRADES trainer
#
# An ART script that trains with `AdversarialTrainerTRADESPyTorch` turns to a distributional threat by two changed
# lines, the import and the constructor. This page does so, and measures before and after with an attack that neither
# trainer has seen: the knapsack, which searches the least distance of every test image to another class.

# %%
import copy

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerTRADESPyTorch
from art.estimators.classification import PyTorchClassifier
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import nn

from art_wdro import DistributionalTRADESTrainer, WassersteinKnapsack, adversarial_accuracy, knapsack_accuracy

plt.style.use("tableau-colorblind10")

# %% [markdown]
# ## The script as it was
#
# Scikit-learn's digits, a small convolutional network, ART's TRADES trainer with ART's PGD in it.

# %%
torch.manual_seed(0)
np.random.seed(0)
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
x, y = (digits.images[order, None] / 16).astype(np.float32), digits.target[order]
x_train, y_train, x_test, y_test = x[:1297], y[:1297], x[1297:], y[1297:]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 128),
            nn.ReLU(),
        )
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(x))
        return logits


model = Network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
classifier = PyTorchClassifier(
    model,
    loss=nn.CrossEntropyLoss(),
    input_shape=(1, 8, 8),
    nb_classes=10,
    optimizer=optimizer,
    clip_values=(0, 1),
)
eps = 0.1
pgd = ProjectedGradientDescent(classifier, eps=eps, eps_step=eps / 3, max_iter=5, verbose=False)
trainer = AdversarialTrainerTRADESPyTorch(classifier, pgd, beta=6.0)
trainer.fit(x_train, y_train, batch_size=64, nb_epochs=10)

# %% [markdown]
# ## Three ways to measure
#
# Clean accuracy; ART's PGD, the attack of the training so far; and least distances on the test images, from which the
# accuracy under W_2 at every budget follows.


# %%
def measure() -> tuple[dict[str, float], np.ndarray]:
    knapsack = WassersteinKnapsack(classifier, eps=eps, max_iter=40, verbose=False)
    knapsack.generate(x_test, y_test)
    return {
        "clean": adversarial_accuracy(classifier, x_test, y_test, eps=0.0),
        "W_inf, PGD": adversarial_accuracy(classifier, x_test, y_test, pgd),
        "W_2, knapsack": knapsack_accuracy(knapsack.distances_, eps, p=2),
    }, knapsack.distances_


results = {"before": measure()}
start = copy.deepcopy(model.state_dict())


def go_back() -> None:
    """Put the weights back and let the optimiser forget."""
    model.load_state_dict(start)
    optimizer.state.clear()
    optimizer.param_groups[0].update(lr=0.05, momentum=0.0)


# %% [markdown]
# ## As many epochs more, in both ways
#
# Fine-tuning starts from the robust network. A longer training could gain by being longer, so ART's trainer goes on for
# as many epochs with the same optimiser. Beside the import one line differs, the constructor, before and after:
#
# ```python
# trainer = AdversarialTrainerTRADESPyTorch(classifier, pgd, beta=6.0)
# trainer = DistributionalTRADESTrainer(classifier, beta=6.0, eps=eps)
# ```

# %%
epochs = 10
go_back()
trainer = AdversarialTrainerTRADESPyTorch(classifier, pgd, beta=6.0)
trainer.fit(x_train, y_train, batch_size=64, nb_epochs=epochs)
results["ART's TRADES"] = measure()

go_back()
trainer = DistributionalTRADESTrainer(classifier, beta=6.0, eps=eps, max_iter=5, seed=0, verbose=False)
trainer.fit(x_train, y_train, batch_size=64, nb_epochs=epochs)
results["distributional"] = measure()

columns = list(results["before"][0])
print(f"{'accuracy in %':16}" + "".join(f"{column:>20}" for column in columns))
for name, (figures, _) in results.items():
    print(f"{name:16}" + "".join(f"{100 * figures[column]:20.1f}" for column in columns))

# %% [markdown]
# ## Before and after

# %%
figure, (bars, curves) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
width = 0.26
for offset, (name, (figures, _)) in enumerate(results.items()):
    places = np.arange(len(columns)) + (offset - 1) * width
    drawn = bars.bar(places, [100 * figures[column] for column in columns], width, label=name)
    bars.bar_label(drawn, fmt="%.1f", fontsize=8)
bars.set(xticks=range(len(columns)), xticklabels=columns, ylabel="accuracy in %", ylim=(0, 118))
bars.set_title(f"{len(x_test)} test images, eps = {eps}")
bars.legend(loc="upper right", ncols=3, fontsize=8)

budgets = np.linspace(0, 1.5 * eps, 100)
for (name, (_figures, distances)), style in zip(results.items(), ("-", "--", "-."), strict=True):
    curves.plot(budgets, 100 * knapsack_accuracy(distances, budgets, p=2), style, label=name)
curves.axvline(eps, color="black", linestyle=":", linewidth=1)
curves.set(xlabel="budget eps under $W_2$, $l_\\infty$", ylabel="accuracy in % (knapsack)", title="at every budget")
curves.legend()
plt.show()

# %%
before, art, ours = (results[name][0]["W_2, knapsack"] for name in results)
error = np.sqrt(ours * (1 - ours) / len(x_test))
print("gain under the knapsack, in points:")
print(f"{100 * (ours - before):+.1f} by the distributional trainer, {100 * (art - before):+.1f} by ART's")
print(f"standard error of one such accuracy on {len(x_test)} images: about {100 * error:.1f} points")

# %% [markdown]
# ART's trainer, continued, gains as well; only the difference between the two is due to the distributional attack, and
# it has to be held against the standard error. This is one run of a small network. The
# [results](../../docs/results/README.md) have several seeds, other data, and the cases in which nothing is gained.
