# SPDX-License-Identifier: MIT
"""What the package takes from a `PyTorchClassifier` of ART: with `_preprocessing`, the one reader of its private side.

It hands the rest of the package tensors on the classifier's device and a function from inputs to
logits, and leaves the classifier as it was.
"""

from __future__ import annotations

import math
import random
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from art.attacks.attack import Attack
from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification import PyTorchClassifier
from art.exceptions import EstimatorError
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from art_wdro._host.outputs import logits_in, number_format
from art_wdro._host.precision import cast_weights, in_precision, with_cast_weights
from art_wdro._host.preprocessing import preprocessing
from art_wdro._host.smoothing import is_smoothed
from art_wdro._storage.arrays import Rows, parts
from art_wdro._storage.descriptions import StandIn, described, described_network

GRAPHS = 64
"""Graphs that torch's compiler may make of one network before it gives up in silence."""
LogitsOf = Callable[[Tensor], Tensor]
"""Maps raw inputs (N, ...) to logits (N, K), differentiably."""


def require_pytorch(owner: type | Callable[..., object], classifier: object) -> None:
    """Refuse an estimator that is not ART's `PyTorchClassifier`.

    :raises EstimatorError: ART's own error, with what was given.
    :raises ValueError: If it predicts by votes under noise, of which its network's logits say nothing.
    """
    if not isinstance(classifier, PyTorchClassifier):
        raise EstimatorError(owner, [PyTorchClassifier], classifier)
    if is_smoothed(classifier):
        raise ValueError(
            f"classifier is a {type(classifier).__name__}, which predicts by votes under noise, not by its network's "
            "logits; give a PyTorchClassifier of the network, whose figures are not those of the smoothed classifier, "
            "or ask certified_radii, certified_accuracy or evaluate"
        )


def require_optimiser(classifier: PyTorchClassifier) -> None:
    """Refuse a classifier that cannot be trained here.

    :raises ValueError: If it has no optimiser, or trains in mixed precision through apex.
    """
    if classifier.optimizer is None:
        raise ValueError("classifier has optimizer=None; needed is a PyTorchClassifier with an optimiser")
    if classifier.use_amp:
        raise ValueError("classifier has use_amp=True (apex); allowed is use_amp=False")


def optimiser(classifier: PyTorchClassifier) -> torch.optim.Optimizer:
    """Return the user's optimiser."""
    own: torch.optim.Optimizer = classifier.optimizer
    return own


def network(classifier: PyTorchClassifier) -> nn.Module:
    """Return the user's own module."""
    own: nn.Module = classifier.model
    return own


def logits_of(
    classifier: PyTorchClassifier, *, training: bool = False, precision: str = "float32", compiled: bool = False
) -> LogitsOf:
    """Return the function from raw inputs (N, ...) to logits (N, K), differentiable in both.

    The classifier's preprocessing is part of it. The module's train or eval mode is the caller's. The network gets a
    tensor of its own, which a layer may overwrite, in its own number format.

    :param training: Apply the preprocessing that ART applies when fitting instead of predicting.
    :param precision: Number format of the passes, a name in `PRECISIONS`.
    :param compiled: Run the network through `torch.compile`; one that is compiled already stays as it is.
    :raises ValueError: From the function, if the network does not put out (N, nb_classes).
    """
    preprocess, own_format = preprocessing(classifier, training), number_format(network(classifier))
    already = is_compiled(network(classifier))
    compiles = compiled and not already
    compiled |= already

    def of(outputs: Callable[[Tensor], Any]) -> LogitsOf:
        def function(x: Tensor) -> Tensor:
            prepared = preprocess(x).to(own_format)
            if prepared.untyped_storage().data_ptr() == x.untyped_storage().data_ptr():
                prepared = prepared.clone()
            with _quietly(compiled):
                output = outputs(prepared)
            return logits_in(output, len(x), classifier.nb_classes).to(torch.promote_types(x.dtype, torch.float32))

        return function

    # ART's wrapper returns the outputs of all layers of an nn.Sequential; the logits are the last
    function = half = of(compiled_network(classifier) if compiles else lambda x: classifier._model(x)[-1])
    if not (training or compiled) and (cast := with_cast_weights(classifier._model, precision)) is not None:
        half = of(lambda x: cast(x)[-1])
    found = in_precision(function, half, precision, classifier.device)
    found.owns_input = True  # type: ignore[attr-defined]
    found.differentiable_once = compiled  # type: ignore[attr-defined]
    return found


def weights_in(
    classifier: PyTorchClassifier, precision: str, compiled: bool
) -> Callable[[], AbstractContextManager[None]]:
    """Return what has to hold around the passes of :func:`logits_of` in training, for as long as weights stand still.

    :param precision: As it was given there.
    :param compiled: As it was given there.
    """
    return cast_weights(classifier._model, precision, compiled or is_compiled(network(classifier)))


