# SPDX-License-Identifier: MIT
"""When a run saves itself inside of an epoch: every so many minutes, and when its process is asked to end."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from art_wdro._ranks import is_first, shards, total
from art_wdro.trainers._plan import Plan

EXIT_CODE = 128 + int(signal.SIGTERM)
"""What a shell says of a process that ended by SIGTERM."""

CHILD = getattr(signal, "SIGCHLD", None)
"""The signal that a process of this one's own has ended, where there is one."""


class Terminated(SystemExit):
    """The end of a process that was asked for, with all of its run saved."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Pauses:
    """The moments between two minibatches, at which a run with a checkpoint may save itself or end."""

    def __init__(self, plan: Plan, save: Callable[[], None] | None) -> None:
        """Take what is done at such a moment.

        :param plan: Says how often.
        :param save: Saves the run, on all ranks together; None where there is no checkpoint.
        """
        self._plan, self._save = plan, save
        self._saved = time.monotonic()
        self._asked = False
        self._of_children: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let SIGTERM end the run after the minibatch that it meets, with all of it saved and a message.

        A handler that was there before is called then. Without a checkpoint, or outside of the main thread, where
        Python sets no handlers, the signal does what it always does.
        """
        if self._save is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._ask)
        try:
            yield
        except Terminated:
            if is_first():
                print(
                    f"asked to end: the run is saved in '{self._plan.file}', and the same call goes on from there",
                    file=sys.stderr,
                )
            if callable(before):
                before(signal.SIGTERM, None)
            raise
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
            if CHILD is not None and self._of_children is not None:
                signal.signal(CHILD, self._of_children)
        if self._asked:  # it came when all was done
            signal.raise_signal(signal.SIGTERM)

    def after_minibatch(self) -> None:
        """Save the run if the time has come, and end if that was asked for."""
        minutes = self._plan.checkpoint_minutes
        late = minutes is not None and is_first() and time.monotonic() - self._saved >= 60 * minutes
        if self._agreed(self._asked or late):
            assert self._save is not None
            self._save()
            self.after_epoch()

    def after_failure(self) -> None:
        """Save the run and end, if that was asked for, where no minibatch could be read.

        The processes that read it may have been asked with this one. Over ranks the others wait elsewhere.
        """
        if self._asked and shards() is None:
            self.after_minibatch()

    def after_epoch(self) -> None:
        """Note that the run was saved, and end if that was asked for."""
        self._saved = time.monotonic()
        if self._agreed(self._asked):
            raise Terminated

    def _agreed(self, own: bool) -> bool:
        """Tell whether any rank says so: their clocks differ, and a signal may have reached some of them."""
        return self._save is not None and bool(total(torch.tensor([float(own)]))[0] > 0)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        # processes that read data may have been asked with this one, and torch raises when they end: not while it saves
        if CHILD is not None:
            self._of_children = signal.signal(CHILD, signal.SIG_DFL)
