# SPDX-License-Identifier: MIT
"""RobustBench's zoo, offline: a network of it with weights of our own, in the layout that it expects."""

from __future__ import annotations

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
    with pytest.raises(ImportError, match=r"pip install 'art-wdro\[robustbench\]'"):
        load_robustbench("Ding2020MMA")
