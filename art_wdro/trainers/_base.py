# SPDX-License-Identifier: MIT
"""The training loop: epochs, minibatches, validation, selection, history, scheduler.

What a minibatch does, its attack and its loss, is the subclass's.
"""

from __future__ import annotations

import abc
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from art.attacks.attack import EvasionAttack
from art.data_generators import DataGenerator
from art.defences.trainer import AdversarialTrainerTRADESPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from art_wdro._host import arguments
from art_wdro._host import classifier as host
from art_wdro._host.inputs import as_inputs, as_labels
from art_wdro._ranks import agreed, apart, everywhere, is_first, shards, together
from art_wdro._storage import checkpoint as checkpoints
from art_wdro._storage.checkpoint import Checkpoint
from art_wdro.trainers._augmentation import Augmentation
from art_wdro.trainers._checks import check_optimiser, check_parameters, check_scheduler, check_single_sample
from art_wdro.trainers._common import Common
from art_wdro.trainers._generated import Generated
from art_wdro.trainers._loaded import Loaded, with_labels
from art_wdro.trainers._minibatches import Batch, Minibatches, Shuffled
from art_wdro.trainers._pauses import Pauses
from art_wdro.trainers._plan import OnEpoch, Plan
from art_wdro.trainers._replicas import synchronised_norms
from art_wdro.trainers._run import Method, Run, check_ranks
from art_wdro.trainers._schedule import check_length
from art_wdro.trainers._summary import summarised
from art_wdro.trainers._transforms import Augment, Augmented, check_augment
from art_wdro.trainers._update import Updates
from art_wdro.trainers._validation import check_validation, validation_accuracies

SHOWN = ("verbose", "summary_writer")
"""Parameters that do not change what a run computes."""


