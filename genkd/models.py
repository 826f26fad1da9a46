"""The networks this package knows by name, and how to build one from its specification.

    model = build_model(ModelSpec("resnet8-half", num_classes=10, in_channels=1))

Small residual networks follow He et al. 2015 (arXiv:1512.03385, section 4.2: three stages, 6n + 2
layers), wide ones Zagoruyko and Komodakis 2016 (arXiv:1605.07146), LeNet LeCun et al. 1998.
`torchvision:NAME` and `timm:NAME` reach those libraries' classifiers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from genkd.card import ModelSpec
from genkd.errors import InputFileRefused, UsageError

__all__ = ["ModelSpec", "build_model", "build_on_meta", "builder_of", "known_architectures"]

# Widths of the three stages of the small residual networks (He et al. 2015, section 4.2).
STAGE_CHANNELS = (16, 32, 64)
# `-half` and `-quarter` scale every width of a network; 'x4' is the naming of the KD literature.
WIDTH_SUFFIXES = {"": 1.0, "-half": 0.5, "-quarter": 0.25, "x2": 2.0, "x4": 4.0}
MAX_DEPTH = (
    1202  # the deepest network of He et al. 2015; a bound on what a file may ask us to build
)
MAX_WIDEN_FACTOR = 20


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; a 1x1 projection where shapes change."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C, H / stride, W / stride)."""
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.downsample(x))


class ResNet(nn.Module):
    """The small residual network of He et al. 2015, section 4.2.

    Args:
        depth: 6n + 2 layers, so 8, 14, 20, 26, 32, 44, 56, 110.
        num_classes: K.
        in_channels: C of the images.
        width: Factor on the widths 16, 32, 64.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int, width: float = 1.0) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        channels = [int(c * width) for c in STAGE_CHANNELS]
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        stages = []
        previous = channels[0]
        for stage, width_of_stage in enumerate(channels):
            layers: list[nn.Module] = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(ResidualBlock(previous, width_of_stage, stride))
                previous = width_of_stage
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normalised, to logits (B, K)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = x.mean(dim=(2, 3))  # (B, C, h, w) -> (B, C)
        logits: Tensor = self.fc(x)
        return logits


class WideBlock(nn.Module):
    """The pre-activation block of a wide residual network."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C, H / stride, W / stride)."""
        activated = torch.relu(self.bn1(x))
        out = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        # The projection sees the activated input, as in the authors' code; the identity does not.
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(activated)
        result: Tensor = out + shortcut
        return result


class WideResNet(nn.Module):
    """WRN-depth-width of Zagoruyko and Komodakis 2016, without dropout.

    Args:
        depth: 6n + 4 layers, so 10, 16, 22, 28, 40.
        widen_factor: k; the stages have 16k, 32k, 64k channels.
        num_classes: K.
        in_channels: C of the images.
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, STAGE_CHANNELS[0], 3, 1, 1, bias=False)
        stages = []
        previous = STAGE_CHANNELS[0]
        for stage, base in enumerate(STAGE_CHANNELS):
            layers: list[nn.Module] = []
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(WideBlock(previous, base * widen_factor, stride))
                previous = base * widen_factor
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(previous)
        self.fc = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normalised, to logits (B, K)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = torch.relu(self.bn(x)).mean(dim=(2, 3))  # (B, C, h, w) -> (B, C)
        logits: Tensor = self.fc(x)
        return logits


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max pooling, optionally with BatchNorm after each convolution.

    Feature maps are pooled to 5x5 before the first linear layer: nothing changes at 32x32, and
    other sizes work.
    """

    def __init__(
        self, num_classes: int, in_channels: int, *, batch_norm: bool, width: float = 1.0
    ) -> None:
        super().__init__()
        c1, c2, f1, f2 = (int(n * width) for n in (6, 16, 120, 84))
        self.conv1 = nn.Conv2d(in_channels, c1, 5)
        self.bn1: nn.Module = nn.BatchNorm2d(c1) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(c1, c2, 5)
        self.bn2: nn.Module = nn.BatchNorm2d(c2) if batch_norm else nn.Identity()
        self.fc1 = nn.Linear(c2 * 25, f1)
        self.fc2 = nn.Linear(f1, f2)
        self.fc3 = nn.Linear(f2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normalised, to logits (B, K)."""
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = torch.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        x = nn.functional.adaptive_avg_pool2d(x, 5).flatten(1)  # (B, c2, h, w) -> (B, 25 * c2)
        logits: Tensor = self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))
        return logits


def small_image_resnet(layers: int, num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-18 or -34 as the papers of this field take it for CIFAR.

    The network of He et al. 2015 for ImageNet, but its first convolution is 3x3 with a stride of 1,
    and no max pooling follows: at 32x32 the usual ones would leave 8x8 for the first stage.

    Args:
        layers: 18 or 34.
        num_classes: K.
        in_channels: C of the images.
    """
    from torchvision import models

    builder = {18: models.resnet18, 34: models.resnet34}[layers]
    network: nn.Module = builder(weights=None, num_classes=num_classes)
    first = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")  # as its others
    network.conv1, network.maxpool = first, nn.Identity()
    return network


SMALL_IMAGE_RESNET = re.compile(r"resnet(18|34)-cifar")
RESNET = re.compile(r"resnet(\d{1,4})(|-half|-quarter|x2|x4)")
WRN = re.compile(r"wrn(\d{1,4})-(\d{1,2})")
LENET = re.compile(r"lenet5(|-bn)(|-half|-quarter|x2|x4)")


def builder_of(spec: ModelSpec) -> Callable[[], nn.Module]:
    """How to build the network of `spec`, after checking that its name means something.

    Raises:
        UsageError: If no architecture has that name, or its library is not installed.
    """
    name, classes, channels = spec.architecture, spec.num_classes, spec.in_channels
    if match := RESNET.fullmatch(name):
        depth, width = int(match[1]), WIDTH_SUFFIXES[match[2]]
        if depth % 6 == 2 and 8 <= depth <= MAX_DEPTH:
            return lambda: ResNet(depth, classes, channels, width)
    if match := SMALL_IMAGE_RESNET.fullmatch(name):
        layers = int(match[1])
        require_torchvision()
        return lambda: small_image_resnet(layers, classes, channels)
    if match := WRN.fullmatch(name):
        depth, factor = int(match[1]), int(match[2])
        if depth % 6 == 4 and 10 <= depth <= MAX_DEPTH and 1 <= factor <= MAX_WIDEN_FACTOR:
            return lambda: WideResNet(depth, factor, classes, channels)
    if match := LENET.fullmatch(name):
        batch_norm, width = match[1] == "-bn", WIDTH_SUFFIXES[match[2]]
        return lambda: LeNet(classes, channels, batch_norm=batch_norm, width=width)
    if name.startswith("torchvision:"):
        return _torchvision_builder(name.removeprefix("torchvision:"), spec)
    if name.startswith("timm:"):
        return _timm_builder(name.removeprefix("timm:"), spec)
    raise UsageError(
        f"no architecture is called {name!r}",
        hint="use resnet8, resnet20-half, resnet18-cifar, wrn16-2, lenet5-bn, torchvision:NAME or "
        "timm:NAME",
    )


def _with_in_channels(model: nn.Module, in_channels: int) -> nn.Module:
    """`model` with its first convolution taking `in_channels`, where it takes another number."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != in_channels:
                first = nn.Conv2d(
                    in_channels,
                    module.out_channels,
                    kernel_size=module.kernel_size,  # type: ignore[arg-type]
                    stride=module.stride,  # type: ignore[arg-type]
                    padding=module.padding,  # type: ignore[arg-type]
                    bias=module.bias is not None,
                )
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, first)
            return model
    raise UsageError(
        "this architecture has no convolution to take the images",
        hint="give a convolutional architecture, or a --factory of your own",
    )


def require_torchvision() -> None:
    """Refuse a name that only torchvision can build, where that is missing.

    Raises:
        UsageError: If it is.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "torchvision is not installed", hint="pip install 'genkd-node[distill]'"
        ) from error


