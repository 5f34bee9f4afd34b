# %% [markdown]
# # Several processes, one budget
#
# A W_p budget couples all samples, so attacking shards one by one is another threat. Inside `sharded()` what each rank
# of a `torchrun` job gives is its shard of one data set: attacks, figures and training are those of the whole. This
# page runs the same script in one process and in two and compares.

# %%
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from torch import nn

plt.style.use("tableau-colorblind10")

# %% [markdown]
# ## A network and a data set on disk

# %%
torch.manual_seed(0)
np.random.seed(0)
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
x, y = (digits.images[order, None] / 16).astype(np.float32), digits.target[order]
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 10))
classifier = PyTorchClassifier(
    model,
    loss=nn.CrossEntropyLoss(),
    input_shape=(1, 8, 8),
    nb_classes=10,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    clip_values=(0, 1),
)
classifier.fit(x[:1280], y[:1280], batch_size=64, nb_epochs=20)

folder = Path(tempfile.mkdtemp())
torch.save(model.cpu(), folder / "network.pt")
x, y = x[1280:1792], y[1280:1792]
np.savez(folder / "data.npz", x=x, y=y)

# %% [markdown]
# ## The script
#
# Each rank loads the network and the data, takes every second sample as its shard, and enters `sharded()`.

# %%
script = next(file for file in (Path("../two_ranks.py"), Path("examples/two_ranks.py")) if file.exists())
print(script.read_text())

# %% [markdown]
# ## Run it
#
# `torchrun` is the command line of `torch.distributed.run`.

# %%
for ranks in (1, 2):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), str(script), str(folder)]
    done = subprocess.run([sys.executable, *command], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def load(ranks: int) -> tuple[dict[str, np.ndarray], list[Any]]:
    parts = [np.load(folder / f"found-{rank}-of-{ranks}.npz") for rank in range(ranks)]
    joined = {}
    for name in ("together", "alone"):
        joined[name] = np.empty_like(x)
        for rank, part in enumerate(parts):
            joined[name][rank::ranks] = part[name]
    return joined, parts


one, (one_rank,) = load(1)
two, two_ranks = load(2)

print(f"accuracy under attack, one process: {one_rank['accuracy']:.4f}")
print(f"           two, as each rank has it: {two_ranks[0]['accuracy']:.4f}, {two_ranks[1]['accuracy']:.4f}")
print(f"D_2 spent, one process: {one_rank['spent']:.6f}; two: {two_ranks[0]['spent']:.6f}")
print(f"largest difference of attacked images: {np.abs(one['together'] - two['together']).max():.1e}")
print(f"largest difference of fine-tuned weights: {np.abs(one_rank['weights'] - two_ranks[0]['weights']).max():.1e}")
assert np.allclose(one["together"], two["together"], atol=1e-5)
assert np.allclose(one_rank["weights"], two_ranks[0]["weights"], atol=1e-3)

# %% [markdown]
# ## What happens without `sharded()`
#
# Then every rank works alone and gives its shard a budget of its own: another attack. The figure holds the change of
# each image against the single-process one.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained")
reference = np.abs(one["together"] - x).max(axis=(1, 2, 3))
for axis, name, title in zip(axes, ("together", "alone"), ("inside sharded()", "outside: two budgets"), strict=True):
    lengths = np.abs(two[name] - x).max(axis=(1, 2, 3))
    axis.plot([0, reference.max()], [0, reference.max()], color="black", linewidth=1)
    for rank, marker in ((0, "o"), (1, "^")):
        axis.plot(reference[rank::2], lengths[rank::2], marker, markersize=4, label=f"rank {rank}'s images")
    axis.set(title=title, xlabel="change of an image, one process")
axes[0].set_ylabel("change of the image, two processes")
axes[0].legend()
plt.show()
