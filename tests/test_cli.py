# SPDX-License-Identifier: MIT
"""The command line as a user runs it, in files of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from art_wdro._cli.checks import chance_warning, check_eps
from art_wdro._cli.main import main
from art_wdro._sources.data import load_data
from art_wdro._sources.networks import load_classifier
from art_wdro._storage import files
from tests.conftest import DigitsNetwork, digits

FACTORY = """
import torch
from tests.conftest import DigitsNetwork

def network():
    return DigitsNetwork()

def number():
    return 3

def broken():
    raise RuntimeError("no luck")
"""


@pytest.fixture(scope="module")
def originals(tmp_path_factory, _trained_state):
    """Digits as npz, and one network in every form."""
    path = tmp_path_factory.mktemp("originals")
    x, y = digits()[1]
    np.savez(path / "digits.npz", x=(255 * x[:120, 0]).astype(np.uint8), y=y[:120])
    model = DigitsNetwork()
    model.load_state_dict(_trained_state)
    model.eval()
    torch.save(model.state_dict(), path / "weights.pth")
    example = torch.zeros(2, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, example).save(str(path / "network.pt"))
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path / "network.pt2")
    (path / "factory.py").write_text(FACTORY)
    (path / "syntax.py").write_text("def")
    (path / "junk.pt2").write_text("junk")
    (path / "junk.npz").write_bytes(b"PK\x03\x04 hello")
    (path / "empty.npz").write_bytes(b"")
    np.savez(path / "wide.npz", x=np.zeros((3, 9, 9)), y=np.zeros(3))
    np.savez(path / "range.npz", x=np.linspace(0, 16, 2 * 64).reshape(2, 8, 8), y=np.zeros(2))
    np.savez(path / "nan.npz", x=np.full((3, 8, 8), np.nan), y=np.zeros(3))
    np.savez(path / "halves.npz", x=np.zeros((3, 8, 8)), y=np.full(3, 0.5))
    np.savez(path / "words.npz", x=np.zeros((3, 8, 8)), y=np.array(["a", "b", "c"]))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch, originals):
    """A folder of one's own with everything in it."""
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("factory", None)


