# SPDX-License-Identifier: MIT
"""The parts of Algorithm 1 that are mathematics: Upsilon along training, batch budgets, the update's loss.

Source: Bai, He, Jiang, Obloj, Wasserstein distributional adversarial training for deep neural
networks, 2025, arXiv:2502.09352, section 5.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from art_wdro._norms import dual_exponent, power_mean

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


def batch_budget(eps: float, batch: Tensor, whole: Tensor, p: float) -> Tensor:
    """Compute eps_B = eps (Upsilon_B / Upsilon)^(q/p), a batch's share of the data set's budget.

    With Upsilon the q-mean of the Upsilon_B, the p-mean of the eps_B is eps. p = inf gives eps.

    :param eps: Budget of the data set, in input units.
    :param batch: Upsilon_B, a scalar tensor.
    :param whole: Upsilon, a scalar tensor.
    :param p: Order of the Wasserstein distance, in (1, inf].
    :return: eps_B, a scalar tensor; 0 where Upsilon or Upsilon_B is 0.

    Source: arXiv:2502.09352, equation (5.5), which is p = 2.
    """
    ratio = batch / torch.where(whole > 0, whole, 1.0)
    share = ratio.pow(dual_exponent(p) / p)
    return torch.where((batch > 0) & (whole > 0), eps * share, 0.0)


class RunningUpsilon:
    """Upsilon along training: Upsilon <- Upsilon + eta (estimate - Upsilon), started at the first estimate above 0.

    Source: arXiv:2502.09352, equation (5.4).
    """

    def __init__(self, eta: float, p: float, window: int) -> None:
        """Start without a value.

        :param eta: Update rate, in (0, 1].
        :param p: Order of the Wasserstein distance.
        :param window: Number of recent batches that the streaming estimate remembers.
        """
        self.value: Tensor | None = None
        self._eta = eta
        self._q = dual_exponent(p)
        self._recent: deque[tuple[Tensor, int]] = deque(maxlen=window)

    def update(self, estimate: Tensor) -> Tensor:
        """Move towards an estimate and return the new value."""
        if self.value is None:
            self.value = estimate
        moved = self.value + self._eta * (estimate - self.value)
        self.value = torch.where(self.value > 0, moved, estimate)
        return self.value

    def stream(self, batch: Tensor, count: int) -> Tensor:
        """Update with the q-mean of Upsilon_B over the recent batches, this one included.

        :param batch: Upsilon_B, a scalar tensor.
        :param count: Samples in the batch.
        """
        self._recent.append((batch, count))
        values, counts = zip(*self._recent, strict=True)
        return self.update(power_mean(torch.stack(values), self._q, batch.new_tensor(counts)))

    def state(self) -> dict[str, Any]:
        """Return all that it remembers, as tensors and plain values."""
        return {"value": self.value, "recent": [[value, count] for value, count in self._recent]}

    def set_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from what :meth:`state` returned."""
        self.value = None if state["value"] is None else state["value"].to(device)
        self._recent.clear()
        self._recent.extend((value.to(device), count) for value, count in state["recent"])


def set_training_mode(model: nn.Module) -> None:
    """Put a network in train mode, but leave frozen parts in eval mode.

    Frozen is a module whose parameters all have `requires_grad` False. If a single layer is trained and others are
    frozen, all the rest is, dropout and parameterless norms included.
    """
    trained = [m for m in model.modules() if any(w.requires_grad for w in m.parameters(recurse=False))]
    frozen = any(not w.requires_grad for w in model.parameters())
    model.train(len(trained) > 1 or not frozen)
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(w.requires_grad for w in parameters):
            module.eval()
    for module in trained:
        module.training = True
