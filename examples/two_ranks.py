# SPDX-License-Identifier: MIT
"""What each process does in notebooks/several_processes.py: attack its shard, fine-tune on its part, save.

torchrun --standalone --nproc-per-node 2 two_ranks.py FOLDER

FOLDER holds data.npz (x, y) and network.pt; every rank writes found-RANK-of-RANKS.npz there.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_wdro import DistributionalTRADESTrainer, WassersteinPGD, adversarial_accuracy, sharded, wasserstein_distance

folder = Path(sys.argv[1])
dist.init_process_group("gloo")  # "nccl" on GPUs
rank, ranks = dist.get_rank(), dist.get_world_size()

model = torch.load(folder / "network.pt", weights_only=False)
classifier = PyTorchClassifier(
    model,
    loss=nn.CrossEntropyLoss(),
    input_shape=(1, 8, 8),
    nb_classes=10,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
    clip_values=(0, 1),
)
with np.load(folder / "data.npz") as data:
    x, y = data["x"], data["y"]
mine = slice(rank, None, ranks)  # this rank's shard

attack = WassersteinPGD(classifier, eps=0.05, verbose=False)
alone = attack.generate(x[mine], y[mine])  # outside: the shard is a data set of its own
with sharded():
    together = attack.generate(x[mine], y[mine])
    accuracy = adversarial_accuracy(classifier, x[mine], y[mine], attack)
    spent = wasserstein_distance(x[mine], together)
    trainer = DistributionalTRADESTrainer(classifier, eps=0.05, max_iter=5, seed=0, verbose=False)
    trainer.fit(x, y, batch_size=64 // ranks, nb_epochs=2)  # every rank gives all; batch_size is a rank's share

weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
file = folder / f"found-{rank}-of-{ranks}.npz"
np.savez(file, together=together, alone=alone, accuracy=accuracy, spent=spent, weights=weights)
dist.destroy_process_group()
