# %% [markdown]
# # Fine-tuning a network of RobustBench
#
# `load_robustbench` makes a network of RobustBench's zoo a `PyTorchClassifier` with an optimiser, ready to be attacked
# and fine-tuned. It reads `models/cifar10/Linf/NAME.pt`; where that file is missing, RobustBench downloads the
# published weights.
#
# **What this page shows, and what it does not.** It has to run without a network connection and in about a minute on a
# CPU. So it writes a stand-in checkpoint under the name of a ResNet-18 of the zoo, and its images are scikit-learn's
# digits, enlarged to 32x32. Every call is the one for the real thing; the figures belong to the stand-in and say
# nothing about the published network, about CIFAR-10, or about how much fine-tuning gains. For those, leave out the
# section "A stand-in", set `FOLDER` to "models", and take images of CIFAR-10, thousands of them, more epochs and a GPU.

# %%
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from art_wdro import (
    DistributionalTRADESTrainer,
    WassersteinKnapsack,
    adversarial_accuracy,
    knapsack_accuracy,
    load_robustbench,
    perturb_weights,
)

plt.style.use("tableau-colorblind10")
NAME = "Wong2020Fast"  # a PreActResNet-18
FOLDER = Path("stand-in-models")  # RobustBench's own is "models"

torch.manual_seed(0)
np.random.seed(0)
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = torch.from_numpy(digits.images[order, None] / 16).float().expand(-1, 3, -1, -1)
x = interpolate(images, size=32, mode="bilinear").numpy()
y = digits.target[order]
x_train, y_train, x_test, y_test = x[:96], y[:96], x[-32:], y[-32:]

# %% [markdown]
# ## A stand-in
#
# A checkpoint is a state dict. This one starts as random weights in the shapes of the architecture; once loaded, the
# network is trained for a few epochs on clean digits and saved in the layout of RobustBench. A file that is there
# already stays.


# %%
def random_weights() -> dict[str, torch.Tensor]:
    """Return the state of a PreActResNet-18 before training."""
    state = {"conv1.weight": torch.randn(64, 3, 3, 3) / 81**0.5}
    width = 64
    for layer, channels in enumerate((64, 128, 256, 512), 1):
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            for norm, convolution, size in (("bn1", "conv1", width), ("bn2", "conv2", channels)):
                state[f"{name}.{convolution}.weight"] = torch.randn(channels, size, 3, 3) / (27 * size) ** 0.5
                state |= {f"{name}.{norm}.{entry}": torch.ones(size) for entry in ("weight", "running_var")}
                state |= {f"{name}.{norm}.{entry}": torch.zeros(size) for entry in ("bias", "running_mean")}
                state[f"{name}.{norm}.num_batches_tracked"] = torch.tensor(0)
            if width != channels:
                state[f"{name}.shortcut.0.weight"] = torch.randn(channels, width, 1, 1) / (3 * width) ** 0.5
            width = channels
    return state | {"linear.weight": torch.zeros(10, 512), "linear.bias": torch.zeros(10)}


file = FOLDER / "cifar10" / "Linf" / f"{NAME}.pt"
if not file.is_file():
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(random_weights(), file)
    classifier = load_robustbench(NAME, model_dir=FOLDER, device="cpu")
    for rate, epochs in ((0.02, 4), (0.002, 1)):
        classifier.optimizer.param_groups[0].update(lr=rate, momentum=0.9)
        classifier.fit(x_train, y_train, batch_size=16, nb_epochs=epochs)
    torch.save(classifier.model.state_dict(), file)

# %% [markdown]
# ## Load and attack
#
# Inputs lie in [0, 1]; the networks of the zoo normalise inside. The figure to quote is the knapsack's: one search for
# the least distances of the test images answers every budget.

# %%
classifier = load_robustbench(NAME, model_dir=FOLDER, device="cpu")
eps = 2 / 255


def distances() -> np.ndarray:
    knapsack = WassersteinKnapsack(classifier, eps=eps, max_iter=6, verbose=False)
    knapsack.generate(x_test, y_test)
    return knapsack.distances_


print(f"clean accuracy on {len(x_test)} images: {adversarial_accuracy(classifier, x_test, y_test, eps=0.0):.1%}")
before = distances()
print(f"under W_2 at eps = 2/255, knapsack: {knapsack_accuracy(before, eps):.1%}")

# %% [markdown]
# ## Fine-tune
#
# As in the training paper: perturb the whole network a little, then train it further with SGD at rate 0.01, the
# optimiser that `load_robustbench` brings. The paper takes 20 epochs of 40,000 images and attacks of 20 steps; here it
# is one epoch of 96 images and attacks of 2 steps.

# %%
perturb_weights(classifier, noise=0.01, seed=0)
trainer = DistributionalTRADESTrainer(classifier, eps=eps, max_iter=2, seed=0, verbose=False)
trainer.fit(x_train, y_train, batch_size=16, nb_epochs=1)
for record in trainer.history:
    print(f"epoch {record['epoch']}: loss {record['loss']:.3f}, Upsilon {record['upsilon']:.2f}")

print(f"clean accuracy: {adversarial_accuracy(classifier, x_test, y_test, eps=0.0):.1%}")
after = distances()
print(f"under W_2 at eps = 2/255, knapsack: {knapsack_accuracy(after, eps):.1%}")

# %%
figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
budgets = np.linspace(0, 4 * eps, 100)
axes.plot(255 * budgets, 100 * knapsack_accuracy(before, budgets), "--", label="before")
axes.plot(255 * budgets, 100 * knapsack_accuracy(after, budgets), label="after")
axes.axvline(255 * eps, color="black", linestyle=":", linewidth=1)
axes.set(xlabel="budget under $W_2$, $l_\\infty$, in 1/255", ylabel="accuracy in % (knapsack)", ylim=(0, 100))
axes.set_title(f"stand-in, {len(x_test)} enlarged digits")
axes.legend()
plt.show()

# %% [markdown]
# One of 32 images weighs 3 points, and a search of 6 gradients an image is a coarse one: both curves are upper bounds
# on the true accuracy. A stand-in that was hardly trained also gains by any further training.
# [Results](../../docs/results/README.md) has what the method does on Fashion-MNIST and CIFAR-10, and
# [reproduce](../../docs/reproduce.md) runs the paper's protocol on five networks of the zoo.
