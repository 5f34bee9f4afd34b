# SPDX-License-Identifier: MIT
"""The pytest plugin behind run.py: the substituted classes, stand-in fixtures and modules, and the skips."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import art.config
import numpy as np
import pytest
import torch
from art.attacks.evasion.projected_gradient_descent import projected_gradient_descent_numpy as reference
from art.data_generators import PyTorchDataGenerator
from art.estimators.classification.classifier import ClassifierMixin
from art.utils import load_mnist

from art_wdro import DistributionalTRADESTrainer, WassersteinPGD
from art_wdro._host import arguments

SKIPS = {
    "test_2_tensorflow_iris": "TensorFlow classifier",
    "test_3_tensorflow_mnist": "TensorFlow classifier",
    "test_4_framework_tensorflow_v2_mnist": "TensorFlow classifier",
    "test_8_keras_iris_clipped": "Keras classifier",
    "test_9a_keras_mnist": "Keras classifier",
    "test_keras_9_iris_unbounded": "Keras classifier",
    "test_check_params": "Keras classifier; test_check_params_pt asks much the same of a PyTorch one",
    "test_7_scikitlearn": "scikit-learn classifiers, which W-PGD refuses with ART's EstimatorError",
}


class PointwisePGD(WassersteinPGD):
    """W-PGD with p = inf and the cross-entropy, called as ART's PGD is and with its defaults."""

    def __init__(
        self, estimator: Any, eps: Any = 0.3, eps_step: Any = 0.1, num_random_init: int = 0, **kwargs: Any
    ) -> None:
        # W-PGD has no random starts and no random eps; a wrong num_random_init is refused here, not by W-PGD
        arguments.integer("num_random_init", num_random_init, 0)
        kwargs.pop("random_eps", None)
        lengths = as_numbers({"eps": eps, "eps_step": eps_step})
        super().__init__(estimator, p=np.inf, loss="ce", **lengths, **{"max_iter": 100, "batch_size": 32, **kwargs})

    def set_params(self, **kwargs: Any) -> None:
        super().set_params(**as_numbers(kwargs))


def as_numbers(parameters: dict[str, Any]) -> dict[str, Any]:
    """Replace eps and eps_step by numbers if both are arrays of one repeated value; W-PGD takes no arrays."""
    names = ("eps", "eps_step")
    if not all(isinstance(parameters.get(name), np.ndarray) and np.ptp(parameters[name]) == 0 for name in names):
        return parameters
    return {**parameters, **{name: float(parameters[name].flat[0]) for name in names}}


def numpy_pgd(estimator: Any, **kwargs: Any) -> reference.ProjectedGradientDescentNumpy:
    """ART's PGD in NumPy, the reference of test_6, without the randomness that W-PGD does not have."""
    return reference.ProjectedGradientDescentNumpy(estimator, **{**kwargs, "num_random_init": 0, "random_eps": False})


def without_box(attack: Callable[..., Any], estimator: Any, **kwargs: Any) -> Any:
    """Make an attack of test_6, in l_1 without clip_values.

    ART's l_1 step takes the steepest coordinate even where the box stops it, W-PGD's the steepest that can move.
    """
    if kwargs["norm"] == 1:
        estimator = copy.copy(estimator)
        estimator.set_params(clip_values=None)
    return attack(estimator, **kwargs)


def built_in(classifier: Any, attack: Any, beta: float) -> DistributionalTRADESTrainer:
    """Create the trainer with its own attack, as strong as the one given."""
    threat = {"eps": attack.eps, "eps_step": attack.eps_step, "max_iter": attack.max_iter}
    return DistributionalTRADESTrainer(classifier, beta=beta, **threat)


TRAINER, ATTACK = "AdversarialTrainerTRADESPyTorch", "ProjectedGradientDescent"
TRADES: dict[str, dict[str, Any]] = {
    "PGD": {TRAINER: DistributionalTRADESTrainer},
    "W-PGD": {TRAINER: DistributionalTRADESTrainer, ATTACK: PointwisePGD},
    "built-in": {TRAINER: built_in},
}


class Plugin:
    """The substitution, and the fixtures these tests use of ART's own conftest, which the sdist lacks."""

    def __init__(self, folder: Path, control: bool) -> None:
        self._control = control
        art.config.set_data_path(str(folder / "data"))
        absent = [name for name in ("tensorflow", "keras") if importlib.util.find_spec(name) is None]
        for name in absent + ["keras.backend"] * ("keras" in absent):
            sys.modules[name] = ModuleType(name)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if item.name in SKIPS:
                item.add_marker(pytest.mark.skip(reason=SKIPS[item.name]))

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "framework" in metafunc.fixturenames:
            metafunc.parametrize("framework", ["ART"] if self._control else list(TRADES), indirect=True)

    @pytest.fixture
    def framework(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        for name, substitute in TRADES.get(request.param, {}).items():
            monkeypatch.setattr(request.module, name, substitute)
        return "pytorch"

    @pytest.fixture(autouse=True)
    def attacks(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(1234)
        module, test = request.module, request.function.__name__
        if self._control or not hasattr(module, "TestPGD"):
            return
        monkeypatch.setattr(module, ATTACK, PointwisePGD)
        if test == "test_6_framework_pytorch_mnist":
            monkeypatch.setattr(module, ATTACK, lambda *a, **k: without_box(PointwisePGD, *a, **k))
            monkeypatch.setattr(module, f"{ATTACK}Numpy", lambda *a, **k: without_box(numpy_pgd, *a, **k))
        # ART's front end asks for two base classes; ART's PGD for PyTorch and W-PGD ask for a classifier, too
        name = "backend_test_classifier_type_check_fail"
        check = getattr(module, name)
        monkeypatch.setattr(module, name, lambda attack, expected: check(attack, [*expected, ClassifierMixin]))

    @pytest.fixture
    def image_dl_estimator(self, framework: str) -> Callable[..., tuple[Any, None]]:
        from tests.utils import get_image_classifier_pt

        return lambda **kwargs: (get_image_classifier_pt(**kwargs), None)

    @pytest.fixture
    def get_mnist_dataset(self) -> Iterator[Any]:
        data = [(np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32), y) for x, y in load_mnist()[:2]]
        before = copy.deepcopy(data)
        yield data
        np.testing.assert_equal(data, before)

    @pytest.fixture
    def image_data_generator(self, get_mnist_dataset: Any) -> Callable[[], PyTorchDataGenerator]:
        dataset = torch.utils.data.TensorDataset(*(torch.from_numpy(array[:1000]) for array in get_mnist_dataset[0]))
        loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)
        return lambda: PyTorchDataGenerator(loader, size=1000, batch_size=16)
