"""The options that describe a person's own model file, shared by the verbs that read one.

    genkd-node inspect model.safetensors --arch torchvision:resnet18 --num-classes 10
        --input-size 32x32 --mean 0.49,0.48,0.45 --std 0.2,0.2,0.2

Only a file without a card of this project needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from genkd.card import InputCard
from genkd.errors import UsageError

Architecture = Annotated[
    str | None,
    typer.Option("--arch", help="Its architecture: resnet20, wrn16-2, torchvision:resnet18."),
]
NumClasses = Annotated[int | None, typer.Option(help="How many classes it knows.")]
InputSize = Annotated[
    str | None, typer.Option(help="The images it takes, height x width: 32x32, or 3x224x224.")
]
Mean = Annotated[
    str | None, typer.Option(help="What it subtracts from images in [0, 1], one per channel.")
]
Std = Annotated[str | None, typer.Option(help="What it then divides by, one per channel.")]
Factory = Annotated[str | None, typer.Option(help="Your own code that builds it: module:function.")]
AllowLocalCode = Annotated[
    bool, typer.Option("--allow-local-code", help="Let --factory import and run that code.")
]


@dataclass(frozen=True)
class TeacherOptions:
    """What the command line says about a model file; None where it says nothing.

    Attributes:
        architecture: As `ModelSpec.architecture`.
        num_classes: K.
        input_card: Size and normalisation of its images.
        factory: `module:function`.
        allow_local_code: Whether `factory` may be imported.
    """

    architecture: str | None = None
    num_classes: int | None = None
    input_card: InputCard | None = None
    factory: str | None = None
    allow_local_code: bool = False


def teacher_options(
    architecture: str | None,
    num_classes: int | None,
    input_size: str | None,
    mean: str | None,
    std: str | None,
    factory: str | None = None,
    allow_local_code: bool = False,
) -> TeacherOptions:
    """The options above, parsed.

    Raises:
        UsageError: If some of them contradict each other or lack their companions.
    """
    if factory is not None and not allow_local_code:
        raise UsageError(
            f"--factory {factory} would run code of this machine",
            hint="if that code is yours, add --allow-local-code",
        )
    return TeacherOptions(
        architecture,
        num_classes,
        _input_card(input_size, mean, std),
        factory,
        allow_local_code,
    )


def _input_card(size: str | None, mean: str | None, std: str | None) -> InputCard | None:
    if size is None and mean is None and std is None:
        return None
    if size is None or mean is None or std is None:
        given = {"--input-size": size, "--mean": mean, "--std": std}
        missing = [flag for flag, value in given.items() if value is None]
        raise UsageError(
            f"{' and '.join(missing)} missing: size, mean and std belong together",
            hint="for example --input-size 32x32 --mean 0.5 --std 0.5",
        )
    return InputCard.from_text(size, mean, std)
