# SPDX-License-Identifier: MIT
"""What makes attacks and figures of a classifier doubtful, seen on a few samples, and said before any other work.

Source: the checks of AutoAttack, Croce, Hein, 2020, arXiv:2003.01690; one company against another, and predictions
against logits, are ours.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import classifier as host
from art_wdro._storage.arrays import few_sizes
from art_wdro.losses import are_probabilities, predicted

FEW = 16
"""Samples that are looked at."""
SAME, SAME_OF_LARGEST = 1e-4, 1e-5
"""Difference of two passes' logits, relative to each and to the largest, up to which the network is not random."""
COMPANY = 1e-3
"""Difference of logits in one company and another, relative to the largest, that is no dependence on a batch."""
SCORED = 1000
"""Samples on which the classifier's own predictions are compared with its network's logits."""
DISAGREE = 0.005
"""Share of them that may differ: near-ties, in batches of another size."""

PROBABILITIES = "the classifier puts out probabilities; attacks need logits, and leave too much accuracy without"
RANDOM = "two forward passes differ: the classifier is random, and gradients of one pass say little about it"
COUPLED = (
    "a sample's logits depend on the batch it is in, as with batch norm that has no running statistics; attacks and "
    "figures of such a network mean nothing for another batch size"
)


def doubts(classifier: PyTorchClassifier, x: Tensor, batch_size: int) -> list[str]:
    """Look at a few samples: return what makes attacks on the classifier doubtful, one sentence each.

    :param classifier: The classifier.
    :param x: Checked inputs, (N, ...).
    :param batch_size: Samples in one pass.
    :raises ValueError: If its network cannot be run on them.
    """
    # of a size that attacks show the network too
    sizes = few_sizes(len(x), batch_size)
    few = x[: min(size for size in sizes if size >= min(FEW, sizes[0]))].to(classifier.device)
    if len(few) == 0:
        return []
    found = []
    with host.eager(classifier), host.undisturbed(classifier, batch_size), torch.no_grad():
        function = host.logits_of(classifier)
        first, second = (_run(classifier, few) for _ in range(2))
        if are_probabilities(first):
            found.append(PROBABILITIES)
        close = SAME * first.abs() + SAME_OF_LARGEST * first.abs().max()
        if not torch.isfinite(first).all():
            return found
        if ((first - second).abs() > close).any():
            return [*found, RANDOM]
        if len(few) > 1 and _coupled(function, few, first):
            found.append(COUPLED)
    return found


def warn_of_doubts(classifier: PyTorchClassifier, x: Tensor, batch_size: int, stacklevel: int = 3) -> None:
    """Issue a `UserWarning` for each of :func:`doubts`."""
    for text in doubts(classifier, x, batch_size):
        warnings.warn(text, UserWarning, stacklevel=stacklevel)


def doubts_of_scores(classifier: PyTorchClassifier, x: Tensor, labels: Tensor, batch_size: int) -> list[str]:
    """Return what makes accuracies of the classifier doubtful: :func:`doubts`, and other predictions than its logits'.

    A random classifier's predictions differ from one another anyway.
    """
    found = doubts(classifier, x, batch_size)
    differs = None if RANDOM in found else disagreement(classifier, x, labels, batch_size)
    return found if differs is None else [*found, differs]


def disagreement(classifier: PyTorchClassifier, x: Tensor, labels: Tensor, batch_size: int) -> str | None:
    """Compare the classifier's own `predict` with its network's logits on clean data: return a sentence if they differ.

    :param classifier: The classifier.
    :param x: Checked inputs, (N, ...).
    :param labels: Class indices, (N,).
    :param batch_size: Samples in one pass.
    """
    x, right = x[:SCORED], labels[:SCORED].cpu().numpy()
    if len(x) == 0:
        return None
    with host.eager(classifier), host.undisturbed(classifier, batch_size), torch.no_grad():
        function = host.logits_of(classifier)
        parts = [predicted(function(part)) for _, part in host.batches_of(classifier, batch_size, x)]
        by_logits = torch.cat(parts).cpu().numpy()
        try:
            own = np.asarray(classifier.predict(x.cpu().numpy().copy(), batch_size=batch_size)).argmax(1)
        except Exception:  # some networks whose logits can be had are beyond ART's own method
            return None
    if np.mean((own != by_logits) & (by_logits >= 0)) <= DISAGREE:
        return None
    return (
        f"the classifier predicts {100 * np.mean(own == right):.1f} % right, and its network's logits "
        f"{100 * np.mean(by_logits == right):.1f} % of the same samples; figures here are those of the logits, "
        "without postprocessing defences or whatever else decides"
    )


def _run(classifier: PyTorchClassifier, x: Tensor) -> Tensor:
    """Return logits, (n, K), in float64, or say why there are none."""
    try:
        return host.logits_of(classifier)(x).double()
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, TypeError, AttributeError, IndexError) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"classifier's network does not take {len(x)} samples of shape {tuple(x.shape[1:])}: "
            f"{type(error).__name__}: {text}"
        ) from error


def _coupled(function: host.LogitsOf, few: Tensor, among_others: Tensor) -> bool:
    """Tell whether a sample has other logits in other company: here copies of itself, in a batch of the same size."""
    among_its_like = function(few[:1].expand_as(few).contiguous())[0].double()
    return bool(((among_its_like - among_others[0]).abs() > COMPANY * among_others.abs().max()).any())
