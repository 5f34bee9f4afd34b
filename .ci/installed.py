"""See that an installed wheel works with its core dependencies alone; also what `mypy --strict` checks from outside."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier  # type: ignore[import-untyped]

import art_wdro
from art_wdro import Report, WassersteinPGD, adversarial_accuracy, evaluate, knapsack_accuracy, wasserstein_distance


def attack() -> tuple[float, float]:
    """Attack a tiny network: return its accuracy clean and under W-PGD."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).uniform(0.0, 1.0, (40, 6)).astype(np.float32)
    model = torch.nn.Linear(6, 4)
    y = model(torch.from_numpy(x)).argmax(1).numpy()
    loss = torch.nn.CrossEntropyLoss()
    classifier = PyTorchClassifier(model, loss, (6,), 4, clip_values=(0.0, 1.0), device_type="cpu")
    wasserstein = WassersteinPGD(classifier, p=2, norm=np.inf, eps=0.1, verbose=False)
    distance: float = wasserstein_distance(x, wasserstein.generate(x, y), p=2, norm=np.inf)
    assert 0 < distance <= 0.1 * (1 + 1e-6), distance
    clean: float = adversarial_accuracy(classifier, x, y, eps=0.0)
    attacked: float = adversarial_accuracy(classifier, x, y, wasserstein)
    assert attacked < clean == 1.0, attacked
    report: Report = evaluate(classifier, x, y, eps=0.1, knapsack_iter=20, autoattack=False, verbose=False)
    assert knapsack_accuracy(report.distances, 0.1) <= attacked, report
    return clean, attacked


def command_line() -> str:
    """Ask for the version, and for a command, which without click is told what to install."""
    command = [sys.executable, "-m", "art_wdro"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    assert version == f"art-wdro, version {art_wdro.__version__}", version
    other = subprocess.run([*command, "demo"], capture_output=True, text=True, check=False)
    assert other.returncode != 0
    assert "pip install '.[cli]' in a clone of art-wdro" in other.stderr, other.stderr
    return version


if __name__ == "__main__":
    extras = [name for name in ("click", "matplotlib", "robustbench") if importlib.util.find_spec(name)]
    assert not extras, f"{extras} are installed; this wants core dependencies alone"
    where = Path(art_wdro.__file__).parent
    assert where.parent.name == "site-packages", f"{where} is not what the wheel installed"
    assert (where / "py.typed").is_file()
    clean, attacked = attack()
    print(f"{command_line()}: accuracy {clean:.3f} clean, {attacked:.3f} under W-PGD")
