# SPDX-License-Identifier: MIT
"""What all attacks under (W_p, l_r) share as evasion attacks of ART: threat, checks, the way in and out of tensors."""

from __future__ import annotations

import abc
import functools
import inspect
import math
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.estimators.classification.classifier import ClassifierMixin
from art.estimators.estimator import BaseEstimator, LossGradientsMixin
from art.summary_writer import SummaryWriter
from torch import Tensor
from tqdm.auto import tqdm

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.doubts import warn_of_doubts
from art_wdro._host.inputs import as_arrays, as_inputs, as_labels
from art_wdro._host.predictions import labels_for
from art_wdro._ranks import count, is_first, require_same, shards, together
from art_wdro._solvers.batches import Samples
from art_wdro._solvers.passes import Advance, LogitsOf, Passes
from art_wdro._storage import checkpoint as checkpoints
from art_wdro._storage.arrays import few_sizes, placed
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro._storage.digests import fingerprint
from art_wdro._threat.threat import Threat

PREDICTED = "predicted labels"
"""What a checkpoint calls labels that were not given."""
F = TypeVar("F", bound=Callable[..., None])
ARTS_ORDER = "norm", "eps", "eps_step", "decay", "max_iter", "targeted", "num_random_init", "batch_size"
"""Parameters of ART's PGD after the estimator."""


def named(*theirs: str) -> Callable[[F], F]:
    """Return a decorator of a constructor that warns of parameters by position, which ART's attacks order otherwise.

    :param theirs: ART's order after the estimator.
    """

    def decorated(constructor: F) -> F:
        own = [*inspect.signature(constructor).parameters][2:]

        @functools.wraps(constructor)
        def checked(self: Any, estimator: Any, *positional: Any, **given: Any) -> None:
            if positional:
                here = ", ".join(f"{name}={value!r}" for name, value in zip(own, positional, strict=False))
                there = ", ".join(f"{name}={value!r}" for name, value in zip(theirs, positional, strict=False))
                warnings.warn(
                    f"{type(self).__name__} reads its positional parameters as {here}, where ART's attacks would read "
                    f"{there}; give their names, which the next version needs",
                    FutureWarning,
                    stacklevel=2,
                )
            constructor(self, estimator, *positional, **given)

        return cast(F, checked)

    return decorated


