# SPDX-License-Identifier: MIT
"""RobustBench's zoo, offline: a network of it with weights of our own, in the layout that it expects."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
import torch

from art_wdro import WassersteinPGD, load_robustbench
from art_wdro._sources.robustbench import _importable

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # robustbench and timm warn at import
PAPER = (
    "Zhang2019Theoretically",
    "Chen2024Data_WRN_34_10",
    "Gowal2020Uncovering_28_10_extra",
    "Cui2023Decoupled_WRN-28-10",
    "Wang2023Better_WRN-28-10",
)


def test_load_and_attack_a_network(tmp_path):
    with _importable():
        from robustbench.model_zoo.cifar10 import linf
    assert set(PAPER) <= set(linf)
    torch.manual_seed(0)
    model = linf["Ding2020MMA"]["model"]().eval()
    (tmp_path / "cifar10/Linf").mkdir(parents=True)
    torch.save(model.state_dict(), tmp_path / "cifar10/Linf/Ding2020MMA.pt")
    classifier = load_robustbench("Ding2020MMA", model_dir=tmp_path, device="cpu")
    assert "pkg_resources" not in sys.modules
    assert "autoattack" not in sys.modules
    x = np.random.default_rng(0).random((2, 3, 32, 32), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(classifier.predict(x), model(torch.from_numpy(x)).numpy(), atol=1e-5)
    assert WassersteinPGD(classifier, max_iter=2, verbose=False).generate(x).shape == x.shape


class Evil:
    """What makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_checkpoints_are_unpickled_only_where_they_are_trusted(tmp_path, monkeypatch):
    file = tmp_path / "cifar10/Linf/Ding2020MMA.pt"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": Evil(tmp_path / "evil")}, file)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ValueError, match=r"Ding2020MMA\.pt' is a pickle of more than tensors.* give --trust"):
        load_robustbench("Ding2020MMA", model_dir=tmp_path)
    assert not (tmp_path / "evil").exists()
    with pytest.raises(ValueError, match=r"Ding2020MMA\.pt' does not hold Ding2020MMA"):
        load_robustbench("Ding2020MMA", model_dir=tmp_path, trust=True)
    assert (tmp_path / "evil").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_names_and_files_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"name is 'Ding2020MM'; the zoo has .* such as 'Ding2020MMA'"):
        load_robustbench("Ding2020MM")
    with pytest.raises(ValueError, match="dataset is 'mnist'; allowed is one of"):
        load_robustbench("Ding2020MMA", dataset="mnist")

    def offline(*arguments, **keywords):
        raise OSError("no network")

    monkeypatch.setattr("robustbench.utils.download_gdrive_new", offline)
    with pytest.raises(
        FileNotFoundError, match=r"Ding2020MMA\.pt does not exist and could not be downloaded: no network"
    ):
        load_robustbench("Ding2020MMA", model_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "robustbench.utils", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[robustbench\]' in a clone of art-wdro"):
        load_robustbench("Ding2020MMA")
