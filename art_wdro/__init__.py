# SPDX-License-Identifier: MIT
"""Distributional (Wasserstein) threats for the Adversarial Robustness Toolbox."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from art_wdro._version import __version__ as __version__

if TYPE_CHECKING:
    from art_wdro._ranks import sharded
    from art_wdro._sources.robustbench import load_robustbench
    from art_wdro.attacks import WassersteinDistributionalAttack, WassersteinFGM, WassersteinKnapsack, WassersteinPGD
    from art_wdro.certificates import (
        LipschitzCertificate,
        LossCertificate,
        certified_accuracy,
        certified_radii,
        lipschitz_certificate,
        loss_certificate,
    )
    from art_wdro.evaluation import (
        AccuracyBounds,
        Report,
        accuracy_bounds,
        adversarial_accuracy,
        evaluate,
        knapsack_accuracy,
        sensitivity,
        wasserstein_distance,
    )
    from art_wdro.losses import DLRLoss, ReDLRLoss
    from art_wdro.trainers import (
        DistributionalTRADESTrainer,
        WassersteinMarginTrainer,
        perturb_weights,
        reinitialise_last_layer,
        shift_and_flip,
    )

__all__ = [
    "AccuracyBounds",
    "DLRLoss",
    "DistributionalTRADESTrainer",
    "LipschitzCertificate",
    "LossCertificate",
    "ReDLRLoss",
    "Report",
    "WassersteinDistributionalAttack",
    "WassersteinFGM",
    "WassersteinKnapsack",
    "WassersteinMarginTrainer",
    "WassersteinPGD",
    "accuracy_bounds",
    "adversarial_accuracy",
    "certified_accuracy",
    "certified_radii",
    "evaluate",
    "knapsack_accuracy",
    "lipschitz_certificate",
    "load_robustbench",
    "loss_certificate",
    "perturb_weights",
    "reinitialise_last_layer",
    "sensitivity",
    "sharded",
    "shift_and_flip",
    "wasserstein_distance",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())
_PUBLIC = ("attacks", "certificates", "evaluation", "functional", "losses", "trainers")
_HOMES = (*_PUBLIC, "_ranks", "_sources.robustbench")
"""Modules that have the names of `__all__`."""

# Names are imported when they are asked for (PEP 562): the command line imports this package too, and what it says of
# itself would wait seconds for torch and ART. Type checkers read the imports above, and know no other names.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a public name or module."""
        if name in _PUBLIC:
            return import_module(f"{__name__}.{name}")
        if name in __all__:
            for home in _HOMES:
                module = import_module(f"{__name__}.{home}")
                if hasattr(module, name):
                    return globals().setdefault(name, getattr(module, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        """List public names before they are imported, too."""
        return sorted({*globals(), *__all__, *_PUBLIC})
