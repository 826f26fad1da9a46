"""What a network's last layer reads: the features behind its logits.

    with reader:
        logits = teacher(images)
        features = reader.features(logits)  # (B, D)

Hooks on the network do the reading; they stay until `remove`.
"""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn

from genkd.teacher import Teacher


def last_layer(network: nn.Module, outputs: int) -> nn.Linear | nn.Conv2d | None:
    """The last linear layer or convolution with as many outputs; None if there is none."""
    last = None
    for module in network.modules():
        width = getattr(module, "out_features", getattr(module, "out_channels", None))
        if isinstance(module, nn.Linear | nn.Conv2d) and width == outputs:
            last = module
    return last


class FeatureReader:
    """The features phi behind a teacher's logits.

    Args:
        teacher: Any. Without a last layer that has one output a class, its logits are the features.

    Attributes:
        width: D.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.known = list(teacher.known)
        self.width = len(self.known)
        self._seen: list[Tensor] | None = None  # a list while we look
        self._hook: torch.utils.hooks.RemovableHandle | None = None
        layer = last_layer(teacher, len(teacher.places))
        if layer is None:
            return
        self.width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
        self._hook = layer.register_forward_pre_hook(self._record)

    def __enter__(self) -> FeatureReader:
        self._seen = []
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._seen = None

    def features(self, logits: Tensor) -> Tensor:
        """The phi (B, D), float32, of the teacher's last pass, which gave the logits (B, K)."""
        if not self._seen:
            return logits[:, self.known].float()
        seen = self._seen[-1].float()
        # Of a last convolution, as squeezenet has, the mean over positions.
        return seen if seen.dim() == 2 else seen.flatten(2).mean(2)

    def remove(self) -> None:
        """Take the hook off the teacher."""
        if self._hook is not None:
            self._hook.remove()

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._seen is not None:
            self._seen = [inputs[0]]
