# SPDX-License-Identifier: MIT
"""Upsilon along training, and the batch budgets that follow from it.

Source: Bai, He, Jiang, Obloj, Wasserstein distributional adversarial training for deep neural
networks, 2025, arXiv:2502.09352, section 5.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from art_wdro._threat.norms import dual_exponent, power_mean


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
        self._recent: deque[Tensor] = deque(maxlen=window)  # Upsilon_B of a batch, and its samples

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
        self._recent.append(torch.stack([batch, torch.full_like(batch, count)]))
        values, counts = torch.stack([*self._recent], 1)
        return self.update(power_mean(values, self._q, counts))

    def state(self) -> dict[str, Any]:
        """Return all that it remembers, as tensors."""
        return {"value": self.value, "recent": [*self._recent]}

    def set_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from what :meth:`state` returned."""
        self.value = None if state["value"] is None else state["value"].to(device)
        self._recent.clear()
        self._recent.extend(batch.to(device) for batch in state["recent"])
