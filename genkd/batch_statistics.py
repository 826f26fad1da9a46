"""r_BN: how far a batch of images is from what the teacher's BatchNorm layers remember of theirs.

    with BatchStatistics(teacher, momentum=0.9) as statistics:
        logits, distance = statistics.measure(images)
        (distance + ...).backward()
        statistics.update()

For each BatchNorm layer l with running mean m_l and variance v_l, and the batch's own mean and
variance at the layer's input (per channel, over batch and positions, variance divided by n),

    r_BN = sum_l |mean_l - m_l|_2 / |sqrt v_l|_2 + |variance_l - v_l|_2 / |v_l|_2

Source: DeepInversion, Yin et al. 2020 (arXiv:1912.08795, eq. 4; the norms are not squared there
either), but for the denominators: without them a layer counts by the scale of its inputs, which
means nothing behind BatchNorm and differs a hundredfold between networks (CONTRIBUTING.md gives
figures). A small batch cannot match the statistics of a data set, above all if it holds few
classes; so mean_l and variance_l are moving averages over batches, rho * past + (1 - rho) *
present, as in FastDFKD (Fang et al. 2022, arXiv:2112.15278) and NAYER (arXiv:2310.00258). Only the
present batch carries a gradient, scaled by 1 - rho.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from genkd.errors import ConfigurationError, InputFileRefused

# A layer whose inputs never varied: its distances stay finite.
LEAST_SCALE = 1e-6


class _Moments(torch.autograd.Function):
    """Mean and variance (C,) of (B, C, ...) per channel.

    The same values as `torch.var_mean`, three to nine times faster on a CPU, forward and backward
    together: one sweep by BatchNorm's own kernel and one fused sweep back, against five. A whole
    generator step (ResNet-8 teacher, batch 256, bf16, channels last, one core) takes 0.28 s with
    it and 0.51 s without. Networks in channels-last memory gain most.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.device.type in ("cpu", "cuda"):
            precise = torch.promote_types(x.dtype, torch.float32)
            scratch = torch.zeros(2, x.shape[1], dtype=precise, device=x.device)
            mean, variance = torch.batch_norm_update_stats(x, scratch[0], scratch[1], 1.0)
        else:
            dims = [dim for dim in range(x.dim()) if dim != 1]
            variance, mean = torch.var_mean(x.float(), dims, correction=0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        # d mean / dx = 1 / n, d variance / dx = 2 (x - mean) / n: together, x a + b per channel.
        x, mean = ctx.saved_tensors
        n = x.numel() // x.shape[1]
        slope = 2 * grad_variance / n
        offset = grad_mean / n - slope * mean
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return torch.addcmul(offset.view(shape).to(x.dtype), x, slope.view(shape).to(x.dtype))


class BatchStatistics:
    """Measures r_BN of images, with hooks on the teacher's BatchNorm layers.

    Hooks cost nothing outside `measure`. A teacher without BatchNorm (or whose
    layers keep no running statistics) has `len() == 0` and distance zero.

    Args:
        teacher: In `eval()`, frozen; maps images to logits.
        momentum: rho in [0, 1), the weight of past batches. 0: each batch stands alone.

    Attributes:
        distances: The terms of r_BN in the last `measure`, detached: (L, 2), each layer's distance
            of the mean and of the variance.

    Raises:
        ConfigurationError: If `momentum` is outside [0, 1).
    """

    def __init__(self, teacher: nn.Module, *, momentum: float = 0.9) -> None:
        if not 0 <= momentum < 1:
            raise ConfigurationError(
                f"a BatchNorm momentum of {momentum} is outside [0, 1)",
                hint="0.9 is usual; 0 uses each batch alone",
            )
        self.teacher = teacher
        self.momentum = momentum
        self.layers = [
            module
            for module in teacher.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.running_mean is not None
        ]
        self.distances = torch.zeros(len(self.layers), 2)
        self._record: Callable[[int, Tensor], None] | None = None
        self._present: dict[int, tuple[Tensor, Tensor]] = {}
        self._past: dict[int, tuple[Tensor, Tensor]] = {}
        self._hooks = [
            layer.register_forward_pre_hook(self._hook(index))
            for index, layer in enumerate(self.layers)
        ]

    def __len__(self) -> int:
        return len(self.layers)

    def __enter__(self) -> BatchStatistics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the hooks off the teacher."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's logits, and r_BN of the batch with what `update` remembers of earlier ones.

        Args:
            images: (B, C, H, W), as the teacher takes them.

        Returns:
            Logits (B, K) and r_BN, a scalar, both with gradients to the images.
        """
        self._present = {}
        present: dict[int, tuple[Tensor, Tensor]] = {}

        def record(index: int, x: Tensor) -> None:
            present[index] = _Moments.apply(x)

        logits = self._forward(images, record)
        self._present = present  # only now: a pass that failed half-way leaves nothing behind
        terms = [
            torch.linalg.vector_norm(value - target) / scale
            for index, moments in present.items()
            for value, target, scale in zip(
                self._smooth(index, moments), self._targets(index), self._scales(index), strict=True
            )
        ]
        if not terms:
            return logits, logits.new_zeros(())
        by_layer = torch.stack(terms).view(-1, 2)  # (L, 2)
        self.distances = by_layer.detach()
        return logits, by_layer.sum()

    def update(self) -> None:
        """Let the batch of the last `measure` become part of the past."""
        for index, statistics in self._present.items():
            mean, variance = self._smooth(index, statistics)
            self._past[index] = (mean.detach(), variance.detach())
        self._present = {}

    def state_dict(self) -> dict[str, Tensor]:
        """What is remembered of past batches, for a checkpoint."""
        return {f"{index}": torch.stack(past) for index, past in self._past.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`.

        Raises:
            InputFileRefused: If it is of another teacher.
        """
        past: dict[int, tuple[Tensor, Tensor]] = {}
        for name, value in state.items():
            known = name.isdecimal() and int(name) < len(self.layers)
            if not known or value.shape != (2, self.layers[int(name)].num_features):
                raise InputFileRefused(
                    "the checkpoint's BatchNorm statistics are of another teacher",
                    hint="resume with the teacher of that run, or start anew with --fresh",
                )
            device = self._targets(int(name))[0].device
            past[int(name)] = (value[0].to(device), value[1].to(device))
        self._present, self._past = {}, past

    def _targets(self, index: int) -> tuple[Tensor, Tensor]:
        """What layer `index` remembers: mean and variance (C,)."""
        # Read anew each time: moving the teacher to another device replaces its buffers.
        buffers = self.layers[index]
        return cast(Tensor, buffers.running_mean), cast(Tensor, buffers.running_var)

    def _scales(self, index: int) -> tuple[Tensor, Tensor]:
        """What the distances of mean and variance at layer `index` are measured in: scalars."""
        variance = self._targets(index)[1]
        deviation = torch.linalg.vector_norm(variance.clamp_min(0).sqrt())
        norm = torch.linalg.vector_norm(variance)
        return deviation.clamp_min(LEAST_SCALE), norm.clamp_min(LEAST_SCALE)

    def _smooth(self, index: int, present: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Moving average of mean and variance (C,), the present batch included."""
        if index not in self._past:
            return present
        mean, variance = self._past[index]
        return (
            torch.lerp(present[0], mean, self.momentum),
            torch.lerp(present[1], variance, self.momentum),
        )

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self._record is not None:
                self._record(index, inputs[0])

        return hook

    def _forward(self, images: Tensor, record: Callable[[int, Tensor], None]) -> Tensor:
        self._record = record
        try:
            logits: Tensor = self.teacher(images)
        finally:
            self._record = None
        return logits
