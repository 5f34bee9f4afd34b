# SPDX-License-Identifier: MIT
"""What makes the attacks fast changes no answer: parts of the arithmetic, number formats, compiled networks, memory."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from art_wdro import (
    DistributionalTRADESTrainer,
    WassersteinDistributionalAttack,
    WassersteinFGM,
    WassersteinKnapsack,
    WassersteinMarginTrainer,
    WassersteinPGD,
)
from art_wdro._host.precision import CastWeights, with_cast_weights
from art_wdro._solvers.ascent import ascend, step_lengths
from art_wdro._solvers.batches import Samples
from art_wdro._solvers.boundary import boundary
from art_wdro._solvers.objective import Objective
from art_wdro._storage import arrays
from art_wdro._threat.threat import Threat
from art_wdro.losses import attack_objective
from art_wdro.trainers._dual import RunningThresholds, dual_accuracy
from tests.conftest import NORMS, digits, linear_problem, make_classifier, same, trainer, weights

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("numbers", [1, 200, 2**30])
def test_the_arithmetic_may_be_cut_anywhere(digits_classifier, monkeypatch, norm, numbers):
    x, y = (part[:50] for part in digits()[1])
    attack = WassersteinPGD(digits_classifier, norm=norm, eps=0.2, max_iter=6, batch_size=20, verbose=False)
    expected = attack.generate(x, y)
    monkeypatch.setattr(arrays, "CACHED", numbers)
    np.testing.assert_array_equal(attack.generate(x, y), expected)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", [WassersteinPGD, WassersteinFGM])
def test_half_precision_stays_in_the_ball_and_does_nearly_the_same(digits_classifier, kind, precision):
    x, y = (part[:100] for part in digits()[1])
    dtypes = set()
    digits_classifier.model.features.register_forward_hook(
        lambda module, inputs, output: dtypes.add(output.dtype) if output.requires_grad else None
    )
    left = {}
    for name in ("float32", precision):
        dtypes.clear()
        attack = kind(digits_classifier, eps=0.05, verbose=False, precision=name)
        adversarial = attack.generate(x, y)
        assert dtypes == {getattr(torch, name)}
        assert adversarial.dtype == np.float32
        lengths = np.abs(adversarial.astype(float) - x).reshape(len(x), -1).max(1)
        assert np.sqrt(np.mean(lengths**2)) <= 0.05 * (1 + 1e-6)
        left[name] = np.mean(digits_classifier.predict(adversarial).argmax(1) == y)
    assert left["float32"] < 0.9
    assert left[precision] == pytest.approx(left["float32"], abs=0.05)


def test_half_precision_in_training_is_the_attacks_alone(digits_classifier):
    dtypes = []
    digits_classifier.model.features.register_forward_hook(
        lambda module, inputs, output: dtypes.append((module.training, output.dtype))
    )
    fine_tuning = DistributionalTRADESTrainer(digits_classifier, max_iter=2, precision="bfloat16", verbose=False)
    x, y = (part[:64] for part in digits()[0])
    fine_tuning.fit(x, y, batch_size=32, nb_epochs=1)
    assert set(dtypes) == {(False, torch.bfloat16), (True, torch.float32)}


class Doubling(nn.Linear):
    """A layer that does more with its weights than autocast knows of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, 2 * self.weight, self.bias)


@pytest.mark.parametrize("kind", [DistributionalTRADESTrainer, WassersteinMarginTrainer])
def test_weights_are_cast_once_an_attack_in_training(digits_classifier, kind, monkeypatch):
    x, y = (part[:64] for part in digits()[0])
    start, trained, formats = weights(digits_classifier), {}, set()
    model = digits_classifier.model
    model.head.register_forward_hook(lambda module, *_: formats.add((module.training, module.weight.dtype)))
    own = [*model.parameters()]
    for cast in (True, False):
        model.load_state_dict(start)
        torch.manual_seed(0)  # of dropout
        if not cast:
            monkeypatch.setattr("art_wdro._host.classifier.weights_in", lambda *_: nullcontext)
        formats.clear()
        trainer(kind, digits_classifier, precision="bfloat16").fit(x, y, batch_size=32, nb_epochs=1)
        assert formats == {(False, torch.bfloat16 if cast else torch.float32), (True, torch.float32)}
        assert all(now is before for now, before in zip(model.parameters(), own, strict=True))
        trained[cast] = weights(digits_classifier)
    assert same(trained[True], trained[False])


def test_predicted_labels_are_those_of_weights_in_float32(digits_classifier):
    settings = {"attack_label": "predicted", "upsilon": "resample", "precision": "bfloat16"}
    fine_tuning = DistributionalTRADESTrainer(digits_classifier, max_iter=2, verbose=False, **settings)
    x, y = (part[:64] for part in digits()[0])
    fine_tuning.fit(x, y, batch_size=32, nb_epochs=1)
    assert np.isfinite(fine_tuning.history[-1]["loss"])


