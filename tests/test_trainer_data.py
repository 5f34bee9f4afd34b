# SPDX-License-Identifier: MIT
"""What the minibatches of a training are made of: augmentation, data sets and loaders that every epoch reads anew."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator, PyTorchDataGenerator
from art.defences.preprocessor import LabelSmoothing
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset
from torchvision.transforms import v2

from art_wdro import DistributionalTRADESTrainer, WassersteinMarginTrainer, shift_and_flip
from art_wdro.trainers import _loaded
from art_wdro.trainers._margin import DualDescent
from art_wdro.trainers._trades import AlgorithmOne
from tests.conftest import digits, on_host, same, weights

(X, Y), (X_TEST, Y_TEST) = digits()
METHODS = {DistributionalTRADESTrainer: AlgorithmOne, WassersteinMarginTrainer: DualDescent}
# networks here are untrained
pytestmark = pytest.mark.filterwarnings("ignore:the network was right on")
both = pytest.mark.parametrize("kind", METHODS)


def trainer(kind: Any, classifier: Any, **settings: Any) -> Any:
    return kind(classifier, **({"eps": 0.1, "max_iter": 2, "seed": 0, "verbose": False} | settings))


def in_minibatches(monkeypatch: pytest.MonkeyPatch, kind: Any) -> list[torch.Tensor]:
    """Collect the inputs of every minibatch, as they are attacked."""
    seen, step = [], METHODS[kind].step

    def watched(method: Any, x: torch.Tensor, y: torch.Tensor, where: str) -> Any:
        seen.append(x.cpu().clone())
        return step(method, x, y, where)

    monkeypatch.setattr(METHODS[kind], "step", watched)
    return seen


def test_shift_and_flip_moves_each_image_on_its_own():
    torch.manual_seed(0)
    images = torch.rand(200, 2, 6, 5)
    found = shift_and_flip(padding=2)(images)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    ways = {}
    for number, image in enumerate(found):
        crops = {
            (top, left, flipped): torch.equal(image, crop.flip(2) if flipped else crop)
            for top in range(5)
            for left in range(5)
            for flipped in (False, True)
            for crop in [padded[number, :, top : top + 6, left : left + 5]]
        }
        (way,) = [way for way, equal in crops.items() if equal]
        ways[way] = ways.get(way, 0) + 1
    assert len(ways) > 40
    assert 70 < sum(count for (_, _, flipped), count in ways.items() if flipped) < 130
    torch.manual_seed(0)
    torch.rand(200, 2, 6, 5)
    assert torch.equal(shift_and_flip(padding=2)(images), found)
    assert sorted(shift_and_flip(padding=0)(images).flatten().tolist()) == sorted(images.flatten().tolist())


@pytest.mark.parametrize(("padding", "kind"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_padding_is_a_whole_number(padding, kind):
    with pytest.raises(kind, match=rf"padding is {padding}; allowed is a whole number >= 0"):
        shift_and_flip(padding)


@both
@pytest.mark.parametrize("call", ["fit", "fit_generator"])
def test_augmented_images_differ_by_epoch_and_the_users_do_not(digits_classifier, kind, call, monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    seen, x = in_minibatches(monkeypatch, kind), X[:64].copy()

    def changed(batch: torch.Tensor) -> torch.Tensor:
        return batch.mul_(torch.rand(len(batch), 1, 1, 1, device=batch.device))  # in place, as some transforms are

    training, settings = trainer(kind, digits_classifier), {"nb_epochs": 2, "augment": changed}
    if call == "fit":
        training.fit(x, Y[:64], batch_size=32, **settings)
    else:
        training.fit_generator(NumpyDataGenerator(x, Y[:64], batch_size=32), **settings)
    np.testing.assert_array_equal(x, X[:64])
    first, second = torch.cat(seen[:2]), torch.cat(seen[2:])
    factors = [(epoch.amax((1, 2, 3)) / torch.from_numpy(x).amax((1, 2, 3))) for epoch in (first, second)]
    assert not torch.equal(*factors)
    for epoch, factor in zip((first, second), factors, strict=True):
        torch.testing.assert_close(epoch, torch.from_numpy(x) * factor[:, None, None, None])


@both
def test_transforms_of_torchvision_fit(digits_classifier, kind, monkeypatch):
    seen = in_minibatches(monkeypatch, kind)
    augment = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ColorJitter(brightness=0.5)])
    monkeypatch.setattr(torch, "randperm", lambda n, generator=None: torch.arange(n))
    trainer(kind, digits_classifier).fit(X[:40], Y[:40], nb_epochs=1, augment=augment)
    lit = torch.from_numpy(X[:40]).flip(3) > 0
    assert torch.equal(seen[0] > 0, lit)
    assert not torch.equal(seen[0], torch.from_numpy(X[:40]).flip(3))


def test_resampled_inputs_are_augmented_too(digits_classifier, monkeypatch):
    """Upsilon is that of the inputs on which the network trains."""
    seen = in_minibatches(monkeypatch, DistributionalTRADESTrainer)
    calls = []

    def dimmed(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return x * 0.5

    trainer(DistributionalTRADESTrainer, digits_classifier, upsilon="resample", sample_fraction=0.5).fit(
        X[:64], Y[:64], batch_size=32, nb_epochs=1, augment=dimmed
    )
    assert calls == [8, 32, 32, 32, 32]  # a look before training, then a minibatch and a sample in turn
    assert all(x.max() <= 0.5 for x in seen)


def turned(x: torch.Tensor) -> torch.Tensor:
    return x[..., :7]


BAD_AUGMENTS = {
    "no callable": (3, TypeError, r"augment is 3; allowed is a callable of a minibatch of inputs, or None"),
    "shape": (turned, ValueError, r"augment's result has the shape \(8, 1, 8, 7\) .* of shape \(8, 1, 8, 8\)"),
    "dtype": (
        lambda x: x.double(),
        ValueError,
        r"dtype torch.float64 .* allowed is an augment that keeps shape,",
    ),
    "box": (lambda x: x - 0.5, ValueError, r"augment's result lies in \[-0.5, .*clip_values .* keeps shape, dtype and"),
    "NaN": (lambda x: x * torch.nan, ValueError, "augment's result holds NaN or inf"),
    "array": (on_host, TypeError, r"augment's result is a ndarray; allowed is a tensor of shape"),
    "failing": (
        lambda x: x @ x[0, 0, 0, 0],
        ValueError,
        r"augment is <lambda>, which fails on inputs of shape .*Error: ",
    ),
}


@both
@pytest.mark.parametrize(("augment", "error", "message"), BAD_AUGMENTS.values(), ids=BAD_AUGMENTS)
def test_an_augmentation_that_makes_no_minibatch_is_told_before_training(
    digits_classifier, kind, augment, error, message
):
    start, state = weights(digits_classifier), torch.get_rng_state()
    for call, data in (("fit", (X[:64], Y[:64])), ("fit_generator", (NumpyDataGenerator(X[:64], Y[:64], 32),))):
        with pytest.raises(error, match=message):
            getattr(trainer(kind, digits_classifier), call)(*data, nb_epochs=1, augment=augment)
    assert same(start, weights(digits_classifier))
    assert torch.equal(state, torch.get_rng_state())


@both
def test_what_leaves_the_box_in_training_is_told_after_the_epoch(digits_classifier, kind):
    calls = []

    def late(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return x + 0.25 * (len(calls) > 2)

    with pytest.raises(ValueError, match=r"augment's result leaves the classifier's clip_values by 0\.25; allowed is"):
        trainer(kind, digits_classifier).fit(X[:64], Y[:64], batch_size=32, nb_epochs=3, augment=late)
    assert len(calls) == 3


def test_rounding_may_leave_the_box(digits_classifier, monkeypatch):
    seen = in_minibatches(monkeypatch, DistributionalTRADESTrainer)
    trainer(DistributionalTRADESTrainer, digits_classifier).fit(
        X[:64], Y[:64], batch_size=32, nb_epochs=1, augment=lambda x: x * (1 + 2.0**-23)
    )
    assert max(x.max() for x in seen) == 1


class Noisy(Dataset):
    """Images whose brightness is drawn anew whenever one is read, from the random state that a name tells."""

    DRAWS = {"torch": lambda: torch.rand(()).item(), "numpy": np.random.rand, "python": random.random}

    def __init__(self, draw: str = "torch", count: int = 64) -> None:
        self._draw, self._count = draw, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(X[index]) * self.DRAWS[self._draw](), int(Y[index])


class Flowing(IterableDataset):
    """The same as a stream that begins anew."""

    def __iter__(self):
        return iter([Noisy()[index] for index in range(64)])


def collate(items: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([x for x, _ in items]) * 0.5, torch.tensor([y for _, y in items])


SOURCES = {
    "data set": Noisy,
    "NumPy's state": lambda: Noisy("numpy"),
    "Python's state": lambda: Noisy("python"),
    "loader": lambda: DataLoader(Noisy(), batch_size=20),
    "shuffled loader": lambda: DataLoader(Noisy(), batch_size=20, shuffle=True, drop_last=True),
    "sampler": lambda: DataLoader(
        Noisy(),
        batch_size=20,
        collate_fn=collate,
        sampler=RandomSampler(range(64), True, 40, torch.Generator().manual_seed(5)),
    ),
    "generator": lambda: DataLoader(Noisy(), batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(5)),
    "stream": lambda: DataLoader(Flowing(), batch_size=32),
    "stream without a loader": Flowing,
}


@both
@pytest.mark.parametrize("name", SOURCES)
def test_a_data_set_is_read_anew_every_epoch(digits_classifier, kind, name, monkeypatch, tmp_path):
    """Images differ by epoch; a run with a seed draws them again, and goes on inside of them bit for bit."""
    seen, start, results = in_minibatches(monkeypatch, kind), weights(digits_classifier), []
    for stops in ([2], [1, 2]):
        digits_classifier.model.load_state_dict(start)
        torch.manual_seed(0)
        seen.clear()
        for stop in stops:
            trainer(kind, digits_classifier).fit(
                SOURCES[name](), batch_size=32, nb_epochs=stop, checkpoint=tmp_path / f"{len(stops)}.ckpt"
            )
            torch.manual_seed(7)  # which the checkpoint overrules
        results.append((torch.cat(seen), weights(digits_classifier)))
    sizes = {"shuffled loader": 60, "sampler": 40}.get(name, 64)
    images = results[0][0]
    assert len(images) == 2 * sizes
    assert not torch.equal(images[:sizes].amax((1, 2, 3)).sort()[0], images[sizes:].amax((1, 2, 3)).sort()[0])
    if name == "sampler":
        assert images.max() < 0.5
    assert torch.equal(images, results[1][0])
    assert same(results[0][1], results[1][1])


def test_the_run_and_its_data_draw_from_different_states(digits_classifier, monkeypatch):
    """Dropout draws the same, whatever a data set draws."""
    digits_classifier.optimizer.param_groups[0]["lr"] = 0.0
    states = []
    for data in (TensorDataset(torch.from_numpy(X[:64]), torch.from_numpy(Y[:64])), Noisy(), Noisy("numpy")):
        torch.manual_seed(0)
        np.random.seed(0)
        trainer(DistributionalTRADESTrainer, digits_classifier).fit(data, batch_size=32, nb_epochs=1)
        states.append((torch.rand(1).item(), np.random.rand()))
    assert len(set(states)) == 1


@pytest.mark.slow
def test_workers_read_the_same_every_time(digits_classifier, monkeypatch):
    seen, found = in_minibatches(monkeypatch, DistributionalTRADESTrainer), []
    for _ in range(2):
        seen.clear()
        loader = DataLoader(Noisy(), batch_size=32, shuffle=True, num_workers=2)
        trainer(DistributionalTRADESTrainer, digits_classifier).fit(loader, nb_epochs=2)
        found.append(torch.cat(seen))
    assert torch.equal(*found)
    assert not torch.equal(found[0][:64].amax((1, 2, 3)).sort()[0], found[0][64:].amax((1, 2, 3)).sort()[0])


def test_labels_beside_a_data_set_of_inputs(digits_classifier, monkeypatch):
    class Plain(Dataset):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> np.ndarray:
            return X[index]

    start, results = weights(digits_classifier), []
    for data in ((Plain(), np.eye(10)[Y[:64]]), (X[:64], Y[:64])):
        digits_classifier.model.load_state_dict(start)
        torch.manual_seed(0)
        trainer(DistributionalTRADESTrainer, digits_classifier).fit(*data, batch_size=32, nb_epochs=1)
        results.append(weights(digits_classifier))
    assert same(*results)


@both
def test_upsilon_is_resampled_from_a_data_set(digits_classifier, kind):
    settings = {"upsilon": "resample", "sample_fraction": 0.5} if kind is DistributionalTRADESTrainer else {}
    digits_classifier.set_params(preprocessing_defences=LabelSmoothing(0.8))
    for data in (Noisy(), DataLoader(Noisy(), batch_size=32)):
        training = trainer(kind, digits_classifier, **settings)
        training.fit(data, batch_size=32, nb_epochs=1)
        assert np.isfinite(training.history[0]["loss"])
    if settings:
        with pytest.raises(ValueError, match="draws from the whole training set, and the"):
            trainer(kind, digits_classifier, **settings).fit(DataLoader(Flowing(), batch_size=32), nb_epochs=1)


class Once(IterableDataset):
    """A stream that is used up by the first reading."""

    def __init__(self) -> None:
        self._items = iter([Noisy()[index] for index in range(64)])

    def __iter__(self):
        return self._items


class UsedUp(IterableDataset):
    """A stream that hides that it is used up."""

    def __init__(self, readings: int) -> None:
        self._left = readings

    def __iter__(self):
        self._left -= 1
        return iter([Noisy()[index] for index in range(64 if self._left >= 0 else 0)])


BAD_DATA = {
    "read once": (Once, {}, ValueError, r"x is a Once that can be read once; needed is one whose __iter__ begins anew"),
    "in a loader": (lambda: DataLoader(Once(), batch_size=9), {}, ValueError, "x is a Once that can be read once"),
    "empty": (lambda: UsedUp(1), {}, ValueError, "x yields no samples; needed is at least one"),
    "no labels": (
        lambda: TensorDataset(torch.from_numpy(X[:9])),
        {},
        TypeError,
        "x yields inputs without labels; need",
    ),
    "labels twice": (Noisy, {"y": Y[:64]}, ValueError, "y is given, and x brings labels of its own; give one of them"),
    "labels of a loader": (
        lambda: DataLoader(Noisy(), batch_size=9),
        {"y": Y[:64]},
        ValueError,
        "y is given, and x is a DataLoader, whose order is its own; needed are pairs of inputs and labels",
    ),
    "too few": (lambda: Noisy(count=9), {"drop_last": True}, ValueError, "x has 9 samples; needed are at least 32"),
    "shape": (lambda: [(X[0, :, 1:], 3)] * 9, {"wrap": True}, ValueError, r"x has the shape \(9, 1, 7, 8\); the cla"),
}


@both
@pytest.mark.parametrize(("make", "more", "error", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_data_that_cannot_train_are_told_before_training(digits_classifier, kind, make, more, error, message):
    start, data, more = weights(digits_classifier), make(), dict(more)
    data = DataLoader(data, batch_size=9) if more.pop("wrap", False) else data
    with pytest.raises(error, match=message):
        trainer(kind, digits_classifier).fit(data, batch_size=32, nb_epochs=1, **more)
    assert same(start, weights(digits_classifier))


def test_a_generator_of_data_that_can_be_read_once_is_told(digits_classifier):
    generator = PyTorchDataGenerator(DataLoader(Once(), batch_size=32), 64, 32)
    with pytest.raises(ValueError, match="generator's data set is a Once that can be read once; needed is one whose"):
        trainer(DistributionalTRADESTrainer, digits_classifier).fit_generator(generator, nb_epochs=1)


def test_data_that_end_are_told_when_they_do(digits_classifier):
    # a look at the class, a look before training, and the first epoch
    with pytest.raises(ValueError, match="x yields no batches in epoch 1; needed is data that can be read again"):
        trainer(DistributionalTRADESTrainer, digits_classifier).fit(UsedUp(4), batch_size=32, nb_epochs=2)


def test_a_checkpoint_of_other_data_or_another_augmentation_is_refused(digits_classifier, tmp_path):
    file = tmp_path / "run.ckpt"
    given = {"batch_size": 32, "nb_epochs": 1, "checkpoint": file, "augment": shift_and_flip(1)}
    trainer(DistributionalTRADESTrainer, digits_classifier).fit(Noisy(), **given)
    for other in (shift_and_flip(2), v2.RandomHorizontalFlip(), None):
        with pytest.raises(ValueError, match="was made with augment = "):
            trainer(DistributionalTRADESTrainer, digits_classifier).fit(Noisy(), **given | {"augment": other})
    with pytest.raises(ValueError, match="was made with data = "):
        trainer(DistributionalTRADESTrainer, digits_classifier).fit(Noisy("numpy"), **given)
    kept = DataLoader(Noisy(), batch_size=32, num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="x is a DataLoader with persistent_workers=True, whose random states no chec"):
        trainer(DistributionalTRADESTrainer, digits_classifier).fit(kept, **given)
    generator, settings = PyTorchDataGenerator(kept, 64, 32), {"nb_epochs": 1, "checkpoint": tmp_path / "other.ckpt"}
    with pytest.raises(ValueError, match="generator's iterator is a DataLoader with persistent_workers=True"):
        trainer(DistributionalTRADESTrainer, digits_classifier).fit_generator(generator, **settings)


@both
def test_an_augmented_run_goes_on_with_the_same_bits(digits_classifier, kind, tmp_path):
    start, results = weights(digits_classifier), []
    for stops in ([3], [1, 2, 3]):
        digits_classifier.model.load_state_dict(start)
        torch.manual_seed(0)
        for stop in stops:
            trainer(kind, digits_classifier).fit(
                X[:64],
                Y[:64],
                batch_size=32,
                nb_epochs=stop,
                checkpoint=tmp_path / f"{len(stops)}.ckpt",
                augment=shift_and_flip(1),
            )
            torch.manual_seed(stop + 1)  # which the checkpoint overrules
        results.append(weights(digits_classifier))
    assert same(*results)


@pytest.mark.parametrize(("samples", "single"), [(33, True), (34, False), (32, False)])
def test_a_last_minibatch_of_one_is_seen(digits_classifier, samples, single):
    data = Noisy(count=samples)
    for source in (data, DataLoader(data, batch_size=16)):
        augmentation = _loaded.Augmentation(digits_classifier)
        found = _loaded.Loaded(digits_classifier, source, augmentation, 16, False, 0).single()
        assert (found is not None) == single
    assert _loaded.Loaded(digits_classifier, data, augmentation, 16, True, 0).single() is None
