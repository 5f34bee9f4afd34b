# SPDX-License-Identifier: MIT
"""The search for least distances as an attack of AttackBench, under its budget of passes.

    pip install attackbenchlib
    python examples/run_attackbench.py

`search` is the whole adapter. What follows runs it on scikit-learn's digits.

Source of the protocol: Cina et al., AttackBench, AAAI 2025, arXiv:2404.19460.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from art_wdro.functional import least_distances

NORMS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}


def search(
    model: nn.Module, inputs: Tensor, labels: Tensor, threat_model: str = "linf", max_iter: int = 1000
) -> Tensor:
    """Return the nearest points of other classes that the search finds.

    :param model: The network, which maps inputs to logits.
    :param inputs: Images in [0, 1], (N, C, H, W).
    :param labels: Their classes, (N,).
    :param threat_model: "linf", "l2" or "l1".
    :param max_iter: Gradients a sample, of two of the benchmark's passes each.
    """
    return least_distances(model, inputs, labels, r=NORMS[threat_model], max_iter=max_iter).points


def main() -> None:
    """Train a small network on the digits, and run the search through the benchmark's harness."""
    from attackbench.run import run_attack
    from sklearn.datasets import load_digits
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    data = load_digits()
    x, y = torch.from_numpy(data.images[:, None] / 16).float(), torch.from_numpy(data.target)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(100):
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(x[200:]), y[200:]))
        optimiser.step()
    model.eval()
    loader = DataLoader(TensorDataset(x[:20], y[:20]), batch_size=20)
    for norm in NORMS:
        found = run_attack(model, loader, search, norm, "cpu")
        print(f"{norm}: median distance {torch.tensor(found['distances'][norm]).median():.4f}")


if __name__ == "__main__":
    main()
