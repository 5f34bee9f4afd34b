# SPDX-License-Identifier: MIT
"""The two ways in which a fine-tuning starts: all weights perturbed, or the last layer made anew.

Source: Bai, He, Jiang, Obloj, 2025, arXiv:2502.09352, sections 5 and 6.
"""

from __future__ import annotations

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from art_wdro._host import arguments
from art_wdro._host import classifier as host


def perturb_weights(classifier: PyTorchClassifier, noise: float = 0.01, seed: int | None = None) -> None:
    """Add Gaussian noise to the weights of every convolution and linear layer, in place.

    The standard deviation is `noise` times that of the weight tensor; norms and biases stay.

    :param classifier: A `PyTorchClassifier`.
    :param noise: Relative size of the noise, >= 0.
    :param seed: Seed of the noise, which does not depend on the device; None draws one from NumPy.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If `noise` is negative, or the network has no such layer.
    """
    host.require_pytorch(perturb_weights, classifier)
    noise = arguments.real("noise", noise, 0.0)
    generator = torch.Generator().manual_seed(arguments.seed(seed))
    layers = [m for m in host.network(classifier).modules() if isinstance(m, (nn.Linear, _ConvNd))]
    if not layers:
        raise ValueError("classifier has no convolution or linear layer; needed is one to perturb")
    with torch.no_grad():
        for layer in layers:
            weight = layer.weight
            draw = torch.randn(weight.shape, generator=generator).to(weight)
            # a weight under a parametrization is computed; assigning goes through its inverse
            if "weight" in layer._parameters:
                weight.add_(draw * (noise * weight.std(correction=0)))
            else:
                layer.weight = weight + draw * (noise * weight.std(correction=0))


def reinitialise_last_layer(classifier: PyTorchClassifier, seed: int | None = None) -> nn.Module:
    """Draw the layer that makes the logits anew and freeze all the rest, in place.

    The layer is the last linear layer or convolution that runs in a forward pass; its own
    `reset_parameters` draws the weights. The optimiser forgets its state of that layer.

    :param classifier: A `PyTorchClassifier`.
    :param seed: Seed of the draw; None draws one from NumPy.
    :return: The layer.
    :raises EstimatorError: If `classifier` is no `PyTorchClassifier`.
    :raises ValueError: If no such layer makes the logits.
    """
    host.require_pytorch(reinitialise_last_layer, classifier)
    seed = arguments.seed(seed)
    layer = _last_layer(classifier)
    with torch.random.fork_rng(devices=[classifier.device] if classifier.device.type == "cuda" else []):
        torch.manual_seed(seed)
        layer.reset_parameters()
    for parameter in host.network(classifier).parameters():
        parameter.requires_grad_(False)
    for parameter in layer.parameters():
        parameter.requires_grad_(True)
        if classifier.optimizer is not None:
            classifier.optimizer.state.pop(parameter, None)
    return layer


def _last_layer(classifier: PyTorchClassifier) -> nn.Linear | _ConvNd:
    ran: list[tuple[nn.Linear | _ConvNd, int]] = []

    def record(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, (nn.Linear, _ConvNd))
        ran.append((layer, layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels))

    layers = [m for m in host.network(classifier).modules() if isinstance(m, (nn.Linear, _ConvNd))]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        with host.undisturbed(classifier, 1), torch.no_grad():
            host.logits_of(classifier)(host.example(classifier))
    finally:
        for hook in hooks:
            hook.remove()
    if not ran or ran[-1][1] != classifier.nb_classes:
        found = f"the last one to run is {ran[-1][0]}" if ran else "none ran"
        raise ValueError(
            f"classifier has no linear layer or convolution that makes the logits: {found}; needed is one "
            f"with nb_classes={classifier.nb_classes} outputs"
        )
    return ran[-1][0]
