# SPDX-License-Identifier: MIT
"""Minimum-norm attacks of other libraries, those that are installed, and how any of them is scored."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Collection
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from art.attacks.evasion import CarliniL2Method, CarliniLInfMethod, DeepFool, ElasticNet
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_wdro import WassersteinKnapsack
from art_wdro._sources.data import Split
from benchmarks._counting import Counter
from benchmarks._timing import timed
from benchmarks.networks._architectures import classifier_of
from benchmarks.networks._data import load
from benchmarks.networks.robust import robust_network

LIBRARIES = {"foolbox": "foolbox==3.3.4", "adv_lib": "--no-deps adv-lib==0.2.8"}
"""What pip installs, by the name to import."""
MOST = {1.0: 50.0, 2.0: 5.0, np.inf: 0.5}
"""Where the bisection of Auto-PGD starts."""
NORMS = (np.inf, 2.0, 1.0)

Searches = dict[str, Callable[[], Any]]
"""Attacks by name; each returns its points, (N, ...)."""


class Images(NamedTuple):
    """What all methods attack.

    :param classifier: The network, frozen and in eval mode.
    :param counter: Counts its gradients.
    :param x: Correctly classified images, (N, C, H, W).
    :param y: Their labels, (N,).
    """

    classifier: PyTorchClassifier
    counter: Counter
    x: Tensor
    y: Tensor


def correct_images(name: str, directory: Any, samples: int) -> Images:
    """Return those of some test images that the robust network of a data set classifies correctly."""
    return correct_of(robust_network(name, directory).model, load(name, directory, train=False), samples, "cpu")


def correct_of(model: nn.Module, data: Split, samples: int, device_type: str) -> Images:
    """Return those of the first images that a network classifies correctly.

    :param model: The network, which is moved to the device, frozen and put in eval mode.
    :param data: The images.
    :param samples: How many are looked at.
    :param device_type: "cpu", or "gpu" for a GPU where there is one.
    :raises SystemExit: If there is none.
    """
    model = model.cpu().eval().requires_grad_(False)
    classifier = classifier_of(model, data.x.shape[1:], device_type=device_type)
    x, y = (torch.from_numpy(part[:samples]).to(classifier.device) for part in data)
    correct = model(x).argmax(1) == y
    if not correct.any():
        raise SystemExit(f"the network classifies none of {len(x)} images correctly; needed is at least one")
    return Images(classifier, Counter(model), x[correct], y[correct])


def installed(quick: bool, wanted: Collection[str] = tuple(LIBRARIES)) -> set[str]:
    """Return the libraries that are there.

    :param quick: Whether one that is not is left out, with a line that says so.
    :param wanted: Those that are asked for.
    :raises SystemExit: If one is not there and may not be left out.
    """
    missing = [name for name in wanted if find_spec(name) is None]
    for name in missing:
        text = f"{name} is not installed (pip install {LIBRARIES[name]})"
        if not quick:
            raise SystemExit(text)
        print(f"{text}; its searches are left out")
    return {*wanted} - {*missing}


def knapsack(images: Images, r: float, max_iter: int) -> np.ndarray:
    """Return the nearest points that our search finds."""
    x, y = images.x.numpy(), images.y.numpy()
    attack = WassersteinKnapsack(images.classifier, norm=r, max_iter=max_iter, batch_size=len(x), verbose=False)
    attack.generate(x, y)
    return attack.nearest_


def library_searches(images: Images, r: float, libraries: set[str]) -> Searches:
    """Return the searches of foolbox and adversarial-library under a ground norm."""
    model, x, y = images.classifier.model, images.x, images.y
    found: Searches = {}
    if "foolbox" in libraries:
        import foolbox

        names = {1.0: "L1FMNAttack", 2.0: "L2FMNAttack", np.inf: "LInfFMNAttack"}
        fmn_of_foolbox = getattr(foolbox.attacks, names[r])(steps=100)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        found["foolbox FMN, 100"] = lambda: fmn_of_foolbox(wrapped, x, y, epsilons=None)[0]
    if "adv_lib" in libraries:
        # it imports visdom to draw, which we do not
        sys.modules.setdefault("visdom", types.ModuleType("visdom"))
        from adv_lib.attacks import ddn, fmn
        from adv_lib.attacks.auto_pgd import minimal_apgd
        from adv_lib.attacks.fast_adaptive_boundary import fab

        found["adv-lib FMN, 100"] = lambda: fmn(model, x, y, norm=r, steps=100)
        found["adv-lib FMN, 300"] = lambda: fmn(model, x, y, norm=r, steps=300)
        found["adv-lib FAB, 11"] = lambda: fab(model, x, y, norm=r, n_iter=11)
        found["adv-lib FAB, 100"] = lambda: fab(model, x, y, norm=r, n_iter=100)
        bisection = {"norm": r, "max_eps": MOST[r]}
        found["Auto-PGD bisected, 5 x 20"] = lambda: minimal_apgd(
            model, x, y, binary_search_steps=5, n_iter=20, **bisection
        )
        found["Auto-PGD bisected, 10 x 30"] = lambda: minimal_apgd(
            model, x, y, binary_search_steps=10, n_iter=30, **bisection
        )
        if r == 2.0:
            found["adv-lib DDN, 100"] = lambda: ddn(model, x, y, steps=100)
    return found


def art_searches(images: Images, r: float, **steps: int) -> Searches:
    """Return the searches of ART under a ground norm.

    :param images: What is attacked.
    :param r: The ground norm.
    :param steps: `max_iter`, unless ART's own default is to be taken.
    """
    x, y = images.x.numpy(), images.y.numpy()
    kinds: dict[float, dict[str, tuple[type, dict[str, int]]]] = {
        np.inf: {"ART Carlini L_inf": (CarliniLInfMethod, {})},
        2.0: {"ART Carlini L_2": (CarliniL2Method, {}), "ART DeepFool": (DeepFool, {"nb_grads": 10})},
        1.0: {"ART ElasticNet": (ElasticNet, {})},
    }
    shared: dict[str, Any] = {"batch_size": len(x), "verbose": False, **steps}

    def search(kind: Any, own: dict[str, int]) -> np.ndarray:
        points: np.ndarray = kind(images.classifier, **shared, **own).generate(x, y)
        return points

    return {name: partial(search, *found) for name, found in kinds[r].items()}


def scored(images: Images, run: Callable[[], Any], r: float) -> dict[str, float]:
    """Run a method once and score the points it returns.

    :param images: What it attacks.
    :param run: The method.
    :param r: The ground norm.
    :return: Median distance, mean over the points that are misclassified, their share, gradients a sample, seconds.
    """
    found = scored_distances(images, run, r)
    lengths = np.asarray(found.pop("distances"))
    reached = np.isfinite(lengths)
    middle = float(np.sort(lengths)[(len(lengths) - 1) // 2])
    return {"median": middle, "mean": float(lengths[reached].mean()), "found": float(reached.mean()), **found}


def scored_distances(images: Images, run: Callable[[], Any], r: float) -> dict[str, Any]:
    """Run a method once and measure the points it returns.

    :param images: What it attacks.
    :param run: The method.
    :param r: The ground norm.
    :return: Distances, inf where a point is not misclassified; gradients a sample, seconds.
    """
    torch.manual_seed(0)
    np.random.seed(0)
    images.counter.gradients = 0
    points, seconds = timed(lambda: torch.as_tensor(run()).detach().to(images.x))
    gradients = images.counter.gradients / len(images.x)
    flipped = images.classifier.model(points).argmax(1) != images.y
    lengths = torch.linalg.vector_norm((points - images.x).flatten(1).double(), ord=r, dim=1)
    lengths[~flipped] = torch.inf
    return {"distances": lengths.tolist(), "gradients": gradients, "seconds": seconds}
