# SPDX-License-Identifier: MIT
"""Whatever goes wrong on the command line is one line that says what, and exit code 2."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from art_wdro._cli.main import main
from art_wdro._cli.outputs import save, save_text
from art_wdro._sources import data as sources
from art_wdro._sources.networks import load_classifier
from art_wdro._storage import files

FACTORY = """
import sys
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self, trouble=None):
        super().__init__()
        self.layer, self.trouble = nn.Linear(64, 10), trouble

    def forward(self, x):
        if len(x) != 2 and self.trouble:
            self.trouble()
        return self.layer(x.flatten(1))

class OwnError(Exception):
    pass

def own():
    raise OwnError("first\\nsecond")

def leave():
    sys.exit("bye")

def silent():
    assert False

def empty():
    return {}["key"]

def endless():
    return endless()

good = Network

def wrong_shapes():
    return Network(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3))

def too_large():
    return Network(lambda: torch.zeros(10**15))

def no_memory():
    def fail():
        raise MemoryError
    return Network(fail)

def out_of_cuda():
    def fail():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    return Network(fail)

def own_later():
    return Network(own)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("trouble.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    np.savez("x.npz", x=rng.random((30, 8, 8)), y=rng.integers(0, 10, 30))
    for label in "ab":
        Path("images", label).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(f"images/{label}/1.png")
    yield tmp_path
    sys.modules.pop("trouble", None)


def error_of(capsys, *arguments: str) -> str:
    """The one line that a command leaves behind."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match("art-wdro( demo)?: ", line)
    assert "Traceback" not in line
    return line


def evaluate(capsys, *, model: str = "trouble:good", data: str = "x.npz", more: tuple[str, ...] = ()) -> str:
    return error_of(capsys, "evaluate", "--model", model, "--data", data, "--device", "cpu", *more)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("own", "trouble:own', which raised OwnError: first second"),
        ("leave", "which raised SystemExit: bye"),
        ("silent", "which raised AssertionError"),
        ("empty", "which raised KeyError: 'key'"),
        ("endless", "which raised RecursionError: maximum recursion depth exceeded"),
        ("nothing", "and trouble has no nothing"),
        ("wrong_shapes", "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"),
        ("own_later", "OwnError: first second"),
        ("no_memory", "out of memory (MemoryError); fewer samples, smaller images or a smaller batch size need less"),
        ("too_large", "fewer samples, smaller images or a smaller batch size need less"),
        ("out_of_cuda", "batch_size is 128, too much for the device's memory; lower it. CUDA out of memory"),
    ],
)
def test_trouble_in_the_users_own_code(folder, capsys, function, message):
    assert message in evaluate(capsys, model=f"trouble:{function}")


@pytest.mark.parametrize("module", ["no_such_module", ".relative", "a..b", "", "trouble.", "1/2"])
def test_modules_that_are_none(folder, capsys, module):
    assert f"model is '{module}:f', " in evaluate(capsys, model=f"{module}:f")


def test_tracebacks_are_there_for_those_who_ask(folder, monkeypatch):
    monkeypatch.setenv("ART_WDRO_TRACEBACK", "1")
    with pytest.raises(ValueError, match="which raised OwnError"):
        main(["evaluate", "--model", "trouble:own", "--data", "x.npz"])


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


TUNE = ["finetune", "--model", "trouble:good", "--data", "x.npz", "--validation", "10", "--device", "cpu"]
TUNE += ["--epochs", "1", "--max-iter", "1"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_full_disk(folder, capsys, monkeypatch):
    with pytest.raises(OSError, match="'/dev/full' cannot be written: No space left on device"):
        save(Path("/dev/full"), lambda path: path.write_bytes(b"x"))
    assert "'/dev/full' cannot be written: No space left" in error_of(capsys, *TUNE, "--out", "/dev/full")
    assert "'/dev/full' cannot be written: No space left" in error_of(
        capsys, *TUNE, "--out", "o", "--json", "/dev/full"
    )
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="'a' cannot be written: No space left on device"):
        save_text(Path("a"), "text")
    line = error_of(capsys, *TUNE, "--out", "o", "--checkpoint", "run.ckpt")
    assert "run.ckpt' cannot be written (No space left on device); what was there before is as it was" in line
    assert f"o, run.ckpt, or a temporary file in {tempfile.gettempdir()}" in line


def test_where_no_file_can_be_written(folder, capsys, monkeypatch):
    Path("folder").mkdir()
    long = "a" * 256
    for option in ("--json", "--markdown", "--figure", "--arrays"):
        for path in (long, f"new/{long}.png", f"{'b' * 300}/a.png", "/".join(["c" * 200] * 30)):
            line = evaluate(capsys, model="no", data="no", more=(option, path))
            assert f"{option[2:]} is '{path}', where no file can be written: " in line
            assert "too long" in line
        assert "is a directory" in evaluate(capsys, model="no", data="no", more=(option, "folder"))
        assert "Not a directory" in evaluate(capsys, model="no", data="no", more=(option, "x.npz/a"))
    assert "is a directory" in error_of(capsys, *TUNE, "--out", "o", "--checkpoint", "folder")
    assert list(folder.glob(".*")) == list(folder.glob("new")) == []

    def refused(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files.tempfile, "mkstemp", refused)
    line = evaluate(capsys, model="no", data="no", more=("--json", "a"))
    assert "json is 'a', where no file can be written: Permission denied" in line
    assert "figure is 'a'" in error_of(capsys, "demo", "--figure", "a")


def test_a_directory_or_a_locked_file_where_one_is_read(folder, capsys, monkeypatch):
    for name in ("d.pt", "d.pt2", "d.npz"):
        Path(name).mkdir()
        if name != "d.npz":
            assert f"model is '{name}', which is a directory; needed is a file" in evaluate(capsys, model=name)
    assert "data is 'd.npz', which is no folder of images" in evaluate(capsys, data="d.npz")
    assert "directory" in evaluate(capsys, more=("--weights", "d.pt"))
    for name in ("a" * 300, "/".join(["c" * 200] * 30)):
        for ending in (".pt", ".pt2"):
            assert "File name too long" in evaluate(capsys, model=name + ending)
        assert "File name too long" in evaluate(capsys, data=f"{name}.npz")
        assert "File name too long" in evaluate(capsys, more=("--weights", name))
    monkeypatch.setattr(os, "access", lambda *_: False)
    Path("a.pt").touch()
    with pytest.raises(PermissionError, match=r"model is 'a\.pt', which may not be read"):
        load_classifier("a.pt", (64,))
    assert "data is 'x.npz', which may not be read" in evaluate(capsys, data="x.npz")


def test_broken_networks(folder, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)).save("good.pt")
    torch.save({"a": torch.zeros(1000)}, "state.pth")
    for source, names in (("good.pt", ("cut.pt", "cut.pth", "cut.ts", "cut.pt2")), ("state.pth", ("cut.pth",))):
        content = Path(source).read_bytes()
        for name in names:
            for size in (0, 10, len(content) // 2, len(content) - 10):
                Path(name).write_bytes(content[:size])
                line = evaluate(capsys, model=name, more=("--trust",))
                assert f"model is '{name}', which is no " in line
    damaged = bytearray(Path("good.pt").read_bytes())
    start = damaged.find(b"code/") + 60
    damaged[start : start + 40] = b"?" * 40
    Path("damaged.pt").write_bytes(damaged)
    assert "a TorchScript file that cannot be read: " in evaluate(capsys, model="damaged.pt", more=("--trust",))
    with zipfile.ZipFile("bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive, zipfile.ZipFile("state.pth") as original:
        for name in original.namelist():
            archive.writestr(name, original.read(name) + bytes(10**6 * name.endswith("data/0")))
    line = evaluate(capsys, more=("--weights", "bomb.pth"))
    assert "weights are 'bomb.pth'" in line
    assert "its members are compressed" in line


def huge(shape: str) -> bytes:
    """An array that says it is larger than it is."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": (2, 64), "fortran_order": False, "descr": "<f8"})
    header = buffer.getvalue()
    return header.replace(b"(2, 64), }".ljust(len(shape) + 3), f"{shape}, }}".encode()) + bytes(1000)


