# SPDX-License-Identifier: MIT
"""Augmentation of minibatches: a callable of the user's on each of them, before it is attacked, and a ready one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.inputs import as_inputs, rounding_slack
from art_wdro._ranks import gathered
from art_wdro.trainers._minibatches import Batch, Minibatches
from art_wdro.trainers._random import random_state, set_random_state

Augment = Callable[[Tensor], Tensor]
"""Maps a minibatch of inputs, (n, ...), on the classifier's device to one of the same shape and dtype, in the box."""


def shift_and_flip(padding: int = 4) -> Augment:
    """Return the augmentation of CIFAR-10 recipes: a random shift over a black border, and a flip of half the images.

    Every image of a minibatch has a shift and a flip of its own, drawn from torch's random state of its device.

    :param padding: Largest shift in pixels, upwards, downwards and sideways.
    :return: A function of images, (N, C, H, W).
    :raises ValueError: If `padding` is negative.
    :raises TypeError: If `padding` is no whole number.

    >>> import torch
    >>> augment = shift_and_flip(padding=1)
    >>> augment(torch.ones(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """
    return functools.partial(shifted_and_flipped, padding=arguments.integer("padding", padding, 0))


def shifted_and_flipped(x: Tensor, padding: int) -> Tensor:
    """Shift every image, (N, C, H, W), by up to so many pixels each way, and flip half of them."""
    if x.dim() != 4:
        raise ValueError(f"shift_and_flip got inputs of shape {tuple(x.shape)}; needed are images (N, C, H, W)")
    count, channels, height, width = x.shape
    tops, lefts = torch.randint(2 * padding + 1, (2, count, 1), device=x.device)
    rows = tops + torch.arange(height, device=x.device)
    columns = lefts + torch.arange(width, device=x.device)
    columns = torch.where(torch.rand(count, 1, device=x.device) < 0.5, columns.flip(1), columns)
    images = torch.arange(count, device=x.device).view(-1, 1, 1, 1)
    own = torch.arange(channels, device=x.device).view(1, -1, 1, 1)
    padded = torch.nn.functional.pad(x, 4 * [padding])
    return padded[images, own, rows[:, None, :, None], columns[:, None, None, :]]


def check_augment(classifier: PyTorchClassifier, augment: Any, few: Tensor | None) -> None:
    """Refuse an augmentation that is no callable, or that does not keep a few inputs what they are.

    All random state is left as it was.

    :param classifier: The classifier.
    :param augment: What was given.
    :param few: Inputs to try it on, (n, ...); None where there are none yet.
    :raises TypeError: If it is no callable, or returns no tensor.
    :raises ValueError: If it fails, or returns another shape or dtype, NaN or inf, or leaves clip_values.
    """
    if not callable(augment):
        raise TypeError(f"augment is {augment!r}; allowed is a callable of a minibatch of inputs, or None")
    if few is not None:
        state = random_state(classifier.device)
        try:
            as_inputs(classifier, _applied(augment, few.to(classifier.device)), "augment's result", KEEPS)
        finally:
            set_random_state(state, classifier.device)


KEEPS = "; allowed is an augment that keeps shape, dtype and box"
"""What an error says of a result that is no minibatch."""


class Augmented(Minibatches):
    """The minibatches of another source, each of them augmented anew on the classifier's device."""

    def __init__(self, classifier: PyTorchClassifier, minibatches: Minibatches, augment: Augment) -> None:
        """Wrap the source.

        :param classifier: Whose device and box they are.
        :param minibatches: Where the minibatches come from.
        :param augment: What is done with each.
        """
        self._classifier, self._of, self._augment = classifier, minibatches, augment
        self.resamples = minibatches.resamples
        box = host.box(classifier)
        self._box = None if box is None else (*box, rounding_slack(*box))
        self._excess: Tensor | None = None

    def __len__(self) -> int:
        return len(self._of)

    def epoch(self, done: int = 0) -> Iterator[Batch]:
        """Yield this rank's part of every minibatch of an epoch but the first ones.

        :raises ValueError: At the end, if one has left the box: looking at each would wait for the device.
        """
        yield from self._changed(self._of.epoch(done))
        excess = 0.0 if self._excess is None else gathered(self._excess[None]).max().item()
        self._excess = None
        if excess > 0:
            raise ValueError(f"augment's result leaves the classifier's clip_values by {excess:.3g}{KEEPS}")

    def sample(self, fraction: float) -> Iterator[Batch]:
        """Yield this rank's part of a fresh share of the training set, in batches."""
        yield from self._changed(self._of.sample(fraction))

    def few(self) -> Tensor | None:
        """Return a few inputs, if some can be had."""
        return self._of.few()

    def single(self) -> tuple[Tensor, str] | None:
        """Return an input, (1, ...), and a remedy, if a rank's part of a minibatch is known to be one sample."""
        return self._of.single()

    def identity(self) -> list[Any]:
        """Describe the data and how they are cut, in plain values."""
        return self._of.identity()

    def state(self) -> dict[str, Any] | None:
        """Return where the order stands; the random states of the process are the run's."""
        return self._of.state()

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Go on from what :meth:`state` returned."""
        self._of.set_state(state)

    def _changed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for x, y in batches:
            yield self._inside(_applied(self._augment, x.to(self._classifier.device, non_blocking=True))), y

    def _inside(self, x: Tensor) -> Tensor:
        """Clip what rounding took out of the box, and note by how much anything else did."""
        if self._box is None:
            return x
        lower, upper, slack = self._box
        excess = (torch.maximum(lower - x, x - upper) - slack).amax()
        self._excess = excess if self._excess is None else torch.maximum(self._excess, excess)
        return x.clamp(lower, upper)


def _applied(augment: Augment, x: Tensor) -> Tensor:
    """Apply an augmentation to a copy of a minibatch, and see that the result is one."""
    try:
        with torch.no_grad():
            found = augment(x.clone())
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        name = getattr(augment, "__name__", type(augment).__name__)
        raise ValueError(
            f"augment is {name}, which fails on inputs of shape {tuple(x.shape)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Tensor):
        raise TypeError(f"augment's result is a {type(found).__name__}; allowed is a tensor of shape {tuple(x.shape)}")
    if found.shape != x.shape or found.dtype != x.dtype or found.device != x.device:
        raise ValueError(
            f"augment's result has the shape {tuple(found.shape)} and dtype {found.dtype} on {found.device}, for "
            f"inputs of shape {tuple(x.shape)} and dtype {x.dtype} on {x.device}{KEEPS}"
        )
    return found.detach()
