"""The settings of a node.

    settings = load_settings(device="cpu", seed=None)   # None: the flag was not given

Which of five places decides each is told in `genkd.layered_settings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import Field

from genkd.layered_settings import FederationSettings, user_folder

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]
RecipeName = Literal["quick", "standard", "thorough", "continue"]
DeviceFlag = Annotated[
    Device | None, typer.Option("--device", help="Where to compute.", show_default="auto")
]


class Settings(FederationSettings):
    """All settings of `genkd-node`, resolved.

    Attributes:
        student: The student's architecture.
        recipe: The preset whose keys `--set` overrides.
        device: Where to compute; auto takes CUDA, then MPS, then the CPU.
        precision: Of the forward passes; auto takes bf16 where the processor has it.
        budget: What a run may spend: `10m`, `50000 samples`; None leaves it to the recipe.
        seed: Of everything that is drawn, from 0 to 2^63 - 1.
        runs: The folder that run directories are made in when `--out` is not given.
        keys: The folder of the node's keys.
        key_password_file: The file that holds the passphrase of the keys; None asks for it.
        membership: The folder of the node's membership in a federation.
        run: The run that `publish` records in: its name, or its id.
    """

    student: str = "resnet8-half"
    recipe: RecipeName = "standard"
    device: Device = "auto"
    precision: Precision = "auto"
    budget: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    runs: Path = Path("runs")
    keys: Path = Field(default_factory=lambda: user_folder() / "keys")
    key_password_file: Path | None = None
    membership: Path = Path("membership")
    run: str | None = Field(default=None, min_length=1, max_length=200)


def load_settings(**flags: object) -> Settings:
    """Resolve the settings.

    Args:
        **flags: What the command line says; None is a flag that was not given.

    Raises:
        ConfigurationError: If a key is unknown, a value does not fit, or a file cannot be read.
    """
    return Settings.load(**flags)