def test_only_layers_that_autocast_knows_have_weights_in_half_precision():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), Doubling(72, 3), nn.Linear(3, 3))
    with CastWeights(model, torch.bfloat16).placed():
        formats = [module.weight.dtype for module in model if hasattr(module, "weight")]
        assert formats == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    cast = with_cast_weights(model, "bfloat16")
    assert [module.weight.dtype for module in cast if hasattr(module, "weight")] == formats


def test_a_network_may_have_no_weights_to_cast():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    with CastWeights(model, torch.bfloat16).placed():
        assert model(torch.ones(1, 3)).dtype == torch.float32


def test_weights_come_back_when_an_attack_fails():
    model = nn.Linear(2, 2)
    weight = model.weight
    with pytest.raises(RuntimeError, match="stop"), CastWeights(model, torch.bfloat16).placed():
        raise RuntimeError("stop")
    assert model.weight is weight


@pytest.mark.filterwarnings("ignore:x has one sample")
def test_a_compiled_network_is_not_compiled_for_every_batch_size(digits_classifier):
    graphs = CompileCounterWithBackend("eager")
    compiled = make_classifier(torch.compile(digits_classifier.model, backend=graphs), (1, 8, 8), 10)
    x, y = digits()[1]
    for count in (97, 64, 33, 70, 51, 1):
        settings = {"eps": 0.2, "max_iter": 8, "batch_size": 32, "verbose": False}
        adversarial = WassersteinPGD(compiled, **settings).generate(x[:count], y[:count])
        expected = WassersteinPGD(digits_classifier, **settings).generate(x[:count], y[:count])
        np.testing.assert_allclose(adversarial, expected, atol=1e-5)
    # with and without gradient, each for one size and for any size; the smallest size may have one of its own
    assert graphs.frame_count <= 6


ATTACKS = {
    "W-PGD": (WassersteinPGD, {"max_iter": 5}),
    "W-FGSM": (WassersteinFGM, {"lengths": "least"}),
    "knapsack": (WassersteinKnapsack, {"max_iter": 60}),
    "split mass": (WassersteinDistributionalAttack, {"max_iter": 5}),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_compile_gives_the_same(digits_classifier, monkeypatch, name):
    graphs = CompileCounterWithBackend("aot_eager")
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: compiler(model, backend=graphs, dynamic=how["dynamic"]))
    x, y = (part[:90] for part in digits()[1])
    kind, setting = ATTACKS[name]
    attacks = [
        kind(digits_classifier, eps=0.1, batch_size=32, verbose=False, compile=c, **setting) for c in (False, True)
    ]
    expected, found = (attack.generate(x, y) for attack in attacks)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert attacks[0].gradients_ == pytest.approx(attacks[1].gradients_, rel=0.02)
    assert 1 <= graphs.frame_count <= 10  # with and without gradient, for each size
    assert not hasattr(digits_classifier.model, "_orig_mod")


@pytest.mark.parametrize("kind", [DistributionalTRADESTrainer, WassersteinMarginTrainer])
def test_a_trainer_compiles_its_attack_alone(digits_classifier, monkeypatch, kind):
    graphs = CompileCounterWithBackend("aot_eager")
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: compiler(model, backend=graphs, dynamic=how["dynamic"]))
    digits_classifier.model.dropout.p = 0.0
    x, y = (part[:64] for part in digits()[0])
    start, found = weights(digits_classifier), []
    for compiled in (False, True):
        digits_classifier.model.load_state_dict(start)
        assert graphs.frame_count == 0
        kind(digits_classifier, eps=0.1, max_iter=3, seed=0, verbose=False, compile=compiled).fit(
            x, y, batch_size=32, nb_epochs=1
        )
        found.append(weights(digits_classifier))
    assert graphs.frame_count >= 1
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
@pytest.mark.parametrize("compiled_before", [False, True])
def test_torchs_own_compiler_gives_the_same(digits_classifier, compiled_before):
    x, y = (part[:40] for part in digits()[1])
    model = torch.compile(digits_classifier.model) if compiled_before else digits_classifier.model
    classifier = make_classifier(model, (1, 8, 8), 10)
    for kind, setting in ATTACKS.values():
        settings = {"eps": 0.1, "batch_size": 32, "verbose": False, **setting}
        expected = kind(digits_classifier, **settings).generate(x, y)
        found = kind(classifier, compile=not compiled_before, **settings).generate(x, y)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_network_that_torch_cannot_compile_is_said_in_one_sentence(linear, monkeypatch):
    def failing(*_):
        raise RuntimeError("no such operator")

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: compiler(model, backend=failing))
    attack = WassersteinPGD(linear.classifier, max_iter=2, verbose=False, compile=True)
    with pytest.raises(ValueError, match=r"compile is True, and torch cannot compile the network \(.*no such operator"):
        attack.generate(linear.x, linear.y)
    with pytest.raises(ValueError, match=r"compile is .yes."):
        WassersteinPGD(linear.classifier, compile="yes")