def _torchvision_builder(name: str, spec: ModelSpec) -> Callable[[], nn.Module]:
    require_torchvision()
    from torchvision import models

    # Only the classifiers: segmentation, detection and video models live in named sub-modules.
    if name not in models.list_models(module=models):
        raise UsageError(
            f"torchvision has no classifier called {name!r}",
            hint="python -c 'from torchvision import models; print(models.list_models(models))'",
        )
    # GoogLeNet and Inception add training-only heads; a teacher or a student has one head.
    extra = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    return lambda: _with_in_channels(
        models.get_model(name, weights=None, num_classes=spec.num_classes, **extra),
        spec.in_channels,
    )


def _timm_builder(name: str, spec: ModelSpec) -> Callable[[], nn.Module]:
    try:
        import timm
    except ImportError as error:
        raise UsageError("timm is not installed", hint="pip install timm") from error
    if not timm.is_model(name):
        raise UsageError(
            f"timm has no model called {name!r}", hint="python -c 'import timm; timm.list_models()'"
        )

    def build() -> nn.Module:
        model: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=spec.num_classes, in_chans=spec.in_channels
        )
        return model

    return build


def build_model(spec: ModelSpec, *, generator: torch.Generator | None = None) -> nn.Module:
    """The network of `spec`, float32, on the CPU, freshly initialised.

    Args:
        spec: What to build.
        generator: Source of the initial weights; its next number seeds the initialisation, and the
            global generator is left as it was. None uses the global generator.

    Raises:
        UsageError: As `builder_of`.
    """
    build = builder_of(spec)
    if generator is None:
        return build()
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def build_on_meta(spec: ModelSpec) -> nn.Module:
    """The network of `spec` with shapes but no storage, so that a hostile name costs nothing.

    Raises:
        UsageError: As `builder_of`.
        InputFileRefused: If the library cannot build it.
    """
    build = builder_of(spec)
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputFileRefused(
            f"{spec.architecture} cannot be built for {spec.num_classes} classes: {reason}",
            hint="check the architecture's name and the number of classes",
        ) from error


def known_architectures() -> list[str]:
    """The names tried to recognise a bare file: ours, then common ones of torchvision."""
    ours = [f"resnet{d}{s}" for d in (8, 14, 20, 26, 32, 44, 56, 110) for s in WIDTH_SUFFIXES]
    ours += ["resnet18-cifar", "resnet34-cifar"]
    ours += [f"wrn{d}-{k}" for d in (10, 16, 22, 28, 40) for k in (1, 2, 4, 8, 10)]
    ours += [f"lenet5{b}{s}" for b in ("", "-bn") for s in WIDTH_SUFFIXES]
    torchvision = (
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2"),
        *("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
        *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "densenet121", "alexnet"),
        *("efficientnet_b0", "shufflenet_v2_x1_0", "squeezenet1_1", "convnext_tiny"),
    )
    return ours + [f"torchvision:{name}" for name in torchvision]