MODELS = [
    ["--model", "network.pt", "--trust"],
    ["--model", "network.pt2"],
    ["--model", "factory:network", "--weights", "weights.pth"],
]
QUICK = ["--samples", "40", "--no-autoattack", "--knapsack-iter", "20", "--eps", "1/20", "--device", "cpu"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("model", MODELS, ids=["torchscript", "exported", "factory"])
def test_evaluate(folder, model, capsys):
    if model == MODELS[1] and torch.__version__.startswith("2.4"):
        pytest.skip("programs exported by torch 2.4 refuse some strides of their own convolutions")
    files = ["--json", "out/a.json", "--markdown", "a.md", "--figure", "a.png", "--arrays", "a.npz"]
    main(["evaluate", *model, "--data", "digits.npz", *QUICK, *files])
    assert "knapsack" in capsys.readouterr().out
    found = json.loads(Path("out/a.json").read_text())
    assert found["complete"]
    assert found["samples"] == len(found["indices"]) == 40
    assert found["eps"] == 0.05
    assert found["drawn_from"] == 120
    labels = np.load("digits.npz")["y"]
    drawn = np.bincount(labels[found["indices"]], minlength=10)
    assert (abs(drawn - np.bincount(labels) / 3) < 1).all()  # every class in proportion
    assert Path("a.md").read_text().startswith("| threat |")
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    with np.load("a.npz") as arrays:
        assert arrays["knapsack"].shape == arrays["x"].shape == (40, 1, 8, 8)
        assert arrays["indices"].tolist() == found["indices"]
        np.testing.assert_array_equal(arrays["none"], arrays["x"])  # both parts are the same
        with np.load("digits.npz") as data:
            np.testing.assert_array_equal(arrays["y"], data["y"][arrays["indices"]])
    assert not list(folder.rglob(".*-*"))  # no temporary file is left


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_form_of_a_network_is_the_same_network(folder):
    forms = [
        load_classifier("network.pt", (1, 8, 8), device="cpu", trust=True),
        load_classifier("network.pt2", (1, 8, 8), device="cpu"),
        load_classifier("factory:network", (1, 8, 8), weights=Path("weights.pth"), device="cpu"),
    ]
    x = digits()[1][0][:30]
    for form in forms:
        np.testing.assert_allclose(form.predict(x), forms[0].predict(x), atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("model", MODELS, ids=["torchscript", "exported", "factory"])
@pytest.mark.parametrize("start", ["none", "perturb", "last-layer"])
def test_finetune(folder, model, start, capsys):
    if start != "none" and model != MODELS[2]:
        pytest.skip("the starts are the same for all forms")
    if model == MODELS[1] and torch.__version__.startswith("2.4"):
        pytest.skip("programs exported by torch 2.4 refuse some strides of their own convolutions")
    more = ["--epochs", "2", "--validation", "30", "--batch-size", "32", "--max-iter", "3", "--start", start]
    main(["finetune", *model, "--data", "digits.npz", "--out", "tuned.pth", "--json", "t.json", "--eps", "0.05", *more])
    shown = capsys.readouterr().out
    assert "Saved tuned.pth" in shown
    found = json.loads(Path("t.json").read_text())
    assert found["complete"]
    assert len(found["history"]) == 2
    figures = found["start"]
    assert f"start  clean_accuracy {figures['clean_accuracy']:.4g}  wp_accuracy {figures['wp_accuracy']:.4g}" in shown
    assert (figures["clean_accuracy"] > 0.8) == (start != "last-layer")
    assert figures["wp_accuracy"] <= figures["clean_accuracy"]
    before, after = (torch.load(name, weights_only=True) for name in ("weights.pth", "tuned.pth"))
    assert any(not torch.equal(before[k], after[k]) for k in before)
    main(["evaluate", "--model", "factory:network", "--weights", "tuned.pth", "--data", "digits.npz", *QUICK])


def test_finetune_by_margins_takes_that_trainers_own_defaults(folder, capsys):
    command = ["finetune", "--trainer", "margin", *MODELS[2], "--data", "digits.npz", "--validation", "30"]
    command += ["--batch-size", "32", "--epochs", "1", "--seed", "3", "--eps", "0.05", "--start", "none"]
    main([*command, "--out", "given.pth", "--json", "t.json", "--beta", "0.5", "--max-iter", "10", "--anchor", "1"])
    found = json.loads(Path("t.json").read_text())
    assert (found["trainer"], found["beta"], found["max_iter"], found["anchor"]) == ("margin", "0.5", "10", "1.0")
    assert found["history"][0]["tau"] > 0.05
    main([*command, "--out", "default.pth"])
    main([*command, "--out", "other.pth", "--beta", "6"])
    given, default, other = (torch.load(f"{name}.pth", weights_only=True) for name in ("given", "default", "other"))
    assert all(torch.equal(given[name], default[name]) for name in given)
    assert not all(torch.equal(given[name], other[name]) for name in given)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", "no.pth", "--gamma", "1", "--upsilon", "resample"])
    assert stop.value.code == 2
    assert "trainer is margin, which does not have --gamma, --upsilon" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--out", "no.pth", "--trainer", "trades", "--anchor", "0.5"])
    assert "trainer is trades, which does not have --anchor; give it to the other one" in capsys.readouterr().err
    assert not Path("no.pth").exists()


def test_finetune_goes_on_from_a_checkpoint(folder, capsys):
    command = ["finetune", "--model", "factory:network", "--weights", "weights.pth", "--data", "digits.npz"]
    command += ["--validation", "30", "--batch-size", "32", "--max-iter", "2", "--json", "t.json"]
    for epochs, more in (("3", []), ("1", ["--checkpoint", "run.ckpt"]), ("3", ["--checkpoint", "run.ckpt"])):
        main([*command, "--epochs", epochs, "--out", f"tuned-{len(more)}.pth", *more])
    assert len(json.loads(Path("t.json").read_text())["history"]) == 3
    whole, resumed = (torch.load(f"tuned-{n}.pth", weights_only=True) for n in (0, 2))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*command, "--epochs", "3", "--out", "tuned.pth", "--checkpoint", "run.ckpt", "--eps", "0.2"])
    assert stop.value.code == 2
    assert "was made with eps" in capsys.readouterr().err


