# SPDX-License-Identifier: MIT
"""Networks and data as people have them: checkpoints with things around them, grey images, ONNX, standardisation."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from art_wdro._cli.main import main
from art_wdro._sources.data import load_data
from art_wdro._sources.networks import channels_taken, load_classifier
from art_wdro._sources.weights import load_weights
from tests.conftest import DigitsNetwork, digits

FACTORY = """
import torch
from torch import nn
from tests.conftest import DigitsNetwork

class Standardised(DigitsNetwork):
    def forward(self, x):
        return super().forward(2 * x + 60)

def grey():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3))

def colour():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))

class Either(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, x):
        return self.layer(x.mean((1, 2, 3))[:, None])

either = Either
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(FACTORY)
    yield tmp_path
    sys.modules.pop("nets", None)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


class Wrapped(nn.Module):
    """A network whose own name is that which DataParallel gives."""

    def __init__(self) -> None:
        super().__init__()
        self.module = network()


def renamed(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


def load(content: object) -> nn.Module:
    torch.save(content, "w.pth")
    model = network()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    load_weights(model, Path("w.pth"))
    return model


STATE = network().state_dict()
RUN = {"epoch": 3, "optimizer": {"state": {0: {"momentum": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}}
CHECKPOINTS = [
    *(STATE, renamed(STATE, "module."), renamed(STATE, "_orig_mod."), renamed(STATE, "module._orig_mod.")),
    *({key: STATE, **RUN} for key in ("state_dict", "model_state_dict", "model", "net", "anything")),
    {"state_dict": renamed(STATE, "module."), "best": torch.tensor(0.5), "args": {"lr": 0.1}},
    {"state_dict": renamed(STATE, "model."), "hyper_parameters": {}},  # of Lightning
    {"state_dict": renamed(STATE, "model.net."), "loss": torch.zeros(2)},
    {"state_dict": renamed(STATE, "_orig_mod.model.module.")},
    {"checkpoint": {"model": STATE, **RUN}},
    {"model": STATE, "ema": {"0.weight": torch.zeros(1)}},
    {name.replace(".", "._orig_mod.", 1): value for name, value in STATE.items()},
    {("module." if name < "1" else "") + name: value for name, value in STATE.items()},
]


@pytest.mark.parametrize("content", CHECKPOINTS, ids=range(len(CHECKPOINTS)))
def test_checkpoints_of_many_forms(folder, content):
    loaded = load(content).state_dict()
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)


def test_a_network_whose_own_names_are_wrapped(folder):
    for content in (STATE, renamed(STATE, "module."), {"model": renamed(STATE, "module.module.")}):
        torch.save(content, "w.pth")
        model = Wrapped()
        nn.init.zeros_(model.module[3].weight)
        load_weights(model, Path("w.pth"))
        assert torch.equal(model.module[3].weight, STATE["3.weight"])


WRONG = [
    ({"model": STATE, "ema": STATE, **RUN}, r"it fits what the file holds under 'model', 'ema'; save one of them"),
    ({"epoch": 3, "lr": 0.1}, r"the file holds the keys 'epoch', 'lr' and no state dict"),
    ({"a": 1, "b": 2, "c": 3, "d": 4}, r"the keys 'a', 'b', 'c' and 1 more and no state dict"),
    ([STATE], "the file holds list and no state dict"),
    (torch.zeros(3), "the file holds Tensor and no state dict"),
    ({}, "and no state dict"),
    (
        {name: STATE[name] for name in list(STATE)[:3]},
        r"it lacks '1.bias', '1.running_mean', '1.running_var' and 3 more",
    ),
    (STATE | {"head.weight": torch.zeros(1)}, r"the network has no 'head.weight'$"),
    (STATE | {"3.bias": torch.zeros(7)}, r"'3.bias' differ in shape: \(7,\) in the file and \(3,\) in the network"),
    (
        {"net": renamed(STATE, "a.") | {"b": torch.zeros(1)}},
        r"under 'net', it lacks .*; the network has no 'a\.0\.weight'",
    ),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=range(len(WRONG)))
def test_what_does_not_fit_is_named(folder, content, message):
    with pytest.raises(ValueError, match=r"weights are 'w\.pth', which is no state dict of this network: .*" + message):
        load(content)


def test_files_that_are_no_checkpoints(folder):
    torch.save({"state_dict": STATE, "args": types.SimpleNamespace(lr=1)}, "pickle.pth")
    Path("text.pth").write_text("no weights")
    for name in ("pickle.pth", "text.pth"):
        with pytest.raises(ValueError, match=r"damaged, or a pickle of more than tensors.*save model\.state_dict\(\)"):
            load_weights(network(), Path(name))


def images(path: str, modes: tuple[str, ...]) -> np.ndarray:
    """Write a grey image for each mode, and return all as bytes."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (len(modes), 8, 8)).astype(np.uint8)
    for number, (array, mode) in enumerate(zip(grey, modes, strict=True)):
        place = Path(path) / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).convert(mode).save(place / f"{number}.png")
    return grey[[*range(0, len(modes), 2), *range(1, len(modes), 2)]]


@pytest.mark.parametrize(
    ("modes", "own"), [("L", 1), (("L", "LA"), 1), (("L", "RGB"), 3), (("RGB",), 3), (("P", "RGBA"), 3)]
)
def test_channels_of_a_folder(folder, modes, own):
    grey = images("set", tuple(modes) * 2) / 255
    for channels in (None, 1, 3):
        x = load_data("set", channels=channels).x
        assert x.shape == (len(grey), channels or own, 8, 8)
        np.testing.assert_allclose(x, np.repeat(grey[:, None], x.shape[1], 1), atol=1e-6)


def test_colours_become_grey_as_pillow_has_it(folder):
    Path("set/a").mkdir(parents=True)
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8))
    colours.save("set/a/1.png")
    np.testing.assert_allclose(load_data("set", channels=1).x[0, 0], np.asarray(colours.convert("L")) / 255, atol=1e-6)
    np.testing.assert_allclose(load_data("set").x[0], np.asarray(colours).transpose(2, 0, 1) / 255, atol=1e-6)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save("set/a/1.png")
    with pytest.raises(ValueError, match=r"'set/a/1\.png', which cannot be read: .* 8 bits for each channel"):
        load_data("set")


QUICK = ["--device", "cpu", "--no-autoattack", "--no-certified", "--knapsack-iter", "2"]


@pytest.mark.parametrize(
    ("mode", "model", "more", "shape"),
    [
        ("L", "grey", (), 1),
        ("L", "colour", (), 3),
        ("RGB", "grey", (), 1),
        ("RGB", "colour", (), 3),
        ("L", "either", (), 1),
        ("RGB", "either", (), 3),
        ("L", "either", ("--channels", "3"), 3),
        ("RGB", "either", ("--channels", "1"), 1),
    ],
)
def test_images_get_the_channels_that_the_network_takes(folder, mode, model, more, shape):
    grey = images("set", (mode,) * 6)
    main(["evaluate", "--model", f"nets:{model}", "--data", "set", *QUICK, *more, "--arrays", "a.npz"])
    with np.load("a.npz") as arrays:
        np.testing.assert_allclose(arrays["x"], np.repeat(grey[:, None], shape, 1) / 255, atol=1e-6)


def test_channels_that_do_not_fit(folder, capsys):
    images("set", ("L",) * 6)
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", "nets:grey", "--data", "set", *QUICK, "--channels", "3"])
    assert "does not take two inputs of shape (3, 8, 8)" in capsys.readouterr().err
    assert channels_taken(nn.Conv2d(4, 1, 3), (8, 8)) is None


def standardised(**more) -> np.ndarray:
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).state_dict(), "w.pth")
    classifier = load_classifier("nets:colour", (3, 8, 8), weights=Path("w.pth"), device="cpu", **more)
    return classifier.predict(np.random.default_rng(0).random((5, 3, 8, 8), np.float32))


def test_inputs_are_standardised_first(folder, capsys):
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
    found = standardised(standardisation=(mean, std))
    plain.load_state_dict(torch.load("w.pth", weights_only=True))
    x = torch.from_numpy(np.random.default_rng(0).random((5, 3, 8, 8), np.float32))
    inner = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    np.testing.assert_allclose(found, plain(inner).detach(), atol=1e-5)
    np.testing.assert_allclose(
        standardised(standardisation=([0.5], [0.25])), plain((x - 0.5) / 0.25).detach(), atol=1e-5
    )
    np.testing.assert_allclose(standardised(), plain(x).detach(), atol=1e-5)
    np.savez("x.npz", x=x, y=np.zeros(5))
    for more, message in (
        (["--mean", "0.5"], "mean and std are given one without the other"),
        (["--mean", "0.5,0.5", "--std", "1"], "mean has 2 numbers; allowed are 1, and 3 as there are channels"),
        (["--mean", "0", "--std", "1,0,1"], "std is [1.0, 0.0, 1.0]; allowed are numbers > 0"),
        (["--mean", "0,x", "--std", "1"], "'x' is no number"),
    ):
        with pytest.raises(SystemExit):
            main(["evaluate", "--model", "nets:colour", "--data", "x.npz", *QUICK, *more])
        assert message in capsys.readouterr().err


def test_a_network_that_only_guesses_is_pointed_out(folder, capsys, digits_classifier):
    torch.save(digits_classifier.model.state_dict(), "w.pth")
    x, y = digits()[1]
    np.savez("x.npz", x=x[:200], y=y[:200])
    for command in (["evaluate", *QUICK], ["finetune", "--epochs", "0", "--validation", "150", "--out", "o"]):
        arguments = [*command, "--model", "nets:Standardised", "--weights", "w.pth", "--data", "x.npz"]
        main(arguments)
        assert "what guessing among 10 classes can give; does it expect standardised" in capsys.readouterr().err
        main([*arguments, "--mean", "60", "--std", "2"])
        assert "guessing" not in capsys.readouterr().err


def onnx2torch(convert) -> types.ModuleType:
    module = types.ModuleType("onnx2torch")
    module.convert = convert
    return module


def test_onnx(folder, monkeypatch):
    Path("net.onnx").write_bytes(b"onnx")
    monkeypatch.setitem(sys.modules, "onnx2torch", onnx2torch(lambda path: {"net.onnx": DigitsNetwork()}[path]))
    assert load_classifier("net.onnx", (1, 8, 8), device="cpu").nb_classes == 10

    def fail(path):
        raise NotImplementedError("Converter is not\nimplemented")

    monkeypatch.setitem(sys.modules, "onnx2torch", onnx2torch(fail))
    with pytest.raises(ValueError, match="which onnx2torch cannot convert: NotImplementedError: Converter is not imp"):
        load_classifier("net.onnx", (1, 8, 8), device="cpu")
    monkeypatch.setitem(sys.modules, "onnx2torch", None)
    with pytest.raises(ImportError, match=r"ONNX needs onnx2torch .*: pip install '\.\[onnx\]'"):
        load_classifier("net.onnx", (1, 8, 8), device="cpu")
    with pytest.raises(FileNotFoundError, match=r"model is 'no\.onnx', and there is no such file"):
        load_classifier("no.onnx", (1, 8, 8), device="cpu")


def test_onnx_for_real(folder):
    pytest.importorskip("onnx2torch")
    model = DigitsNetwork().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"x": {0: "batch"}}
        torch.onnx.export(
            model, (torch.zeros(2, 1, 8, 8),), "net.onnx", dynamo=False, input_names=["x"], dynamic_axes=axes
        )
    x = digits()[0][0][:7]
    expected = model(torch.from_numpy(x)).detach()
    np.testing.assert_allclose(load_classifier("net.onnx", (1, 8, 8), device="cpu").predict(x), expected, atol=1e-4)