def compiled_network(classifier: PyTorchClassifier) -> Callable[[Tensor], Any]:
    """Return the network compiled by torch, for batches of few sizes; on CUDA its passes are graphs.

    :raises ValueError: From the function, if torch cannot compile it.
    """
    from torch._dynamo import config  # which takes a second to import

    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    graphs = classifier.device.type == "cuda"
    model = torch.compile(network(classifier), dynamic=False, mode="reduce-overhead" if graphs else None)
    known = set()

    def function(x: Tensor) -> Any:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        # to compile is rare, and to patch takes as long as a small pass
        kind = x.shape, x.requires_grad, torch.is_grad_enabled()
        try:
            with nullcontext() if kind in known else config.patch({limit: GRAPHS}):
                output = model(x)
            known.add(kind)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            text = " ".join(str(error).partition("Set TORCHDYNAMO_VERBOSE")[0].split())
            raise ValueError(
                f"compile is True, and torch cannot compile the network ({type(error).__name__}: {text[:300]}); "
                "allowed for it is compile=False"
            ) from error
        # the next pass of a graph writes where this one did
        return output.clone() if graphs and isinstance(output, Tensor) else output

    return function


def is_compiled(model: nn.Module) -> bool:
    """Tell whether a network is one of `torch.compile`, which compiles anew for a batch of another size."""
    return hasattr(model, "_orig_mod")


@contextmanager
def eager(classifier: PyTorchClassifier) -> Iterator[None]:
    """Put the network as it was before `torch.compile` in a classifier's place of it, for passes of another size."""
    model = network(classifier)
    if not is_compiled(model):
        yield
        return
    with lock_of(model):
        try:
            classifier._model._model = model._orig_mod
            yield
        finally:
            classifier._model._model = model


@contextmanager
def _quietly(compiled: bool) -> Iterator[None]:
    """Keep torch's compiler from warning of the gradient of its input, which it asks for and nobody wants."""
    if not compiled:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        yield


_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
"""One lock for every network that was changed for a while."""


def lock_of(model: nn.Module) -> threading.RLock:
    """Return the lock of a network: who changes its modes, gradients or weights for a while holds it."""
    return _locks.setdefault(model, threading.RLock())


def _initialise(classifier: PyTorchClassifier) -> None:
    """Let lazy layers take their shapes from one input, as ART's own prediction would."""
    model = classifier._model
    if not any(isinstance(weight, UninitializedParameter) for weight in model.parameters()):
        return
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(preprocessing(classifier, False)(example(classifier)))
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def restored(classifier: PyTorchClassifier) -> Iterator[None]:
    """Put every module back in its own mode afterwards, and every parameter's `.grad` and `requires_grad`.

    Other threads that want to change the same network wait.
    """
    with lock_of(network(classifier)):
        _initialise(classifier)
        # a frozen ScriptModule has no mode
        modes = [(module, module.training) for module in classifier._model.modules() if hasattr(module, "training")]
        parameters = [(weight, weight.grad, weight.requires_grad) for weight in classifier._model.parameters()]

        def restore() -> None:
            for module, mode in modes:
                module.training = mode
            for weight, gradient, trained in parameters:
                weight.requires_grad_(trained).grad = gradient

        try:
            try:
                for weight, _, _ in parameters:
                    weight.grad = None
                yield
            finally:
                restore()
        except BaseException:  # Ctrl-C may come in the middle of restoring
            restore()
            raise


@contextmanager
def evaluating(classifier: PyTorchClassifier) -> Iterator[None]:
    """Put the network in eval mode with its parameters frozen; afterwards restore all of it.

    Frozen, because a compiled network computes the gradients of all parameters that want one, asked or not.
    """
    with restored(classifier), torch.inference_mode(False), differentiable_by_inputs(classifier):
        classifier._model.eval().requires_grad_(False)
        yield


@contextmanager
def differentiable_by_inputs(classifier: PyTorchClassifier) -> Iterator[None]:
    """Switch cuDNN off for a network with recurrent layers, which it cannot differentiate in eval mode."""
    cudnn = torch.backends.cudnn.enabled
    try:
        torch.backends.cudnn.enabled = cudnn and not classifier.is_rnn
        yield
    finally:
        torch.backends.cudnn.enabled = cudnn


