# SPDX-License-Identifier: MIT
"""The two ways in which a fine-tuning starts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from art_wdro import perturb_weights, reinitialise_last_layer
from tests.conftest import make_classifier


def test_perturb_weights_moves_weights_by_their_own_scale(digits_classifier):
    model = digits_classifier.model
    before = copy.deepcopy(model.state_dict())
    perturb_weights(digits_classifier, noise=0.01, seed=0)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"features.0.weight", "features.3.weight", "head.weight"}
    for name in ("features.3.weight", "head.weight"):
        noise = model.state_dict()[name] - before[name]
        assert (noise.std() / before[name].std()).item() == pytest.approx(0.01, rel=0.05)


def test_seeds_fix_the_draw(digits_classifier):
    start = copy.deepcopy(digits_classifier.model.state_dict())
    state = torch.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        digits_classifier.model.load_state_dict(start)
        perturb_weights(digits_classifier, seed=seed)
        first = digits_classifier.model.head.weight.detach().clone()
        reinitialise_last_layer(digits_classifier, seed=seed)
        draws.append((first, digits_classifier.model.head.weight.detach().clone()))
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(draws[0], draws[2], strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_seed_numpys_state_decides(digits_classifier):
    draws = []
    for _ in range(2):
        np.random.seed(5)
        reinitialise_last_layer(digits_classifier)
        draws.append(digits_classifier.model.head.weight.detach().clone())
    assert torch.equal(*draws)


def test_no_noise_changes_nothing(digits_classifier):
    before = copy.deepcopy(digits_classifier.model.state_dict())
    perturb_weights(digits_classifier, noise=0.0)
    assert all(torch.equal(v, before[k]) for k, v in digits_classifier.model.state_dict().items())


def test_parametrised_weights_are_perturbed_too():
    classifier = make_classifier(weight_norm(nn.Linear(4, 3)), (4,), 3)
    before = classifier.model.weight.detach().clone()
    perturb_weights(classifier, noise=0.1, seed=0)
    assert not torch.equal(classifier.model.weight, before)


def test_reinitialise_last_layer_freezes_the_rest(digits_classifier):
    model = digits_classifier.model
    model.train()
    before = copy.deepcopy(model.state_dict())
    assert reinitialise_last_layer(digits_classifier, seed=0) is model.head
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"}
    assert {name for name, w in model.named_parameters() if w.requires_grad} == {"head.weight", "head.bias"}
    assert all(m.training for m in model.modules())


def test_the_last_layer_is_the_last_to_run_not_the_last_registered():
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits, self.body, self.unused = nn.Linear(6, 3), nn.Linear(4, 6), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.logits(self.body(x).relu()).log_softmax(1)

    classifier = make_classifier(Shuffled(), (4,), 3)
    assert reinitialise_last_layer(classifier) is classifier.model.logits


def test_a_convolution_can_make_the_logits():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert reinitialise_last_layer(make_classifier(model, (1, 8, 8), 3)) is model[2]


def test_the_optimiser_forgets_the_layer(digits_classifier):
    optimiser = torch.optim.SGD(digits_classifier.model.parameters(), lr=0.1, momentum=0.9)
    digits_classifier.set_params(optimizer=optimiser)
    digits_classifier.fit(np.zeros((4, 1, 8, 8), np.float32), np.arange(4), nb_epochs=1)
    assert optimiser.state
    layer = reinitialise_last_layer(digits_classifier)
    assert layer.weight not in optimiser.state
    assert digits_classifier.model.features[0].weight in optimiser.state
