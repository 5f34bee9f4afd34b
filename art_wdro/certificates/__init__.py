# SPDX-License-Identifier: MIT
"""What no attack can pass: Lipschitz constants, bounds on losses, certified radii and accuracy."""

from art_wdro.certificates._lipschitz import LipschitzCertificate, lipschitz_certificate
from art_wdro.certificates._loss import LossCertificate, loss_certificate
from art_wdro.certificates._radii import certified_accuracy, certified_radii

__all__ = [
    "LipschitzCertificate",
    "LossCertificate",
    "certified_accuracy",
    "certified_radii",
    "lipschitz_certificate",
    "loss_certificate",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
