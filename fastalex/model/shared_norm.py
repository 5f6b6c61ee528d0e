"""Batch normalization over the images of all ranks, for networks whose ranks see different images.

For `fastalex.train`. torch.nn.SyncBatchNorm computes the same and takes GPU tensors only; this runs
on both, so that what is tested on CPU ranks is what GPU ranks run.
"""

import torch
from torch import Tensor, nn

from fastalex.model.exchange import Group, sum_over_ranks


class SharedBatchNorm2d(nn.BatchNorm2d):
    """torch.nn.BatchNorm2d whose training statistics are those of the batches of all ranks.

    (B, C, H, W), the same B on all ranks; statistics in float32 (float64 for float64 input); the
    mean first, then the squares around it, so two sums of C numbers go over each way.
    """

    group: Group

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        wide = input if input.dtype == torch.float64 else input.float()
        count = self.group.size * input.numel() // input.shape[1]
        mean = sum_over_ranks(wide.sum((0, 2, 3)), self.group) / count
        centered = wide - mean[:, None, None]
        variance = sum_over_ranks(centered.square().sum((0, 2, 3)), self.group) / count
        self._remember(mean.detach(), variance.detach() * (count / max(count - 1, 1)))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)  # pyright: ignore[reportOptionalMemberAccess]
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)


def share_norms(model: nn.Module, group: Group) -> None:
    """Make every BatchNorm2d of `model` a SharedBatchNorm2d, in place."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            object.__setattr__(module, "__class__", SharedBatchNorm2d)
            object.__setattr__(module, "group", group)
