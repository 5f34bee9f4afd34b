# SPDX-License-Identifier: MIT
"""Losses: the formulas against slow references, label forms, and their three uses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.attacks.evasion import AutoProjectedGradientDescent, ProjectedGradientDescent
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from art_wdro import DLRLoss, ReDLRLoss, WassersteinPGD, adversarial_accuracy
from art_wdro.losses import are_probabilities, attack_objective, dlr, redlr
from tests.conftest import linear_problem

LOGITS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(3, 7)), elements=st.floats(-50, 50), unique=True
)


def slow_dlr(z: np.ndarray, y: int) -> float:
    top = sorted(z, reverse=True)
    return -(z[y] - max(np.delete(z, y))) / max(top[0] - top[2], 1e-6)


@given(LOGITS, st.integers(0, 2))
def test_losses_are_the_formulas(logits, label):
    labels = torch.full((len(logits),), label)
    expected = np.array([slow_dlr(z, label) for z in logits])
    tensor = torch.from_numpy(logits)
    np.testing.assert_allclose(DLRLoss(reduction="none")(tensor, labels), expected, rtol=1e-6)
    np.testing.assert_allclose(ReDLRLoss(reduction="none")(tensor, labels), np.minimum(expected, 0), rtol=1e-6)


def slow_towards_target(z: np.ndarray, y: int) -> float:
    top = sorted(z, reverse=True)
    spread = top[0] - (top[2] + top[3]) / 2 if len(z) > 3 else 1.0
    return (z[y] - max(np.delete(z, y))) / max(spread, 1e-6)


@given(LOGITS, st.integers(0, 2))
def test_losses_towards_a_target_are_the_formulas(logits, label):
    labels, tensor = torch.full((len(logits),), label), torch.from_numpy(logits)
    expected = np.array([slow_towards_target(z, label) for z in logits])
    for loss, values in (("dlr", expected), ("redlr", np.minimum(expected, 0))):
        np.testing.assert_allclose(attack_objective(loss, targeted=True)(tensor, labels), values, rtol=1e-6)


@given(LOGITS)
def test_redlr_is_flat_on_misclassified_samples(logits):
    tensor = torch.from_numpy(logits).requires_grad_()
    labels = torch.from_numpy(logits.argmin(axis=1))
    ReDLRLoss(reduction="sum")(tensor, labels).backward()
    assert not tensor.grad.any()


@given(LOGITS, st.integers(0, 2))
@pytest.mark.parametrize("loss", [DLRLoss, ReDLRLoss])
def test_gradients_are_those_of_automatic_differentiation(loss, logits, label):
    labels, given_slopes = torch.full((len(logits),), label), torch.linspace(-1, 2, len(logits)).double()
    tensor = torch.from_numpy(logits).requires_grad_()
    losses = loss(reduction="none")(tensor, labels)
    top = tensor.topk(3, dim=1).values
    assume(bool((top[:, 0] - top[:, 2] > 2e-6).all()))  # there is a kink at 1e-6
    others = tensor.scatter(1, labels[:, None], -torch.inf).amax(1)
    expected = (others - tensor[:, label]) / (top[:, 0] - top[:, 2]).clamp(min=1e-6)
    if loss is ReDLRLoss:
        expected = expected.clamp(max=0.0)
    torch.testing.assert_close(losses, expected)
    (found,) = torch.autograd.grad(losses, tensor, given_slopes, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected, tensor, given_slopes)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("loss", [DLRLoss(reduction="sum"), ReDLRLoss(reduction="sum")])
def test_losses_can_be_differentiated_twice(loss):
    logits = torch.tensor([[4.0, 1.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, torch.tensor([0, 0])), logits)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own use of it
@pytest.mark.parametrize("loss", [dlr, redlr])
def test_losses_take_the_transforms_of_torch_func(loss):
    logits = torch.tensor([[4.0, 1.0, 0.5], [0.0, 3.0, 1.0], [2.0, 1.0, 1.5]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 2])

    def single(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(z[None], y[None])[0]

    plain = logits.detach()
    (gradient,) = torch.autograd.grad(loss(logits, labels).sum(), logits)
    torch.testing.assert_close(torch.func.grad(lambda z: loss(z, labels).sum())(plain), gradient)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(single))(plain, labels), gradient)
    tangent = torch.linspace(-1, 1, 9, dtype=torch.float64).view(3, 3)
    _, moved = torch.func.jvp(torch.func.grad(lambda z: loss(z, labels).sum()), (plain,), (tangent,))
    curved = torch.autograd.functional.hessian(lambda z: loss(z, labels).sum(), plain).flatten(2).flatten(0, 1)
    torch.testing.assert_close(moved.flatten(), curved @ tangent.flatten())
    hessians = torch.func.vmap(torch.func.hessian(single))(plain, labels)
    torch.testing.assert_close(torch.block_diag(*hessians), curved)


def test_a_tie_counts_as_misclassified():
    logits = torch.tensor([[2.0, 2.0, 0.0]], requires_grad=True)
    loss = ReDLRLoss()(logits, torch.tensor([0]))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_near_ties_have_bounded_gradients():
    logits = torch.tensor([[1.0 + 1e-7, 1.0, 1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    ReDLRLoss()(logits, torch.tensor([0])).backward()
    assert logits.grad.abs().max() <= 1 / 1e-6


def test_two_classes_use_the_margin():
    logits = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    assert DLRLoss(reduction="none")(logits, torch.tensor([0, 0])).tolist() == [-2.0, 2.0]
    assert ReDLRLoss(reduction="none")(logits, torch.tensor([0, 0])).tolist() == [-2.0, 0.0]


@pytest.mark.parametrize("loss", [DLRLoss, ReDLRLoss])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.float32, torch.float64])
def test_label_forms_agree(loss, dtype):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    indices = torch.tensor([0, 1, 2, 3, 0, 1])
    one_hot = torch.nn.functional.one_hot(indices, 4)
    expected = loss(reduction="none")(logits, indices)
    for labels in (indices.to(dtype), indices[:, None].to(dtype), one_hot.to(dtype)):
        torch.testing.assert_close(loss(reduction="none")(logits, labels), expected)


def test_reduction_is_mutable_and_checked():
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    loss = ReDLRLoss()
    mean = loss(logits, labels)
    loss.reduction = "none"
    each = loss(logits, labels)
    loss.reduction = "sum"
    torch.testing.assert_close(each.mean(), mean)
    torch.testing.assert_close(loss(logits, labels), each.sum())
    loss.reduction = "median"
    with pytest.raises(ValueError, match="reduction is 'median'; allowed are 'none', 'mean' and 'sum'"):
        loss(logits, labels)


def test_half_precision_is_widened():
    logits = torch.tensor([[4.0, 1.0, 0.0]], dtype=torch.bfloat16)
    assert ReDLRLoss()(logits, torch.tensor([0])).dtype == torch.float32


def test_probabilities_are_rows_between_0_and_1_that_add_up_to_1():
    assert are_probabilities(torch.tensor([[0.7, 0.3], [0.0, 1.0]]))
    for row in ([0.7, 0.299], [1.2, -0.2]):  # scores of classes apart, and logits
        assert not are_probabilities(torch.tensor([[0.7, 0.3], row]))


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="logits have the shape"):
        ReDLRLoss()(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="labels has 2 rows and logits 3"):
        ReDLRLoss()(torch.zeros(3, 4), torch.zeros(2))
    with pytest.raises(ValueError, match="labels have the shape"):
        ReDLRLoss()(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="reduction is 'all'"):
        DLRLoss(reduction="all")


def test_modules_and_names_are_the_same_attack(linear):
    for name, module in (("redlr", ReDLRLoss()), ("dlr", DLRLoss()), ("ce", torch.nn.CrossEntropyLoss())):
        for targeted in (False, True):
            results = [
                WassersteinPGD(
                    linear.classifier, eps=0.05, loss=loss, targeted=targeted, max_iter=5, verbose=False
                ).generate(linear.x, linear.y)
                for loss in (name, module)
            ]
            np.testing.assert_array_equal(*results)
        assert module.reduction == "mean"


def test_a_loss_must_return_one_value_a_sample():
    with pytest.raises(ValueError, match=r"loss returned the shape \(\) for 3 samples"):
        attack_objective(lambda logits, labels: logits.sum())(torch.zeros(3, 4), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("loss", [DLRLoss(), ReDLRLoss()])
@pytest.mark.parametrize("one_hot", [False, True])
def test_as_the_loss_of_a_classifier_that_arts_attacks_use(loss, one_hot):
    problem = linear_problem(loss=loss)
    x, y = problem.x, np.eye(5, dtype=np.float32)[problem.y] if one_hot else problem.y
    clean = adversarial_accuracy(problem.classifier, x, y, eps=0.0)
    pgd = ProjectedGradientDescent(problem.classifier, eps=0.05, eps_step=0.01, max_iter=10, verbose=False)
    assert adversarial_accuracy(problem.classifier, x, y, pgd) < clean - 0.2
    apgd = AutoProjectedGradientDescent(
        problem.classifier, eps=0.05, eps_step=0.01, max_iter=10, nb_random_init=1, loss_type=None, verbose=False
    )
    assert adversarial_accuracy(problem.classifier, x, y, apgd) < clean - 0.2
    assert loss.reduction == "mean"


@pytest.mark.parametrize("loss", [DLRLoss, ReDLRLoss])
def test_a_loss_compiles_to_one_graph(loss):
    logits, labels = torch.randn(6, 5, requires_grad=True), torch.arange(6) % 5
    compiled = torch.compile(loss(), backend="aot_eager", fullgraph=True)
    found, expected = (torch.autograd.grad(one(logits, labels), logits)[0] for one in (compiled, loss()))
    torch.testing.assert_close(found, expected)
