# SPDX-License-Identifier: MIT
"""Two reports held against each other: what changed beyond the sampling error of the images.

Of the same images, single samples are compared: McNemar's test for clean data and pointwise attacks, where each sample
stands or falls on its own; for the knapsack and the certificate, whose samples share one budget, a bootstrap of pairs
of distances, each draw of which spends the budget anew on either side. Other images are compared as two draws.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from art_wdro.evaluation._forms import markdown_lines
from art_wdro.evaluation._intervals import holm, mcnemar, p_value, resampled
from art_wdro.evaluation._loaded import CERTIFIED, Loaded, Standing
from art_wdro.evaluation._report import KNAPSACK

SIGNIFICANT = 0.05
"""Chance with which anything is called changed where nothing is."""
SETTING = ("norm", "p", "eps", "input_shape", "classes")
"""What two reports must share."""


class Change(NamedTuple):
    """A row of both reports.

    :param threat: Its threat.
    :param attack: Its attack.
    :param first: The row of the first report.
    :param second: The row of the second.
    :param test: How they were compared.
    :param p_value: Chance of such a difference where there is none, raised for all rows together (Holm).
    """

    threat: str
    attack: str
    first: Standing
    second: Standing
    test: str
    p_value: float

    @property
    def difference(self) -> float:
        """What was gained, in points."""
        return 100 * (self.second.accuracy - self.first.accuracy)


class Comparison(NamedTuple):
    """What differs between two reports: their circumstances in sentences, and their rows."""

    notes: list[str]
    changes: list[Change]

    def __str__(self) -> str:
        """Return sentences, a table in Markdown, and what changed."""
        head = ["threat", "attack", "first, %", "second, %", "change", "p", "test"]
        body = [
            [c.threat, c.attack, str(c.first), str(c.second), f"{c.difference:+.1f}", f"{c.p_value:.2g}", c.test]
            for c in self.changes
        ]
        changed = [f"{c.attack} ({c.threat}) {c.difference:+.1f}" for c in self.changes if c.p_value < SIGNIFICANT]
        least = f"p < {SIGNIFICANT:g} for all rows together"
        end = f"changed beyond the sampling error of the images ({least}): {', '.join(changed) or 'nothing'}"
        return "\n".join([*self.notes, "", *markdown_lines(head, body), "", end])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        rows = [
            {
                "threat": c.threat,
                "attack": c.attack,
                "first": c.first.accuracy,
                "second": c.second.accuracy,
                "test": c.test,
                "p_value": c.p_value,
                "changed": c.p_value < SIGNIFICANT,
            }
            for c in self.changes
        ]
        return {"notes": self.notes, "rows": rows}


def compare(first: Loaded, second: Loaded, seed: int = 0) -> Comparison:
    """Compare two reports.

    :param first: A report.
    :param second: Another one, of the same threat on inputs of the same shape.
    :param seed: Seed of the draws.
    :raises ValueError: If they cannot be compared.
    """
    for name in SETTING:
        values = [report.data.get(name) for report in (first, second)]
        if values[0] != values[1] and (None not in values or name in ("norm", "p", "eps")):
            raise ValueError(
                f"'{first.name}' and '{second.name}' cannot be compared: {name} is {values[0]} in the first and "
                f"{values[1]} in the second; needed are equal ones"
            )
    digests = [report.data.get("data_sha256") for report in (first, second)]
    paired = digests[0] is not None and digests[0] == digests[1]
    if paired and len(first.distances) != len(second.distances):
        raise ValueError(f"'{first.name}' and '{second.name}' have one data set and other numbers of samples")
    both = [key for key in first.rows if key in second.rows]
    both = [key for key in both if not any(math.isnan(report.rows[key].accuracy) for report in (first, second))]
    tests, chances = [], []
    for key, differences in zip(both, _differences(first, second, both, paired, seed), strict=True):
        one, other = (report.rows[key].shares for report in (first, second))
        if paired and one is not None and other is not None and _whole(one) and _whole(other):
            tests.append("McNemar")
            chances.append(mcnemar(one > 0, other > 0))
        else:
            what = "distances" if key[1] in (KNAPSACK, CERTIFIED) and key[0] != "W_inf" else "shares"
            tests.append(f"bootstrap of {'pairs of ' if paired else ''}{what}")
            fewest = min(len(first.distances), len(second.distances))
            chances.append(max(p_value(differences), 2.0 ** (1 - fewest)))  # no test of signs has less
    changes = [
        Change(*key, first.rows[key], second.rows[key], test, chance)
        for key, test, chance in zip(both, tests, holm(chances), strict=True)
    ]
    return Comparison(_notes(first, second, paired), changes)


def _whole(shares: np.ndarray) -> bool:
    return bool(((shares == 0) | (shares == 1)).all())


def _differences(first: Loaded, second: Loaded, keys: list[tuple[str, str]], paired: bool, seed: int) -> np.ndarray:
    """Return differences of the accuracies of draws, (rows, draws), of the same samples where they are paired."""
    if not keys:
        return np.zeros((0, 1))
    figures = [[report.rows[key].figure for key in keys] for report in (first, second)]
    if paired:
        both = resampled([*figures[0], *figures[1]], len(first.distances), seed)
        return np.asarray(both[len(keys) :] - both[: len(keys)])
    drawn = [
        resampled(own, len(report.distances), seed + number)
        for number, (own, report) in enumerate(zip(figures, (first, second), strict=True))
    ]
    draws = min(values.shape[1] for values in drawn)
    return np.asarray(drawn[1][:, :draws] - drawn[0][:, :draws])


def _notes(first: Loaded, second: Loaded, paired: bool) -> list[str]:
    """Say in what the circumstances differ."""
    one, other = first.data, second.data
    sizes = f"{len(first.distances)} and {len(second.distances)} samples"
    notes = [
        f"first '{first.name}', second '{second.name}', (W_{float(one['p']):g}, l_{float(one['norm']):g}), "
        f"eps = {float(one['eps']):.6g}",
        f"the same {len(first.distances)} samples, compared one by one"
        if paired
        else f"other samples ({sizes}), or of unknown ones: compared as two independent draws of the same source, if "
        "they are that; images that are in both make the test too careful",
    ]
    weights = [data.get("weights_sha256") for data in (one, other)]
    if None in weights:
        notes.append("whether the networks are the same is not known")
    else:
        notes.append("the same weights" if weights[0] == weights[1] else "other weights")
    versions = [data.get("versions", {}) for data in (one, other)]
    told = {f"version of {name}": [known.get(name) for known in versions] for name in {**versions[0], **versions[1]}}
    told |= {name: [data.get(name) for data in (one, other)] for name in ("device", "seed", "confidence")}
    notes += [f"{name}: {values[0]}, then {values[1]}" for name, values in told.items() if values[0] != values[1]]
    for report, rest in ((first, second), (second, first)):
        notes += [f"only in '{report.name}': {' '.join(key)}" for key in report.rows if key not in rest.rows]
        lost = {key: row.installed for key, row in report.rows.items() if math.isnan(row.accuracy)}
        notes += [
            f"{'failed' if installed else 'not installed'} in '{report.name}': {' '.join(key)}"
            for key, installed in lost.items()
        ]
        notes += [f"Warning of '{report.name}': {text}" for text in report.data.get("warnings", [])]
    return notes