def test_broken_arrays(folder, capsys, monkeypatch):
    good = Path("x.npz").read_bytes()
    with zipfile.ZipFile("x.npz") as archive:
        x, y = archive.read("x.npy"), archive.read("y.npy")
    cases = {"cut": good[: len(good) // 2], "nothing": b"", "text": b"x,y\n1,2\n"}
    cases["damaged"] = good[:300] + bytes(200) + good[500:]
    cases["locked"] = re.sub(rb"(PK\x03\x04..|PK\x01\x02....)\x00", rb"\1" + b"\x01", good, flags=re.DOTALL)
    for name, members in {
        "large": {"x.npy": huge("(9999999999, 64)"), "y.npy": y},
        "short": {"x.npy": huge("(9, 64)"), "y.npy": y},
        "not_arrays": {"x.npy": b"x", "y.npy": b"y"},
        "header": {"x.npy": x.replace(b"descr", b"dascr"), "y.npy": y},
    }.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        cases[name] = buffer.getvalue()
    for array, name in ((np.zeros(3), "array"), (np.array([{}], dtype=object), "objects")):
        buffer = io.BytesIO()
        np.save(buffer, array)
        cases[name] = buffer.getvalue()
    for name, x_ in (
        ("scalar", np.float32(0.5)),
        ("complex", np.zeros((30, 64), complex)),
        ("records", np.zeros(30, "i,f")),
    ):
        buffer = io.BytesIO()
        np.savez(buffer, x=x_, y=np.zeros(30))
        cases[name] = buffer.getvalue()
    for name, content in cases.items():
        Path(f"{name}.npz").write_bytes(content)
        assert f"data is '{name}.npz', which cannot be used: " in evaluate(capsys, data=f"{name}.npz"), name
    np.savez_compressed("zeros.npz", x=np.zeros((30, 64)), y=np.zeros(30))
    monkeypatch.setattr(sources.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 100, "SC_PHYS_PAGES": 100}[name])
    assert "x takes 0.0 GB, and this machine has 0.0 GB" in evaluate(capsys, data="zeros.npz")


def test_broken_images(folder, capsys, monkeypatch):
    good = Path("images/a/1.png").read_bytes()
    for content in (good[: len(good) // 2], b"text", b"", good[:60] + bytes(20) + good[80:]):
        Path("images/b/2.png").write_bytes(content)
        line = evaluate(capsys, data="images")
        assert "data has the image 'images/b/2.png', which cannot be read: " in line
    Path("images/b/2.png").unlink()
    for limit in (10, 40):  # an error of PIL, and a warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        line = evaluate(capsys, data="images")
        assert "data has the image 'images/a/1.png', which cannot be read: Decompression" in line
    shutil.rmtree("images/a")
    shutil.rmtree("images/b")
    assert "data is 'images', which is no folder of images" in evaluate(capsys, data="images")


def test_data_sets_of_torchvision_that_cannot_be_used(folder, capsys):
    for name in ("ImageFolder", "DatasetFolder", "VisionDataset", "FakeData"):
        assert f"data is 'torchvision:{name}', which " in evaluate(capsys, data=f"torchvision:{name}")
