# SPDX-License-Identifier: MIT
"""The consistency terms of the outer problem."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Consistency = Callable[[Tensor, Tensor], Tensor]


def kl_consistency(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Compute the mean KL(softmax f(x) || softmax f(x')), differentiable in both.

    :param clean: f(x), (N, K).
    :param adversarial: f(x'), (N, K).
    :return: A scalar tensor.

    Source: the code of Zhang et al., TRADES, 2019, arXiv:1901.08573.
    """
    return F.kl_div(adversarial.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)


def ce_consistency(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Compute the mean cross-entropy of softmax f(x') with the soft targets softmax f(x), as printed.

    It is the KL divergence plus the entropy of softmax f(x), so it also sharpens clean predictions.

    :param clean: f(x), (N, K).
    :param adversarial: f(x'), (N, K).
    :return: A scalar tensor.

    Source: arXiv:2502.09352, Algorithm 1.
    """
    return F.cross_entropy(adversarial, clean.softmax(1))


CONSISTENCIES: dict[str, Consistency] = {"kl": kl_consistency, "ce": ce_consistency}
"""The consistency terms a trainer knows by name."""