def test_finetune_by_a_recipe(folder, capsys):
    """Every option of a recipe changes what comes out, and a run goes on from its checkpoint with all of them."""
    command = ["finetune", *MODELS[2], "--data", "digits.npz", "--validation", "30", "--batch-size", "32"]
    command += ["--max-iter", "2", "--epochs", "2", "--eps", "0.05", "--learning-rate", "0.05"]
    options = ["--augment shift-and-flip", "--schedule one-cycle", "--schedule cosine", "--ema 0.9"]
    options += ["--weight-perturbation 0.02", "--max-grad-norm 0.1", "--update-precision bfloat16"]
    found = {}
    for number, option in enumerate(["", *options]):
        main([*command, *option.split(), "--out", f"{number}.pth"])
        found[option] = torch.load(f"{number}.pth", weights_only=True)["head.weight"]
    assert len({weight.numpy().tobytes() for weight in found.values()}) == len(found)
    recipe = [*command, *" ".join([*options[:2], *options[3:]]).split(), "--logdir", "logs", "--json", "t.json"]
    main([*recipe, "--out", "whole.pth"])
    for _ in range(2):  # the second one only reads
        main([*recipe, "--out", "again.pth", "--checkpoint", "run.ckpt", "--checkpoint-minutes", "0"])
    whole, again = (torch.load(f"{name}.pth", weights_only=True) for name in ("whole", "again"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    told = json.loads(Path("t.json").read_text())
    assert (told["augment"], told["schedule"], told["ema"]) == ("shift-and-flip", "one-cycle", "0.9")
    assert len(list(Path("logs").glob("events*"))) == 3
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", "no.pth", "--ema", "1"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "art-wdro: ema is 1.0; allowed is a number >= 0 and < 1\n"


@pytest.mark.slow
def test_sigterm_saves_the_run(folder):
    command = [sys.executable, "-m", "art_wdro", "finetune", *MODELS[2], "--data", "digits.npz", "--out", "tuned.pth"]
    command += ["--epochs", "100000", "--batch-size", "32", "--max-iter", "2", "--validation", "20"]
    command += ["--checkpoint", "run.ckpt"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not Path("run.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "asked to end: the run is saved in 'run.ckpt', and the same call goes on from there" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_interrupt_leaves_what_was_finished(folder):
    command = [sys.executable, "-m", "art_wdro", "finetune", *MODELS[2], "--data", "digits.npz", "--out", "tuned.pth"]
    command += ["--epochs", "100000", "--batch-size", "32", "--max-iter", "2", "--validation", "20", "--json", "t.json"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    # whoever runs the tests in the background may have had SIGINT ignored, which children inherit
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while not Path("t.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finished parts are in t.json, tuned.pth" in stderr
    assert stderr.endswith("art-wdro: interrupted\n")
    found = json.loads(Path("t.json").read_text())
    assert not found["complete"]
    assert found["history"]
    DigitsNetwork().load_state_dict(torch.load("tuned.pth", weights_only=True))


USAGE = [
    (["evaluate"], "Missing option '--model'"),
    (["evaluate", "--model", "x", "--data", "digits.npz"], "model is 'x'; allowed are module:function"),
    (["evaluate", "--model", "no.pt", "--data", "digits.npz"], "model is 'no.pt', and there is no such file"),
    (["evaluate", "--model", "weights.pth", "--data", "digits.npz"], "which is no TorchScript file"),
    (["evaluate", "--model", "network.pt", "--data", "digits.npz"], "which may write any file; give --trust"),
    (["evaluate", "--model", "factory:no", "--data", "digits.npz"], "factory has no no"),
    (["evaluate", "--model", "nowhere:no", "--data", "digits.npz"], "nowhere cannot be imported"),
    (["evaluate", "--model", "factory:number", "--data", "digits.npz"], "which returns a int and no torch module"),
    (
        ["evaluate", *MODELS[0], "--weights", "no", "--data", "digits.npz"],
        "weights are 'no', and there is no such file",
    ),
    (["evaluate", *MODELS[0], "--data", "no.npz"], "data is 'no.npz', and there is no such file"),
    (["evaluate", *MODELS[0], "--data", "digits.csv"], "data is 'digits.csv'; allowed are a file .npz"),
    (["evaluate", *MODELS[0], "--data", "torchvision:No"], "torchvision has no data set 'No'"),
    (["evaluate", *MODELS[0], "--data", "torchvision:MNIST"], "data does not hold it"),
    (["evaluate", *MODELS[0], "--data", "digits.npz", "--samples", "121"], "samples is 121; allowed is at most 120"),
    (["evaluate", *MODELS[0], "--data", "digits.npz", "--eps", "much"], "'much' is no number"),
    (["compare", "digits.npz", "factory.py"], "'digits.npz' is no report: it is no JSON"),
    (["compare", "none.json", "none.json"], "'none.json': No such file"),
    (["evaluate", *MODELS[0], "--data", "digits.npz", "--norm", "3"], "norm is 3.0; allowed is one of 1, 2, inf"),
    (
        ["finetune", *MODELS[2], "--data", "digits.npz", "--out", "o", "--validation", "120"],
        "validation is 120; allowed",
    ),
    (["evaluate", *MODELS[0], "--data", "digits.npz", "--device", "nonsense"], "device is 'nonsense'; allowed here is"),
    (["evaluate", *MODELS[0], "--data", "digits.npz", "--device", "meta"], "device is 'meta'; allowed here is"),
    (["evaluate", *MODELS[0], "--data", "wide.npz"], "the network does not take two inputs of shape (1, 9, 9)"),
    (["evaluate", "--model", "junk.pt2", "--data", "digits.npz"], "which is no file of torch.export"),
    (["evaluate", "--model", "factory:broken", "--data", "digits.npz"], "which raised RuntimeError: no luck"),
    (["evaluate", "--model", "syntax:no", "--data", "digits.npz"], "which raised SyntaxError"),
    (["evaluate", *MODELS[0], "--data", "junk.npz"], "data is 'junk.npz', which cannot be used"),
    (["evaluate", *MODELS[0], "--data", "empty.npz"], "data is 'empty.npz', which cannot be used"),
    (["evaluate", *MODELS[0], "--data", "range.npz"], "x lies in [0, 16]; allowed are images in bytes"),
    (["evaluate", *MODELS[0], "--data", "nan.npz"], "x holds NaN or inf; allowed are finite numbers"),
    (["evaluate", *MODELS[0], "--data", "halves.npz"], "y holds labels that are no whole numbers"),
    (["evaluate", *MODELS[0], "--data", "words.npz"], "y has the dtype <U1; allowed are class indices"),
    (["evaluate", *MODELS[0], "--data", "digits.npz", "--json", "digits.npz/a.json"], "where no file can be written"),
    (["evaluate", *MODELS[0], "--data", "digits.npz", "--figure", "a.xyz"], "figure is 'a.xyz'; allowed endings are"),
    (["evaluate", *MODELS[0], "--data", "torchvision:SVHN"], "data does not hold it"),
    (["evaluate", *MODELS[0], "--data", "digits.npz", "--eps", "8"], "at most 1 apart in l_inf; did you mean 8/255?"),
    (
        ["finetune", *MODELS[2], "--data", "digits.npz", "--out", "o", "--validation", "9", "--eps", "16"],
        "did you mean 16/255?",
    ),
    (
        ["evaluate", *MODELS[0], "--data", "digits.npz", "--eps", "8", "--norm", "2"],
        "at most 8 apart in l_2; did you mean",
    ),
    (
        ["evaluate", *MODELS[0], "--data", "digits.npz", "--eps", "64", "--norm", "1"],
        "at most 64 apart in l_1; did you",
    ),
    (["evaluate", *MODELS[0], "--data", "digits.npz", "--eps", "inf"], "apart in l_inf; --allow-large-eps takes it"),
    (["evaluate", *MODELS[0], "--data", "digits.npz", "--eps", "nan"], "eps is nan; allowed is a number >= 0"),
    (["reproduce", "table1", "--eps", "8"], "did you mean 8/255?"),
    (["demo", "--eps", "8"], "did you mean 8/255?"),
    (["demo", "--eps", "8/0"], "invalid fraction value: '8/0'"),
    (["demo", "--data", "nothing"], "invalid choice: 'nothing'"),
    (["nothing"], "No such command 'nothing'"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE)
def test_usage_errors_are_one_line_and_exit_with_2(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_large_budgets(folder, capsys):
    assert check_eps(0.99, np.inf, (3, 8, 8), False) is check_eps(7.9, 2.0, (64,), False) is None
    assert check_eps(1.0, np.inf, (3, 8, 8), True) is check_eps(8.0, 2.0, (64,), True) is None
    for eps, norm in ((1.0, np.inf), (8.0, 2.0), (64.0, 1.0)):
        with pytest.raises(ValueError, match=rf"eps is {eps:g}, .* did you mean {eps:g}/255\?"):
            check_eps(eps, norm, (1, 8, 8), False)
    assert check_eps(12.0, 1.0, (3, 8, 8), False) == "eps is 12, for inputs in [0, 1]; did you mean 12/255?"
    command = ["evaluate", *MODELS[2], "--data", "digits.npz", *QUICK, "--norm", "2", "--p", "2"]
    main([*command, "--eps", "3"])
    assert "Warning: eps is 3, for inputs in [0, 1]; did you mean 3/255?" in capsys.readouterr().err
    main([*command, "--eps", "9", "--allow-large-eps"])
    shown = capsys.readouterr()
    assert "did you mean" not in shown.err
    assert "eps = 9" in shown.out


def test_accuracies_of_chance():
    labels = np.arange(1000) % 10
    assert "5.0 %, what guessing among 10 classes can give" in chance_warning(0.05, labels, 10)
    assert chance_warning(0.115, labels, 10) is not None
    assert chance_warning(0.12, labels, 10) is None
    assert chance_warning(0.02, labels, 100).startswith("the clean accuracy is 2.0 %, less than the 10.0 % of the most")
    skewed = np.repeat([0, 1, 2], [900, 50, 50])
    assert chance_warning(0.7, skewed, 3).startswith("the clean accuracy is 70.0 %, less than the 90.0 % of the most")
    assert chance_warning(0.89, skewed, 3) is chance_warning(1.0, skewed, 3) is chance_warning(1.0, labels, 10) is None
    assert chance_warning(0.4, skewed, 3) is not None
    assert chance_warning(1.0, np.zeros(5, int), 3) is None
    assert "what guessing among" in chance_warning(0.0, labels[:1], 10)


def test_the_demo_looks_for_its_packages_first(folder, capsys, monkeypatch):
    monkeypatch.setattr("art_wdro._cli.demo.run", lambda _: pytest.fail("it has begun"))
    for name in ("matplotlib", "sklearn"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(SystemExit) as stop:
                main(["demo"])
        assert stop.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith("art-wdro demo: the demo needs more packages (")
        assert name in line
        assert "pip install '.[demo]'" in line


@pytest.mark.parametrize("command", ["evaluate", "finetune", "demo"])
def test_help(command, capsys):
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--json", "--seed", "--device", command))


def test_weights_of_another_network_are_refused(folder, capsys):
    torch.save(nn.Linear(3, 2).state_dict(), "other.pth")
    with pytest.raises(SystemExit):
        main(["evaluate", "--model", "factory:network", "--weights", "other.pth", "--data", "digits.npz"])
    assert "which is no state dict of this network" in capsys.readouterr().err


def test_folder_of_images(tmp_path):
    for name, size in (("a", 10), ("b", 10), ("c", 14)):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(np.full((size, size, 3), 100, np.uint8)).save(tmp_path / "set" / name / "1.png")
    data = load_data(str(tmp_path / "set"), size=8)
    assert data.x.shape == (3, 3, 8, 8)
    assert data.y.tolist() == [0, 1, 2]
    np.testing.assert_allclose(data.x, 100 / 255, atol=1e-6)
    with pytest.raises(ValueError, match="whose images have 2 different sizes; give a size"):
        load_data(str(tmp_path / "set"))
    with pytest.raises(ValueError, match="which is no folder of images"):
        load_data(str(tmp_path / "set" / "a"))


def test_npz_of_something_else(tmp_path):
    np.savez(tmp_path / "a.npz", a=1)
    with pytest.raises(ValueError, match="needed are x and y"):
        load_data(str(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", x=np.zeros((2, 3)), y=np.zeros(3))
    with pytest.raises(ValueError, match="2 inputs and y 3 labels"):
        load_data(str(tmp_path / "b.npz"))


def test_forms_of_arrays(tmp_path):
    x = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    np.savez(tmp_path / "a.npz", x=x, y=np.eye(4)[[3, 1]])
    data = load_data(str(tmp_path / "a.npz"))
    assert data.y.tolist() == [3, 1]
    np.testing.assert_allclose(data.x, x.transpose(0, 3, 1, 2) / 255, atol=1e-7)
    np.savez(tmp_path / "b.npz", x=np.eye(3, dtype=np.uint8), y=np.arange(3)[:, None])
    assert load_data(str(tmp_path / "b.npz")).x.max() == 1


def test_links_modes_and_endings_of_files(tmp_path, folder):
    (folder / "real.json").write_text("old")
    (folder / "real.json").chmod(0o640)  # that of a temporary file is another
    (folder / "link.json").symlink_to("real.json")
    files.write_text(Path("link.json"), "new")
    assert (folder / "link.json").is_symlink()
    assert (folder / "real.json").read_text() == "new"
    assert (folder / "real.json").stat().st_mode & 0o777 == 0o640
    main(["evaluate", *MODELS[0], "--data", "digits.npz", *QUICK, "--arrays", "a/arrays", "--figure", "a/figure"])
    assert sorted(path.name for path in (folder / "a").iterdir()) == ["arrays", "figure"]
    assert (folder / "a/figure").read_bytes().startswith(b"\x89PNG")
    with np.load("a/arrays") as arrays:
        assert "knapsack" in arrays


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