@contextmanager
def hint_at_memory(name: str, value: int) -> Iterator[None]:
    """Say which argument to lower when the device's memory is exhausted."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        hint = f"{name} is {value}, too much for the device's memory; lower it"
        raise torch.cuda.OutOfMemoryError(f"{hint}. {error}") from error


@contextmanager
def undisturbed(classifier: PyTorchClassifier, batch_size: int) -> Iterator[None]:
    """Put the network in eval mode; afterwards restore modes, parameter gradients and all random state.

    :param batch_size: What an error names when the device's memory is exhausted.
    """
    cuda = [classifier.device] if classifier.device.type == "cuda" else []
    with lock_of(network(classifier)):
        numpy_state, python_state, torch_state = np.random.get_state(), random.getstate(), torch.get_rng_state()

        def restore() -> None:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
            torch.set_rng_state(torch_state)

        try:
            try:
                with (
                    torch.random.fork_rng(devices=cuda),
                    evaluating(classifier),
                    hint_at_memory("batch_size", batch_size),
                ):
                    yield
            finally:
                restore()
        except BaseException:  # Ctrl-C may come in the middle of restoring
            restore()
            raise


def box(classifier: PyTorchClassifier) -> tuple[Tensor, Tensor] | None:
    """Return the bounds of the inputs on the classifier's device, shaped to broadcast over samples.

    :raises ValueError: If `clip_values` are arrays that fit no sample.
    """
    if classifier.clip_values is None:
        return None
    if any(np.isnan(np.asarray(bound, dtype=float)).any() for bound in classifier.clip_values):
        raise ValueError("clip_values hold NaN; needed are finite ones, or inf where there is no bound")
    lower, upper = (_bound(value, tuple(classifier.input_shape)) for value in classifier.clip_values)
    return lower.to(classifier.device), upper.to(classifier.device)


def _bound(value: np.ndarray, shape: tuple[int | None, ...]) -> Tensor:
    tensor = torch.as_tensor(np.asarray(value, dtype=np.float32))
    sizes = [size for size in shape if size is not None]
    if len(sizes) < len(shape):
        return tensor
    if tensor.numel() == math.prod(sizes):
        return tensor.reshape(sizes)
    try:
        torch.broadcast_to(tensor, sizes)
    except RuntimeError:
        raise ValueError(
            f"clip_values have the shape {tuple(tensor.shape)}; needed is one that fits inputs of shape {shape}"
        ) from None
    return tensor


def identity(classifier: PyTorchClassifier, *, fixed: bool) -> dict[str, Any]:
    """Describe what a classifier does to its inputs in plain values.

    :param classifier: The classifier.
    :param fixed: Whether weights, and plain attributes of the network, count: not where training changes them.
    :raises ValueError: If a part of it cannot be compared.
    """
    clip, steps = classifier.clip_values, enumerate(classifier.preprocessing_operations)
    model = network(classifier)
    held = described_parts(classifier, {"loss of the classifier": classifier.loss})
    operations = described_parts(
        classifier, {f"preprocessing step {number} of the classifier": step for number, step in steps}
    )
    return held | {
        "network": described_network(model, attributes=fixed),
        "preprocessing": list(operations.values()),
        "clip_values": None if clip is None else [np.asarray(bound, dtype=float).tolist() for bound in clip],
        "weights": [
            [name, list(getattr(values, "shape", ())), described(values) if fixed else ""]
            for name, values in model.state_dict().items()
        ],
    }


def described_parts(classifier: PyTorchClassifier, values: dict[str, Any]) -> dict[str, str]:
    """Describe what belongs to a run beside a classifier; where it holds the classifier itself, that is not described.

    :param classifier: The classifier that is attacked or trained.
    :param values: Values by the names that errors give them.
    :raises ValueError: If one cannot be compared with that of another run.
    """
    found = {}
    for name, value in values.items():
        try:
            found[name] = described(value, _stand_in(classifier))
        except ValueError as error:
            raise ValueError(
                f"{name} is {value!r}, and {error}; allowed with a checkpoint, or over ranks, are functions, modules "
                "and objects of plain attributes"
            ) from error
    return found


def _stand_in(classifier: PyTorchClassifier) -> StandIn:
    """Return what is described in the place of a value: parts of the classifier by name, of ART what defines it."""
    parts_of = {"the classifier": classifier, "the network": classifier.model, "the model": classifier._model}
    parts_of |= {} if classifier.optimizer is None else {"the optimiser": classifier.optimizer}
    known = {id(part): name for name, part in parts_of.items()}

    def stand_in(value: Any) -> Any:
        if id(value) in known:
            return known[id(value)]
        if isinstance(value, PyTorchClassifier):
            return identity(value, fixed=id(network(value)) not in known)
        if isinstance(value, Preprocessor):
            # what ART computes in the first call is left out
            return [type(value), {k: v for k, v in vars(value).items() if not k.startswith("_broadcastable_")}]
        if isinstance(value, Attack):
            names = {*value.attack_params}
            if type(value).__module__.partition(".")[0] not in ("art", "art_wdro"):
                # others may not list all of their parameters; what an attack leaves behind ends in an underscore
                names |= {name for name in vars(value) if name.strip("_") == name}
            held = {name: getattr(value, name, None) for name in sorted(names - {"verbose", "summary_writer"})}
            return ["attack", type(value), held, value.estimator]
        return value

    return stand_in


def batches_of(classifier: PyTorchClassifier, batch_size: int, *arrays: Tensor) -> Iterator[tuple[Any, ...]]:
    """Yield rows and their values in each array, in batches on the classifier's device."""
    data = [Rows(array, classifier.device) for array in arrays]
    return ((rows, *(array[rows] for array in data)) for rows in parts(len(arrays[0]), batch_size))


def example(classifier: PyTorchClassifier) -> Tensor:
    """Return one input inside the box, (1, ...), on the classifier's device.

    :raises ValueError: If `input_shape` leaves a dimension open.
    """
    shape = tuple(classifier.input_shape)
    if None in shape:
        raise ValueError(f"classifier has input_shape={shape}; needed is one without open dimensions")
    x = torch.zeros(1, *shape, device=classifier.device)
    bounds = box(classifier)
    return x if bounds is None else x.clamp(*bounds)
