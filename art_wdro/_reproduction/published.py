# SPDX-License-Identifier: MIT
"""What the training paper reports, in percent.

Source: Bai, He, Jiang, Obloj, Wasserstein distributional adversarial training for deep neural networks, 2025,
arXiv:2502.09352, tables 1 to 11.
"""

from __future__ import annotations

ZHANG = "Zhang2019Theoretically"
CHEN = "Chen2024Data_WRN_34_10"
GOWAL = "Gowal2020Uncovering_28_10_extra"
CUI = "Cui2023Decoupled_WRN-28-10"
WANG = "Wang2023Better_WRN-28-10"
NETWORKS = (ZHANG, CHEN, GOWAL, CUI, WANG)
"""RobustBench's names of the five networks."""

CONFIGURATIONS = ((0.1, 0.1), (0.01, 0.1), (0.1, 1.0), (0.01, 1.0))
"""Learning rate tau and update rate eta of Upsilon, in the order of the columns of tables 3, 4 and 6 to 11."""

Figures = dict[str, float]

BEFORE: dict[str, Figures] = {
    ZHANG: {"clean": 84.92, "winf": 57.05, "wp": 42.99},
    CHEN: {"clean": 86.54, "winf": 60.14, "wp": 43.76},
    GOWAL: {"clean": 89.48, "winf": 66.44, "wp": 50.99},
    CUI: {"clean": 92.16, "winf": 70.92, "wp": 53.16},
    WANG: {"clean": 92.44, "winf": 70.62, "wp": 52.14},
}
"""Table 1: the networks as they come."""

BUDGET: dict[str, Figures] = {
    ZHANG: {"budget": 63.99, "winf": 70.61, "wp": 57.56},
    CHEN: {"budget": 68.61, "winf": 76.27, "wp": 61.32},
    GOWAL: {"budget": 70.16, "winf": 80.58, "wp": 67.02},
    CUI: {"budget": 76.57, "winf": 90.49, "wp": 76.54},
    WANG: {"budget": 78.19, "winf": 90.64, "wp": 77.21},
}
"""Table 2: minibatches attacked with their own budgets, on training images."""

BEST: dict[str, Figures] = {
    ZHANG: {"clean": 83.71, "winf": 59.99, "winf change": 2.95, "wp": 50.53, "wp change": 7.54},
    CHEN: {"clean": 85.44, "winf": 62.12, "winf change": 1.98, "wp": 53.42, "wp change": 9.66},
    GOWAL: {"clean": 85.93, "winf": 63.39, "winf change": -3.05, "wp": 52.14, "wp change": 1.15},
    CUI: {"clean": 88.88, "winf": 68.71, "winf change": -2.21, "wp": 58.02, "wp change": 4.86},
    WANG: {"clean": 91.45, "winf": 69.19, "winf change": -1.43, "wp": 55.93, "wp change": 3.79},
}
"""Table 5: the best of tables 3, 4 and 6 to 11, and the change as printed."""


def _grid(clean: str, winf: str, wp: str) -> dict[tuple[float, float], Figures]:
    rows = {"clean": clean, "winf": winf, "wp": wp}
    values = {key: [float(cell) for cell in row.split()] for key, row in rows.items()}
    return {
        configuration: {key: row[i] for key, row in values.items()} for i, configuration in enumerate(CONFIGURATIONS)
    }


GRIDS = {
    "table3": (
        ZHANG,
        "last-layer",
        _grid("83.89 83.86 83.56 83.63", "53.47 52.78 54.25 54.20", "39.53 37.91 41.76 39.08"),
    ),
    "table4": (ZHANG, "whole", _grid("83.38 85.15 82.89 83.71", "58.50 58.63 57.55 59.99", "47.91 45.78 45.20 50.53")),
    "table6": (
        GOWAL,
        "last-layer",
        _grid("89.68 89.75 90.02 89.43", "64.20 63.95 64.81 63.56", "50.76 48.42 50.65 48.05"),
    ),
    "table7": (GOWAL, "whole", _grid("81.04 88.09 78.15 85.93", "51.97 63.05 50.12 63.39", "39.31 49.93 40.13 52.14")),
    "table8": (
        CUI,
        "last-layer",
        _grid("90.52 91.65 88.88 91.14", "68.26 70.04 68.71 70.26", "54.71 56.84 58.02 57.46"),
    ),
    "table9": (CUI, "whole", _grid("64.43 88.10 57.68 86.27", "33.68 66.07 31.12 66.64", "19.18 51.10 18.69 55.48")),
    "table10": (
        WANG,
        "last-layer",
        _grid("90.71 91.48 91.45 90.67", "68.94 68.94 69.19 68.56", "54.38 55.49 55.93 55.09"),
    ),
    "table11": (WANG, "whole", _grid("66.10 87.97 62.94 84.45", "35.74 62.57 35.43 60.44", "23.10 47.32 23.26 49.00")),
}
"""Network, start and figures of the tables of fine-tunings."""
