# %% [markdown]
# # A first attack, and what a shared budget looks like
#
# A pointwise attack may move every image by eps. A distributional attack has the same budget *on average*: the mean
# over the data set of the p-th power of the changes is at most eps^p. It takes from images that are not worth attacking
# and gives to those that are. This page attacks one network in both ways and shows where the budget went.

# %%
import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import nn

from art_wdro import WassersteinKnapsack, WassersteinPGD, wasserstein_distance

plt.style.use("tableau-colorblind10")

# %% [markdown]
# ## A network
#
# Handwritten digits of 8x8 pixels ship with scikit-learn. The network is small and trained on clean images; to the
# attacks it is an ordinary `PyTorchClassifier` of ART.

# %%
torch.manual_seed(0)
np.random.seed(0)
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
x, y = (digits.images[order, None] / 16).astype(np.float32), digits.target[order]
x_train, y_train, x_test, y_test = x[:1297], y[:1297], x[1297:], y[1297:]

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3, stride=2, padding=1),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(1024, 10),
)
classifier = PyTorchClassifier(
    model,
    loss=nn.CrossEntropyLoss(),
    input_shape=(1, 8, 8),
    nb_classes=10,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    clip_values=(0, 1),
)
classifier.fit(x_train, y_train, batch_size=64, nb_epochs=10)


def accuracy(inputs: np.ndarray) -> float:
    return float(np.mean(classifier.predict(inputs).argmax(1) == y_test))


print(f"accuracy on {len(x_test)} clean test images: {accuracy(x_test):.1%}")

# %% [markdown]
# ## Three attacks with the same eps
#
# - ART's PGD: every image moves by at most eps in l_inf. That is W_inf.
# - W-PGD, `WassersteinPGD` with p = 2: the mean *squared* l_inf change is at most eps^2.
# - The knapsack: the same threat, from the least distance of every image to another class. It flips the cheapest
#   images, each by no more than it takes, and leaves the others as they were.
#
# The whole test set goes into one call. The budget couples all images, so half of them would be another problem.

# %%
eps = 0.05
attacks = {
    "PGD (ART)": ProjectedGradientDescent(classifier, eps=eps, eps_step=eps / 5, max_iter=20, verbose=False),
    "W-PGD": WassersteinPGD(classifier, p=2, norm=np.inf, eps=eps, verbose=False),
    "knapsack": WassersteinKnapsack(classifier, p=2, norm=np.inf, eps=eps, max_iter=100, verbose=False),
}
attacked = {name: attack.generate(x_test, y_test) for name, attack in attacks.items()}
length = {name: np.abs(found - x_test).max(axis=(1, 2, 3)) for name, found in attacked.items()}

print(f"{'':12}{'accuracy':>10}{'D_2 / eps':>12}{'largest / eps':>16}{'images moved':>15}")
for name, found in attacked.items():
    spent = wasserstein_distance(x_test, found, p=2, norm=np.inf)
    assert spent <= eps * (1 + 1e-6)
    print(
        f"{name:12}{accuracy(found):10.1%}{spent / eps:12.2f}"
        f"{length[name].max() / eps:16.2f}{np.mean(length[name] > 0):15.1%}"
    )

# %% [markdown]
# All three are allowed under W_2: the mean of squares is within eps^2 even where images move further than eps.
# The pointwise attack is the weakest of them, since its budget on images far from any other class is wasted, and so is
# what it spends beyond the boundary.

# %% [markdown]
# ## Where the budget went

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3), sharex=True, layout="constrained")
bins = np.linspace(0, max(lengths.max() for lengths in length.values()) / eps, 41)
for axis, (name, lengths) in zip(axes, length.items(), strict=True):
    axis.hist(lengths / eps, bins=bins)
    axis.axvline(1, color="black", linestyle="--", linewidth=1)
    axis.set(title=f"{name}: {accuracy(attacked[name]):.1%} left", xlabel="change of an image, in eps")
    axis.set(yscale="log", ylim=(0.7, 700))
axes[0].set_ylabel("test images (logarithmic)")
plt.show()

# %% [markdown]
# The dashed line is eps. The pointwise attack puts every image there. The knapsack leaves a part of the images at 0 and
# spends on the others what it takes to flip each of them, no more.
#
# Some images, from the one on which W-PGD spends most to the one on which it spends least:

# %%
shown = np.argsort(-length["W-PGD"])[np.linspace(0, len(x_test) - 1, 8).astype(int)]
rows = {"clean": x_test, **attacked}
figure, grid = plt.subplots(len(rows), len(shown), figsize=(11, 7.4), layout="constrained")
for line, (name, images) in zip(grid, rows.items(), strict=True):
    predicted = classifier.predict(images[shown]).argmax(1)
    for axis, i, seen in zip(line, shown, predicted, strict=True):
        axis.imshow(images[i, 0], cmap="gray", vmin=0, vmax=1)
        moved = "" if name == "clean" else f"\n{length[name][i] / eps:.1f} eps"
        wrong = seen != y_test[i]
        axis.set_title(f"seen as {seen}{moved}", fontsize=9, fontweight="bold" if wrong else "normal")
        axis.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
plt.show()

# %% [markdown]
# Bold: misclassified.
#
# ## One call for the whole data set
#
# `batch_size` is a matter of memory and changes nothing but float noise. Attacking in two calls does change the result:
# each half then has a budget of its own, and nothing can move from one to the other.

# %%
same = WassersteinPGD(classifier, eps=eps, batch_size=50, verbose=False).generate(x_test, y_test)
halves = [attacks["W-PGD"].generate(x_test[half], y_test[half]) for half in (slice(0, 250), slice(250, 500))]
print(f"largest difference with batches of 50: {np.abs(same - attacked['W-PGD']).max():.1e}")
print(f"largest difference in two calls:       {np.abs(np.concatenate(halves) - attacked['W-PGD']).max():.1e}")