class FineTuner(AdversarialTrainerTRADESPyTorch):  # type: ignore[misc]
    """Train a classifier of ART in epochs of minibatches, and keep the best epoch under (W_p, l_r).

    What it takes from the classifier it takes anew in every call, so that a copy trains its own and a change counts.
    """

    def __init__(
        self, classifier: PyTorchClassifier, attack: EvasionAttack | None, beta: float, common: Common
    ) -> None:
        host.require_pytorch(type(self), classifier)
        check_optimiser(classifier)
        if attack is not None and not isinstance(attack, EvasionAttack):
            raise TypeError(f"attack is {attack!r}; allowed is an EvasionAttack of ART or None")
        if attack is not None and attack.targeted:
            raise ValueError(f"attack is {attack!r}; allowed is an untargeted one, since y are the true labels")
        super().__init__(classifier, attack, arguments.real("beta", beta, 0.0))
        self._common = common
        self.history: list[dict[str, Any]] = []
        self.best_epoch: int | None = None
        self.final_state: dict[str, Any] | None = None

    @abc.abstractmethod
    def _method(self, updates: Updates, minibatches: Minibatches) -> Method:
        """Return what this trainer does with the minibatches of a run.

        :param updates: Takes a step of the outer problem.
        :param minibatches: Where the minibatches come from.
        """

    def fit(
        self,
        x: Any,
        y: Any | None = None,
        validation_data: tuple[Any, Any] | None = None,
        batch_size: int = 512,
        nb_epochs: int = 20,
        scheduler: LRScheduler | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        drop_last: bool = False,
        on_epoch: OnEpoch | None = None,
        augment: Augment | None = None,
        scheduler_step: str = "epoch",
        checkpoint_minutes: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Train on arrays, in shuffled minibatches; `history` starts anew.

        Under :func:`sharded` all ranks give the same arrays, every minibatch is spread over them, and its budget and
        gradient are those of the whole minibatch.

        Preprocessors of the classifier for fitting that change labels or the number of samples (label smoothing, mixup)
        are applied to the training set once, drawing from `seed`, and what they make is kept in clip_values. Soft
        labels that they make count in the cross-entropy; elsewhere, and where y holds soft ones, the largest entry.

        :param x: Training inputs, (N, ...); or a `Dataset` or `DataLoader` of torch, which is read anew every epoch, so
            that its random transforms are. A loader's own batches, sampler and order count, a `Dataset` is shuffled.
            Preprocessors that change labels or the number of samples are then applied to every minibatch.
        :param y: Labels as indices or one-hot rows; None where x brings them.
        :param validation_data: Pair of inputs and labels, or a data set of torch, to select the epoch on; without it
            the classifier keeps the last epoch's weights.
        :param batch_size: Samples in a minibatch, on each rank; not those of a `DataLoader`. A minibatch of one is
            refused, before the first one trains, where the network does not train on it.
        :param nb_epochs: Number of epochs.
        :param scheduler: Any learning rate scheduler of torch for the classifier's optimiser.
            ReduceLROnPlateau gets wp_accuracy in mode "max" and the training loss in mode "min".
        :param checkpoint: File that holds the state of the run after every epoch: weights, optimiser, scheduler,
            Upsilon, history and random states. If it is there, the run goes on from it, to the same weights bit for bit
            as without the interruption (on a CPU). The file is whole at any moment.
        :param drop_last: Leave out a last minibatch that is smaller; not that of a `DataLoader`.
        :param on_epoch: Called after each epoch with its dict of `history`, and whether it is the best one yet; on the
            first rank alone.
        :param augment: Called with the inputs of every minibatch, (n, ...), on the classifier's device, before they are
            attacked; returns others of the same shape and dtype in the box. :func:`shift_and_flip` makes one.
        :param scheduler_step: Step the scheduler after each "epoch" or each "batch", which is a minibatch.
        :param checkpoint_minutes: Save the run inside of an epoch, too, after so many minutes; None saves it between
            epochs, and when the process is asked to end by SIGTERM.
        :raises ValueError: If an argument does not fit; the message says which.
        :raises TypeError: If an argument is of the wrong type or unknown.
        :raises FloatingPointError: If the loss is no longer finite, unless `on_nonfinite` is "skip".
        """
        self._refuse_unknown("fit", kwargs)
        batch_size = arguments.integer("batch_size", batch_size, 1)
        drop_last = arguments.flag("drop_last", drop_last)
        plan = Plan(
            nb_epochs, scheduler, validation_data, augment, checkpoint, on_epoch, scheduler_step, checkpoint_minutes
        )
        with together():
            source = self._read(x, y)
            augmentation = Augmentation(self._classifier)
        seed = agreed(arguments.seed(self._common.seed))
        minibatches: Minibatches
        if isinstance(source, tuple):
            minibatches = Shuffled(*augmentation(*source, seed), batch_size, drop_last, seed)
        else:
            with together():
                minibatches = Loaded(self._classifier, source, augmentation, batch_size, drop_last, seed)
        with augmentation.done():
            self._train(minibatches, plan)

    def fit_generator(
        self,
        generator: DataGenerator,
        nb_epochs: int = 20,
        scheduler: LRScheduler | None = None,
        validation_data: tuple[Any, Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        on_epoch: OnEpoch | None = None,
        augment: Augment | None = None,
        scheduler_step: str = "epoch",
        checkpoint_minutes: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Train on the batches of a data generator of ART; everything else is as in :meth:`fit`.

        Preprocessors that change labels or the number of samples are applied to every batch.

        `upsilon="resample"` draws from the whole training set, so it needs a `NumpyDataGenerator`.

        :param generator: Data generator with a size.
        :param nb_epochs: Number of epochs.
        :param scheduler: Any learning rate scheduler of torch.
        :param validation_data: Pair of inputs and labels to select the epoch on.
        :param checkpoint: As for :meth:`fit`; a run that goes on needs a generator made anew, draws all batches before
            it again, and does not train on them.
        :param on_epoch: As for :meth:`fit`.
        :param augment: As for :meth:`fit`.
        :param scheduler_step: As for :meth:`fit`.
        :param checkpoint_minutes: As for :meth:`fit`.
        :raises ValueError: If an argument does not fit; the message says which.
        :raises TypeError: If an argument is of the wrong type or unknown.
        :raises FloatingPointError: If the loss is no longer finite.
        """
        self._refuse_unknown("fit_generator", kwargs)
        if not isinstance(generator, DataGenerator):
            raise TypeError(f"generator is {generator!r}; allowed is a DataGenerator of ART")
        if generator.size is None:
            raise ValueError("generator has size None; needed is the number of samples in an epoch")
        plan = Plan(
            nb_epochs, scheduler, validation_data, augment, checkpoint, on_epoch, scheduler_step, checkpoint_minutes
        )
        augmentation = Augmentation(self._classifier)
        seed = arguments.seed(self._common.seed)
        minibatches = Generated(self._classifier, generator, seed, augmentation, resumable=checkpoint is not None)
        with augmentation.done():
            self._train(minibatches, plan)

    def _read(self, x: Any, y: Any) -> tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any]:
        """Check training data: return inputs and class indices, or a data set of torch that brings both."""
        if isinstance(x, (Dataset, DataLoader)):
            source: Dataset[Any] | DataLoader[Any] = with_labels(
                x, None if y is None else lambda count: as_labels(self._classifier, y, count)
            )
            return source
        inputs = as_inputs(self._classifier, x)
        return inputs, as_labels(self._classifier, y, len(inputs)).to(inputs.device)

    def _train(self, minibatches: Minibatches, plan: Plan) -> None:
        kind = type(self).__name__
        with together():
            plan.check()
            check_optimiser(self._classifier)
            check_parameters(self._classifier)
            check_scheduler(self._classifier, plan.scheduler)
            check_length(plan.scheduler, plan.scheduler_step, plan.nb_epochs, len(minibatches))
            if plan.file is not None:
                checkpoints.check(plan.file, kind)
            validation = check_validation(self._classifier, plan.validation_data)
            self._check_smallest(minibatches)
            if plan.augment is not None:
                check_augment(self._classifier, plan.augment, minibatches.few())
                minibatches = Augmented(self._classifier, minibatches, plan.augment)
        self.history, self.best_epoch, self.final_state = [], None, None
        updates = Updates(self._classifier, self._common)
        method = self._method(updates, minibatches)
        run = Run(self._classifier, minibatches, method, plan, updates.average)
        # what describes a run reads all of its data, so only who compares runs asks for it
        compared = plan.file is not None or shards() is not None
        settings = {**self._settings(), **run.identity(validation)} if compared else {}
        with together():
            check_ranks(settings, plan.file)
            opened = nullcontext() if plan.file is None else Checkpoint(plan.file, kind, settings, writes=is_first())
        with opened as saving:
            saved = None if saving is None else saving.load()
            if saved is not None:
                run.restore(saved)
            self.history, self.best_epoch = run.history, run.best_epoch
            self._go_on(run, updates, validation, saving)
        if plan.nb_epochs > 0:
            self.final_state = run.weights()
            self.best_epoch = plan.nb_epochs - 1 if run.best is None else run.best_epoch
        run.leave_weights()

    def _go_on(self, run: Run, updates: Updates, validation: Batch | None, saving: Checkpoint | None) -> None:
        """Train the epochs that are left."""
        pauses = Pauses(run.plan, None if saving is None else lambda: run.save(saving))
        name, silent = type(self).__name__, not (self._common.verbose and is_first())
        writer = self._common.summary_writer if is_first() else False
        with (
            pauses.listening(),
            summarised(writer) as run.summary,
            self._training(updates),
            run.bar(name, silent) as bar,
        ):
            run.set_random_state()
            for number in range(len(run.history), run.plan.nb_epochs):
                bar.set_description(f"{name}, epoch {number + 1} of {run.plan.nb_epochs}", refresh=False)
                is_best = self._train_epoch(run, number, validation, pauses, bar)
                if saving is not None:
                    run.save(saving)
                if run.plan.on_epoch is not None and is_first():
                    with apart(), run.averaged():
                        run.plan.on_epoch(run.history[-1], is_best)
                everywhere(None)
                pauses.after_epoch()

    def _train_epoch(self, run: Run, number: int, validation: Batch | None, pauses: Pauses, bar: tqdm[Any]) -> bool:
        """Train and validate one epoch, show what came out, and tell whether it is the best one yet."""
        record = run.train(number, pauses, bar)
        with run.averaged():
            record |= self._validate(validation)
            is_best = run.finish(record)
        self.best_epoch = run.best_epoch
        shown = {k: record[k] for k in ("loss", "clean_accuracy", "wp_accuracy")}
        bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items() if v is not None})
        return is_best

    def _check_smallest(self, minibatches: Minibatches) -> None:
        """Refuse minibatches of one sample that the network does not train on."""
        synchronised = self._common.sync_batch_norm and shards() is not None
        single = None if synchronised else minibatches.single()
        if single is not None:
            check_single_sample(self._classifier, *single)

    @contextmanager
    def _training(self, updates: Updates) -> Iterator[None]:
        """Change the classifier for as long as training lasts, and put back what is not trained."""
        model = host.network(self._classifier)
        with (
            torch.inference_mode(False),
            host.restored(self._classifier),
            synchronised_norms(model, shards(), self._common.sync_batch_norm),
            updates.prepared(),
        ):
            yield

    def _validate(self, data: Batch | None) -> dict[str, float | None]:
        common = self._common
        threat = {"p": common.p, "norm": common.norm, "eps": common.eps}
        return validation_accuracies(self._classifier, data, **threat, max_iter=common.max_iter)

    def _settings(self) -> dict[str, Any]:
        """Return the parameters that two runs must share to be the same, as plain values."""
        described = host.described_parts(self._classifier, {"class": type(self), "attack": self._attack})
        common = {name: value for name, value in vars(self._common).items() if name not in SHOWN}
        return {**described, "beta": self._beta, **common}

    def _refuse_unknown(self, function: str, kwargs: dict[str, Any]) -> None:
        if not kwargs:
            return
        known = [name for name in inspect.signature(getattr(FineTuner, function)).parameters if name != "self"][:-1]
        of_constructor = sorted(kwargs.keys() & inspect.signature(type(self)).parameters.keys())
        hint = f"; {', '.join(of_constructor)} is for the constructor" if of_constructor else ""
        raise TypeError(
            f"{function} got the unknown arguments {sorted(kwargs)}; allowed are {', '.join(known[:-1])} and "
            f"{known[-1]}{hint}"
        )
