"""The settings of a node, and which of five places decides each.

    settings = load_settings(device="cpu", seed=None)   # None: the flag was not given

A flag wins over `GENKD_*` in the environment, that over `./genkd.toml`, that over `genkd.toml` in
the user's configuration folder, that over the default. An unknown key is an error wherever it
stands: a misspelt setting must not be a setting that is silently not there. No secret is a
setting: keys are opened by a passphrase from a prompt or from a file that a setting names.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from genkd.errors import ConfigurationError

PREFIX = "GENKD_"
FILE_NAME = "genkd.toml"
MAX_FILE_BYTES = 1 << 20
# Read elsewhere, and therefore not misspelt: how errors are shown.
OTHER_VARIABLES = frozenset({"GENKD_DEBUG"})
# The coordinator's settings may lie in the same file and the same environment.
COORDINATOR_TABLE = "coordinator"
COORDINATOR_PREFIX = "GENKD_COORDINATOR_"

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]
RecipeName = Literal["quick", "standard", "thorough"]
DeviceFlag = Annotated[
    Device | None, typer.Option("--device", help="Where to compute.", show_default="auto")
]


class Settings(BaseSettings):
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
        rpc_url: The Ethereum endpoint.
        registry: The address of the registry contract, 0x and 40 hexadecimal digits.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    student: str = "resnet8-half"
    recipe: RecipeName = "standard"
    device: Device = "auto"
    precision: Precision = "auto"
    budget: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    runs: Path = Path("runs")
    keys: Path = Field(default_factory=lambda: user_folder() / "keys")
    key_password_file: Path | None = None
    # A URL may carry the key of a provider: it stays out of the repr.
    rpc_url: str | None = Field(default=None, repr=False)
    registry: str | None = Field(default=None, pattern=r"^0x[0-9a-fA-F]{40}$")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, the environment, then the two files, the nearer first."""
        environment = InitSettingsSource(settings_cls, _from_environment())
        files = (InitSettingsSource(settings_cls, _from_file(path)) for path in files_read())
        return (init_settings, environment, *files)


def user_folder() -> Path:
    """The folder of this user's configuration, as the platform has it."""
    return Path(typer.get_app_dir("genkd"))


def files_read() -> tuple[Path, Path]:
    """The two files that may hold settings, the stronger first."""
    return Path(FILE_NAME), user_folder() / FILE_NAME


def load_settings(**flags: object) -> Settings:
    """Resolve the settings.

    Args:
        **flags: What the command line says; None is a flag that was not given.

    Raises:
        ConfigurationError: If a key is unknown, a value does not fit, or a file cannot be read.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = str(first["loc"][0])
        raise ConfigurationError(
            f"{_place_of(key, given)}: {first['msg']}",
            hint="correct it there; a flag wins over the environment, that over the files",
        ) from error


def _from_environment() -> dict[str, str]:
    """The settings among the environment's variables, by their field."""
    found = {}
    for name, value in os.environ.items():
        if not name.startswith(PREFIX) or name.startswith(COORDINATOR_PREFIX):
            continue
        key = name.removeprefix(PREFIX).lower()
        if key in Settings.model_fields and name == name.upper():
            found[key] = value
        elif name not in OTHER_VARIABLES:
            known = [PREFIX + field.upper() for field in Settings.model_fields]
            raise _unknown("the environment", name, [*known, *OTHER_VARIABLES])
    return found


def _from_file(path: Path) -> dict[str, Any]:
    """The settings in a file; none if there is no such file."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
        values = tomllib.loads(text.decode())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error}", hint="correct it, or move it away"
        ) from error
    values.pop(COORDINATOR_TABLE, None)
    for key in values:
        if key not in Settings.model_fields:
            raise _unknown(str(path), key, list(Settings.model_fields))
    return values


def _unknown(place: str, key: str, known: list[str]) -> ConfigurationError:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
    return ConfigurationError(f"{place} has an unknown setting: {key}", hint=hint)


def _place_of(key: str, flags: dict[str, object]) -> str:
    """Where the value of `key` that counts was written."""
    if key in flags:
        return "--" + key.replace("_", "-")
    if key in _from_environment():
        return PREFIX + key.upper()
    for path in files_read():
        if key in _from_file(path):
            return f"{path}: {key}"
    return key
