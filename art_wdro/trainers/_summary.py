# SPDX-License-Identifier: MIT
"""What a training writes for TensorBoard along the way, by ART's convention for `summary_writer`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from art.summary_writer import SummaryWriter
from torch import Tensor

from art_wdro._host.extras import install

PENDING = 100
"""Minibatches whose figures are read back from the device at once."""
WRITERS = {"tensorboardX": "tensorboardX", "tensorboard": "torch.utils.tensorboard"}
"""Modules with a `SummaryWriter` by the packages that they need, the first that is installed counts."""


def checked_writer(value: Any) -> bool | str | SummaryWriter:
    """Check a `summary_writer`: False or None, True, the path of a folder, or a `SummaryWriter` of ART.

    :raises ValueError: If it is something else.
    :raises ImportError: If a writer is to be made, and nothing that makes one is installed.
    """
    if value is None:
        return False
    if not isinstance(value, (bool, str, SummaryWriter)):
        raise ValueError(f"summary_writer is {value!r}; allowed are False, True, a path or a SummaryWriter of ART")
    if isinstance(value, (bool, str)) and value and not any(map(find_spec, WRITERS)):
        raise ImportError(f"summary_writer is {value!r}, which needs {' or '.join(WRITERS)}: {install('tensorboard')}")
    return value


class TrainingWriter(SummaryWriter):  # type: ignore[misc]
    """A writer of ART that writes into the folder that is given, or one below `runs`."""

    def update(self, batch_id: int, global_step: int, *args: Any, **kwargs: Any) -> None:
        """Write nothing: what a training writes is numbers by name."""

    def _init_summary_writer(self, summary_writer: str | bool, init_counter: int) -> None:
        module = next(module for package, module in WRITERS.items() if find_spec(package))
        writer = __import__(module, fromlist=["SummaryWriter"]).SummaryWriter
        where = {"logdir" if module == "tensorboardX" else "log_dir": summary_writer}
        place = where if isinstance(summary_writer, str) else {"comment": "-fit"}
        # a second run within a second would write over the first one's file
        self._summary_writer = writer(**place, filename_suffix=f".{uuid.uuid4().hex}")


@contextmanager
def summarised(writer: bool | str | SummaryWriter) -> Iterator[Summary | None]:
    """Hold the summary of a run, if one is wanted."""
    summary = None if writer is False or writer == "" else Summary(writer)
    try:
        yield summary
    finally:
        if summary is not None:
            summary.close()


class Summary:
    """The figures of minibatches and epochs, written as scalars.

    Those of minibatches wait on the device until there are many, so that no step waits for them.
    """

    def __init__(self, writer: bool | str | SummaryWriter) -> None:
        """Open the writer.

        :param writer: What :func:`checked_writer` returned, and not False.
        """
        self._own = not isinstance(writer, SummaryWriter)
        given: SummaryWriter = TrainingWriter(writer) if self._own else writer
        self._writer = given.summary_writer
        self._pending: list[tuple[int, dict[str, Tensor | float]]] = []

    def minibatch(self, step: int, figures: dict[str, Tensor | float]) -> None:
        """Note the figures of a minibatch.

        :param step: Its number in the run.
        :param figures: Numbers and scalar tensors by name.
        """
        self._pending.append((step, figures))
        if len(self._pending) >= PENDING:
            self._flush()

    def epoch(self, record: dict[str, Any]) -> None:
        """Write the figures of an epoch, and those of its minibatches."""
        self._flush()
        for name, figure in record.items():
            if isinstance(figure, (int, float)) and name != "epoch":
                self._writer.add_scalar(f"epoch/{name}", figure, record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Write what is left, and close a writer that was opened here."""
        self._flush()
        self._writer.flush()
        if self._own:
            self._writer.close()

    def _flush(self) -> None:
        waiting = [figure for _, figures in self._pending for figure in figures.values() if isinstance(figure, Tensor)]
        found = iter(torch.stack([figure.double() for figure in waiting]).tolist() if waiting else [])
        for step, figures in self._pending:
            for name, figure in figures.items():
                value = next(found) if isinstance(figure, Tensor) else figure
                self._writer.add_scalar(f"minibatch/{name}", value, step)
        self._pending.clear()
