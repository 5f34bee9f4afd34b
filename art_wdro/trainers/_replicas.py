# SPDX-License-Identifier: MIT
"""The update's forward pass, in one process or replicated over ranks by torch's DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from art_wdro._ranks import Shards

if dist.is_available():
    # its default arguments keep the default group of the moment it is imported, at the latest by the first replica, and
    # the threads of a group that is never destroyed can abort the process at exit: imported here, there is none yet
    import torch.distributed.nn.functional


class Forward(nn.Module):
    """All forward passes of one update in one call, which is how DistributedDataParallel wants them."""

    def __init__(
        self, network: nn.Module, logits_of: Callable[[Tensor], Tensor], half: torch.dtype | None = None
    ) -> None:
        """Wrap a network.

        :param network: The module whose parameters are trained.
        :param logits_of: The function of raw inputs that runs it.
        :param half: Number format of the passes where torch's autocast allows it; None leaves it to the network.
        """
        super().__init__()
        self.network, self._logits_of, self._half = network, logits_of, half

    def forward(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of every batch; autocast casts each weight once for all of them."""
        if self._half is None:
            return tuple(self._logits_of(x) for x in batches)
        with torch.autocast(batches[0].device.type, self._half):
            return tuple(self._logits_of(x).float() for x in batches)


def replicated(forward: Forward, ranks: Shards | None) -> nn.Module:
    """Return the update's forward passes; ranks average their gradients and start from the first one's weights."""
    if ranks is None or not any(weight.requires_grad for weight in forward.parameters()):
        return forward
    # newer versions of torch warn of the old name
    new = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    setting: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    replica: nn.Module = DistributedDataParallel(
        forward, process_group=ranks.group, find_unused_parameters=True, **setting
    )
    return replica


def share_buffers(network: nn.Module, ranks: Shards | None) -> None:
    """Give every rank the first one's buffers, such as the statistics of batch norm."""
    if ranks is not None:
        first = 0 if ranks.group is None else dist.get_global_rank(ranks.group, 0)
        for buffer in network.buffers():
            dist.broadcast(buffer, src=first, group=ranks.group)


@contextmanager
def synchronised_norms(network: nn.Module, ranks: Shards | None, wanted: bool) -> Iterator[None]:
    """Let batch norm take its statistics from the minibatch of all ranks, through torch's SyncBatchNorm.

    The layers are replaced while the context lasts; parameters and statistics stay the same tensors.

    :raises ValueError: If the network is not on a CUDA device, which SyncBatchNorm needs.
    """
    if not wanted or ranks is None:
        yield
        return
    if any(weight.device.type != "cuda" for weight in network.parameters()):
        raise ValueError("sync_batch_norm is True and the network is on the CPU; SyncBatchNorm needs CUDA")
    norms = {
        k: m for k, m in network.named_modules(remove_duplicate=False) if isinstance(m, nn.modules.batchnorm._BatchNorm)
    }
    nn.SyncBatchNorm.convert_sync_batchnorm(network, ranks.group)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for name, module in norms.items():
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module)