class _Generate:
    """Hold `generate` outside of ART's metaclass, which would turn tensors and None into arrays."""

    def generate(
        self: Any,
        x: Any,
        y: Any | None = None,
        mask: Any | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Generate adversarial examples for the whole data set, which shares one budget.

        :param x: Inputs, (N, ...), as the classifier takes them, inside its clip_values: an array of any
            real dtype, a tensor on any device, or a `Dataset` or `DataLoader` of torch with or without labels. Not
            modified. What is made from a `numpy.memmap` or a data set lies in temporary files mapped into memory.
        :param y: Labels as indices (N,) or (N, 1) or one-hot rows (N, K); the targets of a targeted
            attack. None takes the classifier's predictions as labels.
        :param mask: Broadcastable to x; coordinates where it is 0 do not move.
        :param checkpoint: File for what a long attack has reached, written every half minute and deleted at the end:
            the same call goes on from it. Not under :func:`sharded`.
        :return: Adversarial examples, float32, shaped as x, with D_p(x, result) <= eps (1 + 1e-6).
        :raises ValueError: If an argument does not fit; the message says which and what is allowed.
        :raises TypeError: If x or y is not numeric, or an unknown keyword is given.
        """
        if kwargs:
            raise TypeError(
                f"generate got the unknown arguments {sorted(kwargs)}; allowed are x, y, mask and checkpoint"
            )
        adversarial: np.ndarray = self._generate(x, y, mask, checkpoint)
        return adversarial


class WassersteinAttack(_Generate, EvasionAttack):  # type: ignore[misc]
    """What all attacks under (W_p, l_r) share: the threat, checks, and the way in and out of tensors."""

    attack_params = [*EvasionAttack.attack_params, "p", "norm", "eps", "batch_size", "verbose"]
    _estimator_requirements = (BaseEstimator, LossGradientsMixin, ClassifierMixin)
    _order_one = False

    p: float
    norm: float | str
    eps: float
    batch_size: int
    verbose: bool
    advance: Advance | None = None
    """Is told of gradients, where a progress bar is somebody else's."""

    def __init__(
        self, estimator: PyTorchClassifier, summary_writer: bool | str | SummaryWriter = False, **parameters: Any
    ) -> None:
        super().__init__(estimator=estimator, summary_writer=summary_writer)
        host.require_pytorch(type(self), estimator)
        for name, value in parameters.items():
            setattr(self, name, value)
        self._check_params()

    def set_params(self, **kwargs: Any) -> None:
        """Change parameters; if one is refused, all stay as they were.

        :param kwargs: Parameters by name, those in `attack_params`.
        :raises ValueError: If a name is unknown or a value is not allowed.
        :raises TypeError: If a value is of the wrong type.
        """
        before = dict(self.__dict__)
        try:
            super().set_params(**kwargs)
        except Exception:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _check_params(self) -> None:
        super()._check_params()
        self.p = arguments.order(self.p, one=self._order_one)
        self.norm = arguments.ground_norm(self.norm)
        self.eps = arguments.real("eps", self.eps, 0.0)
        self.batch_size = arguments.integer("batch_size", self.batch_size, 1)
        self.verbose = arguments.flag("verbose", self.verbose)

    def threat(self) -> Threat:
        """Return the threat as the solvers take it."""
        return Threat(self.p, arguments.ground_norm(self.norm), host.box(self.estimator))

    def _generate(self, x: Any, y: Any | None, mask: Any | None, checkpoint: Any) -> np.ndarray:
        classifier: PyTorchClassifier = self.estimator
        with together():
            file = None if checkpoint is None else arguments.file("checkpoint", checkpoint)
            if file is not None and shards() is not None:
                raise ValueError(f"checkpoint is '{file}' under sharded(); allowed there is None")
            if file is not None:
                checkpoints.check(file, type(self).__name__)
            x, y = as_arrays(x, y)
            inputs = as_inputs(classifier, x)
            movable = None if mask is None else _as_mask(mask, inputs)
            if y is None and self.targeted:
                raise ValueError("y is None; a targeted attack needs the target labels")
            labels = None if y is None else as_labels(classifier, y, len(inputs))
        if math.isfinite(self.p) and count(len(inputs)) == 1:
            warnings.warn(
                "x has one sample, which gets the whole budget; attack the whole data set in one call, or its samples "
                "share nothing",
                UserWarning,
                stacklevel=3,
            )
        return self.attack_tensors(inputs, labels, movable, file, look=True).cpu().numpy()

    def attack_tensors(
        self,
        x: Tensor,
        labels: Tensor | None,
        mask: Tensor | None = None,
        file: Path | None = None,
        look: bool = False,
    ) -> Tensor:
        """Attack inputs and labels that are checked already.

        :param x: Inputs, (N, ...), float32, on any device.
        :param labels: Class indices, (N,), on any device; None takes the classifier's predictions.
        :param mask: Where coordinates may move, boolean, (N, ...); None moves all.
        :param file: The checkpoint.
        :param look: Look at a few samples first, and warn of what makes the attack doubtful.
        :return: The attacked inputs, on the host or on the classifier's device.
        """
        classifier: PyTorchClassifier = self.estimator
        if shards() is not None:
            require_same(self._identity(), "an attack")
        with host.undisturbed(classifier, self.batch_size):
            x = placed(x, classifier.device)
            mask = None if mask is None else mask.to(x.device)
            with nullcontext() if file is None else self._checkpoint(file, x, labels, mask) as checkpoint:
                if look:
                    warn_of_doubts(classifier, x, self.batch_size, stacklevel=5)
                if labels is None:
                    function = Passes(host.logits_of(classifier), few_sizes(len(x), self.batch_size))
                    labels = labels_for(classifier, x, self.batch_size, function)
                    if checkpoint is not None:
                        checkpoint.require(PREDICTED, fingerprint(labels))
                samples = Samples(x, labels.to(classifier.device), host.box(classifier), mask, self.batch_size)
                adversarial = self._attack(samples, checkpoint)
                if checkpoint is not None:
                    checkpoint.finish()
        return adversarial

    def _bar(self, items: Iterable[Any]) -> Any:
        """Wrap an iteration in a progress bar."""
        shown = self.verbose and is_first()
        return tqdm(items, desc=type(self).__name__, leave=False, disable=not shown)

    def _passes(self, logits_of: LogitsOf) -> Passes:
        """Return a function of logits that counts, and tells of, its gradients."""
        return Passes(logits_of, advance=self.advance)

    def _checkpoint(self, file: Path, x: Tensor, labels: Tensor | None, mask: Tensor | None) -> Checkpoint:
        """Return the checkpoint of this attack on these data."""
        data = [x, *(values for values in (labels, mask) if values is not None)]
        settings = self._identity() | {"samples": len(x), "data": fingerprint(*data)}
        return Checkpoint(file, type(self).__name__, settings, () if labels is not None else (PREDICTED,), mapped=True)

    def _identity(self) -> dict[str, Any]:
        """Describe the attack and its classifier, weights included, in plain values."""
        names = sorted({*self.attack_params} - {"verbose", "summary_writer", "batch_size"})
        values = {name: getattr(self, name) for name in names}
        settings = host.described_parts(self.estimator, {"class": type(self), **values})
        return settings | host.identity(self.estimator, fixed=True)

    @abc.abstractmethod
    def _attack(self, samples: Samples, checkpoint: Checkpoint | None) -> Tensor:
        """Attack samples in eval mode; their labels are on the classifier's device, the rest perhaps on the host."""


def _as_mask(mask: Any, x: Tensor) -> Tensor:
    """Read a mask as ART's PGD does: broadcastable to x, boolean or non-negative floats, 0 holds still."""
    tensor = mask.detach() if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    if not (tensor.dtype == torch.bool or tensor.is_floating_point()):
        raise ValueError(f"mask has the dtype {tensor.dtype}; allowed are bool and floating point")
    if not (tensor >= 0).all():
        raise ValueError("mask holds negative or NaN values; allowed are zero and positive ones")
    try:
        return (tensor != 0).to(x.device).broadcast_to(x.shape)
    except RuntimeError:
        raise ValueError(
            f"mask has the shape {tuple(tensor.shape)}; needed is one that broadcasts to x, {tuple(x.shape)}"
        ) from None
