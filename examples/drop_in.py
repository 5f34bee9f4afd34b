# SPDX-License-Identifier: MIT
"""An ART script with two lines changed: adversarial training by TRADES becomes distributional.

The two lines are marked. `python examples/drop_in.py --original` runs the script as it was. Both end with the accuracy
under attacks, pointwise and with a shared budget.
"""

import sys

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import nn

from art_wdro import WassersteinKnapsack, WassersteinPGD, adversarial_accuracy

if "--original" in sys.argv:
    from art.defences.trainer import AdversarialTrainerTRADESPyTorch
else:
    from art_wdro import DistributionalTRADESTrainer  # changed: the import


class Network(nn.Module):
    """A small convolutional network for 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2))
        self.head = nn.Linear(288, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.convolutions(x).relu().flatten(1))
        return logits


torch.manual_seed(0)
np.random.seed(0)
digits = load_digits()
x, y = (digits.images[:, None] / 16).astype(np.float32), digits.target
x_train, y_train, x_test, y_test = x[:1297], y[:1297], x[1297:], y[1297:]

model = Network()
classifier = PyTorchClassifier(
    model,
    loss=nn.CrossEntropyLoss(),
    input_shape=(1, 8, 8),
    nb_classes=10,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
    clip_values=(0, 1),
)
attack = ProjectedGradientDescent(classifier, eps=0.1, eps_step=0.02, max_iter=10, verbose=False)

if "--original" in sys.argv:
    trainer = AdversarialTrainerTRADESPyTorch(classifier, attack, beta=6.0)
else:
    trainer = DistributionalTRADESTrainer(classifier, beta=6.0, eps=0.1)  # changed: the constructor
trainer.fit(x_train, y_train, batch_size=64, nb_epochs=10)

attacks = {
    "pointwise PGD": attack,
    "W-PGD, a budget shared over all images (W_2)": WassersteinPGD(classifier, eps=0.1, verbose=False),
    "the knapsack, the same budget (W_2)": WassersteinKnapsack(classifier, eps=0.1, verbose=False),
}
print(f"accuracy clean: {np.mean(trainer.predict(x_test).argmax(1) == y_test):.3f}")
for name, against in attacks.items():
    print(f"accuracy under {name}: {adversarial_accuracy(classifier, x_test, y_test, against):.3f}")