def test_channels_last_changes_nothing(digits_classifier):
    x, y = (part[:50] for part in digits()[1])
    attack = WassersteinPGD(digits_classifier, eps=0.1, max_iter=5, verbose=False)
    expected = attack.generate(x, y)
    digits_classifier.model.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(attack.generate(x, y), expected, atol=1e-4)


PEAK = r"""
import re, sys
from pathlib import Path
import numpy as np, torch
from art.estimators.classification import PyTorchClassifier
from art_wdro import WassersteinPGD

def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 3))
classifier = PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), (1024,), 3, clip_values=(0, 1), device_type="cpu")
settings = {"norm": float(sys.argv[1]), "loss": "ce", "max_iter": 3, "batch_size": 64, "verbose": False}
attack = WassersteinPGD(classifier, eps=0.05, **settings)
x = np.random.default_rng(0).random((2**15, 1024), dtype=np.float32)
y = np.zeros(len(x), dtype=int)
attack.generate(x[:256], y[:256])
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = peak()
attack.generate(x, y)
print((peak() - before) / x.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("norm", "copies"), [("inf", 2.25), ("1", 2.25), ("2", 3.0)])
def test_holds_at_most_three_copies(norm, copies):
    done = subprocess.run([sys.executable, "-c", PEAK, norm], capture_output=True, text=True, check=True)
    # the two iterates, the directions in bytes or floats, and what a batch takes
    assert 1.0 < float(done.stdout) < copies + 0.2


@needs_cuda
@pytest.mark.parametrize("norm", NORMS)
def test_no_step_waits_for_the_device(norm):
    problem = linear_problem()
    model = problem.classifier.model.cuda()
    x, y = torch.from_numpy(problem.x).cuda(), torch.from_numpy(problem.y).cuda()
    objective = Objective(model, attack_objective("ce"))
    box = torch.zeros((), device="cuda"), torch.ones((), device="cuda")
    data = Samples(x, y, box, batch_size=16), Threat(2.0, norm, box)
    ascend(objective, *data, budget=0.1, steps=step_lengths(0.1, 2), keep_best=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = ascend(objective, *data, budget=lambda upsilon: upsilon, steps=step_lengths(0.1, 8), keep_best=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (found.x != x).any()


@needs_cuda
@pytest.mark.parametrize("norm", NORMS)
def test_no_search_of_margin_training_waits_for_the_device(norm):
    problem = linear_problem()
    model = problem.classifier.model.cuda().requires_grad_(False)
    x, y = torch.from_numpy(problem.x).cuda(), torch.from_numpy(problem.y).cuda()
    box = torch.zeros((), device="cuda"), torch.ones((), device="cuda")
    thresholds = RunningThresholds(0.1, 2.0, 4, window=2, device="cuda")

    def step():
        found = boundary(model, x, y, norm, reach=1.3 * thresholds.values[-1], max_iter=6, box=box)
        return dual_accuracy(found.distances, thresholds.update(found.distances)[-1], 0.1, 2.0)

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        accuracy = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert accuracy < 1


@needs_cuda
@pytest.mark.parametrize(("norm", "loss"), list(itertools.product(NORMS, ("ce", "redlr"))))
def test_data_on_the_host_give_the_same(norm, loss):
    problem = linear_problem()
    model = problem.classifier.model.cuda()
    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y).cuda()
    objective = Objective(model, attack_objective(loss))
    box = torch.zeros((), device="cuda"), torch.ones((), device="cuda")
    settings = {"budget": 0.1, "steps": step_lengths(0.1, 8), "keep_best": True}
    on_host, on_device = (
        ascend(objective, Samples(where, y, box, batch_size=16), Threat(2.0, norm, box), **settings).x
        for where in (x, x.cuda())
    )
    assert on_host.device.type == "cpu"
    torch.testing.assert_close(on_host, on_device.cpu(), atol=1e-6, rtol=0)


def test_too_large_data_stay_on_the_host(monkeypatch):
    cuda = torch.device("cuda", 0)
    x = torch.zeros(100, 10)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 4 * x.nbytes - 1, 10**12))
    assert arrays.placed(x, cuda) is x
    assert arrays.placed(x, torch.device("cpu")) is x


def test_rows_that_lie_elsewhere_are_read_and_written():
    """The host's rows with a device that is none: reading and writing go through the same calls."""
    values = torch.arange(12.0).reshape(6, 2)
    rows = arrays.Rows(values, torch.device("cpu"))
    rows.resident = False
    rows.take(slice(0, 2), torch.full((2, 2), 7.0), torch.tensor(1.0))
    rows.take(slice(2, 4), torch.full((2, 2), 7.0), torch.tensor(0.0))
    rows[torch.tensor([5])] = torch.tensor([[1.0, 2.0]])
    assert values.tolist() == [[7, 7], [7, 7], [4, 5], [6, 7], [8, 9], [1, 2]]
