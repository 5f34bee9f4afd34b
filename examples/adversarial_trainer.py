# SPDX-License-Identifier: MIT
"""ART's generic AdversarialTrainer with W-PGD, and what its batches mean for a shared budget.

The trainer calls its attacks in turn, one for each batch, on a random half of the batch with `ratio=0.5`. Each call
has the whole eps: the 32 attacked images of a batch of 64 share it, no batch gives to another, and over the whole batch
D_2 is at most sqrt(0.5) eps. What results is one of the moves that an attacker of all images has, so it is weaker. It
trains; an accuracy to quote takes all images in one call.
"""

import numpy as np
import torch
from art.defences.trainer import AdversarialTrainer
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import nn

from art_wdro import WassersteinKnapsack, WassersteinPGD, adversarial_accuracy, wasserstein_distance

EPS, BATCH = 0.1, 64

torch.manual_seed(0)
np.random.seed(0)
digits = load_digits()
x, y = (digits.images[:, None] / 16).astype(np.float32), digits.target
x_train, y_train, x_test, y_test = x[:1297], y[:1297], x[1297:], y[1297:]

model = nn.Sequential(nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
classifier = PyTorchClassifier(
    model,
    loss=nn.CrossEntropyLoss(),
    input_shape=(1, 8, 8),
    nb_classes=10,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    clip_values=(0, 1),
)
attack = WassersteinPGD(classifier, eps=EPS, max_iter=10, verbose=False)
trainer = AdversarialTrainer(classifier, attacks=[attack], ratio=0.5)
trainer.fit(x_train, np.eye(10, dtype=np.float32)[y_train], batch_size=BATCH, nb_epochs=10)

whole = attack.generate(x_test, y_test)
parts = [slice(start, start + BATCH) for start in range(0, len(x_test), BATCH)]
pieces = np.concatenate([attack.generate(x_test[part], y_test[part]) for part in parts])


def moved(attacked: np.ndarray) -> np.ndarray:
    """Return what is spent in each batch, in eps."""
    return np.array([wasserstein_distance(x_test[part], attacked[part]) for part in parts]) / EPS


print(f"one call, D_2 over all images: {wasserstein_distance(x_test, whole) / EPS:.3f} eps")
print(f"batch by batch, the most that a batch spends: {moved(pieces).max():.3f} eps")
print(f"one call, the most that a batch spends: {moved(whole).max():.3f} eps")
print(f"accuracy under W-PGD in one call: {np.mean(classifier.predict(whole).argmax(1) == y_test):.3f}")
print(f"accuracy under W-PGD batch by batch: {np.mean(classifier.predict(pieces).argmax(1) == y_test):.3f}")
print(f"accuracy clean: {np.mean(classifier.predict(x_test).argmax(1) == y_test):.3f}")
knapsack = WassersteinKnapsack(classifier, eps=EPS, verbose=False)
accuracy = adversarial_accuracy(classifier, x_test, y_test, knapsack)
print(f"accuracy under the knapsack, all images in one call: {accuracy:.3f}")
