"""Settings of either program, and which of five places decides each.

    class Settings(FederationSettings):
        seed: int = 0

    settings = Settings.load(seed=None)         # None: the flag was not given

A flag wins over `GENKD_*` in the environment, that over `./genkd.toml`, that over `genkd.toml` in
the user's configuration folder, that over the default. An unknown key is an error wherever it
stands: a misspelt setting must not be a setting that is silently not there. No secret is a
setting: keys are opened by a passphrase from a prompt or from a file that a setting names.

The node's settings stand at the top of the file, the coordinator's in its table `[coordinator]` and
under `GENKD_COORDINATOR_*`; what says which chain and registry a federation lives on, both read
from the top.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genkd.durable import atomic_write
from genkd.errors import ConfigurationError

PREFIX = "GENKD_"
FILE_NAME = "genkd.toml"
MAX_FILE_BYTES = 1 << 20
# Read elsewhere, and therefore not misspelt: how errors are shown, where Anvil is.
OTHER_VARIABLES = frozenset({"GENKD_DEBUG", "GENKD_ANVIL"})
TABLES = ("coordinator",)

# Flags that several verbs of both programs share.
KeysFlag = Annotated[Path | None, typer.Option("--keys", help="The folder of the keys.")]
RpcFlag = Annotated[str | None, typer.Option("--rpc", help="An Ethereum endpoint.")]
RegistryFlag = Annotated[str | None, typer.Option("--registry", help="The registry's address.")]
ChainFlag = Annotated[int | None, typer.Option("--chain-id", help="The chain that is trusted.")]


def user_folder() -> Path:
    """The folder of this user's configuration, as the platform has it."""
    return Path(typer.get_app_dir("genkd"))


def files_read() -> tuple[Path, Path]:
    """The two files that may hold settings, the stronger first."""
    return Path(FILE_NAME), user_folder() / FILE_NAME


class FederationSettings(BaseModel):
    """Where a federation keeps its records, and how settings are resolved.

    Attributes:
        rpc_url: The Ethereum endpoint.
        chain_id: The chain that is trusted.
        registry: The address of the registry contract, 0x and 40 hexadecimal digits.
        confirmations: What counts as final: the chain's own `finalized` or `safe`, or so many
            blocks on top.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
    TABLE: ClassVar[str] = ""

    # A URL may carry the key of a provider: it stays out of the repr.
    rpc_url: str | None = Field(default=None, repr=False)
    chain_id: int | None = Field(default=None, ge=1, lt=2**53)
    registry: str | None = Field(default=None, pattern=r"^0x[0-9a-fA-F]{40}$")
    confirmations: int | Literal["finalized", "safe"] = "finalized"

    @classmethod
    def load(cls, **flags: object) -> Self:
        """Resolve the settings.

        Args:
            **flags: What the command line says; None is a flag that was not given.

        Raises:
            ConfigurationError: If a key is unknown, a value does not fit, or a file cannot be read.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        # The weakest first; each of the others overrides. (pydantic-settings does the like, and
        # imports asyncio for it: everybody who verifies a student would wait for that.)
        values: dict[str, object] = {}
        for path in reversed(files_read()):
            values |= cls._from_file(path)
        values |= cls._from_environment() | given
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = cls.place_of(str(first["loc"][0]), **given)
            raise ConfigurationError(
                f"{place}: {first['msg']}",
                hint="correct it there; a flag wins over the environment, that over the files",
            ) from error

    @classmethod
    def _own_prefix(cls) -> str:
        return f"{PREFIX}{cls.TABLE.upper()}_" if cls.TABLE else PREFIX

    @classmethod
    def _variables(cls) -> dict[str, str]:
        """The field of each variable of the environment."""
        shared = FederationSettings.model_fields
        return {
            (PREFIX if field in shared else cls._own_prefix()) + field.upper(): field
            for field in cls.model_fields
        }

    @classmethod
    def _from_environment(cls) -> dict[str, str]:
        """The settings among the environment's variables, by their field."""
        variables = cls._variables()
        # What the other program reads is its to check.
        others = tuple(f"{PREFIX}{t.upper()}_" for t in TABLES if t != cls.TABLE)
        found = {}
        for name, value in os.environ.items():
            if name in variables:
                found[variables[name]] = value
            elif (
                name.startswith(cls._own_prefix())
                and not name.startswith(others)
                and name not in OTHER_VARIABLES
            ):
                raise _unknown("the environment", name, [*variables, *OTHER_VARIABLES])
        return found

    @classmethod
    def _from_file(cls, path: Path) -> dict[str, Any]:
        """The settings in a file; none if there is no such file."""
        values = read_file(path)
        tables = {name: values.pop(name, {}) for name in TABLES}
        if not cls.TABLE:
            return cls._known(str(path), values)
        own = tables[cls.TABLE]
        if not isinstance(own, dict):
            raise ConfigurationError(
                f"{path}: {cls.TABLE} is no table", hint=f"begin it with a line [{cls.TABLE}]"
            )
        shared = {k: v for k, v in values.items() if k in FederationSettings.model_fields}
        return shared | cls._known(f"{path}, [{cls.TABLE}],", own)

    @classmethod
    def _known(cls, place: str, values: dict[str, Any]) -> dict[str, Any]:
        for key in values:
            if key not in cls.model_fields:
                raise _unknown(place, key, list(cls.model_fields))
        return values

    @classmethod
    def place_of(cls, key: str, **flags: object) -> str:
        """Where the value of `key` that counts was written, for people; the key if nowhere."""
        if flags.get(key) is not None:
            return "--" + key.replace("_", "-")
        if key in cls._from_environment():
            return next(name for name, field in cls._variables().items() if field == key)
        for path in files_read():
            if key in cls._from_file(path):
                return f"{path}: {key}"
        return key


def _unknown(place: str, key: str, known: list[str]) -> ConfigurationError:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
    return ConfigurationError(f"{place} has an unknown setting: {key}", hint=hint)


def read_file(path: Path) -> dict[str, Any]:
    """The values of a settings file; none if there is no such file.

    Raises:
        ConfigurationError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
        return tomllib.loads(text.decode())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error}", hint="correct it, or move it away"
        ) from error


def write_settings(path: Path, values: Mapping[str, str | int]) -> None:
    """Set keys at the top of a settings file, leaving everything else as it stands.

    Args:
        path: The file; made if it does not exist.
        values: By key; texts of printable characters without quotes and backslashes.

    Raises:
        ConfigurationError: If the file cannot be read, or its form is too unusual to be edited.
        ResourceExhausted: If it cannot be written.
    """
    expected = read_file(path) | dict(values)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    start = re.search(r"^\s*\[", text, re.MULTILINE)
    top, tables = (text[: start.start()], text[start.start() :]) if start else (text, "")
    for key, value in values.items():
        line = f"{key} = {value}" if isinstance(value, int) else f'{key} = "{value}"'
        top, replaced = re.subn(rf"^{key}\s*=.*$", line, top, count=1, flags=re.MULTILINE)
        if not replaced:
            top = f"{top.rstrip()}\n{line}\n".lstrip("\n")
    result = top if not tables else f"{top.rstrip()}\n\n{tables.lstrip()}"
    try:
        edited = tomllib.loads(result) == expected
    except ValueError:
        edited = False
    if not edited:
        lines = ", ".join(f"{key} = {value!r}" for key, value in values.items())
        raise ConfigurationError(f"{path} cannot be edited safely", hint=f"set by hand: {lines}")
    # An endpoint's URL may carry a provider's key: who could not read the file still cannot.
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
    atomic_write(path, result.encode("utf-8"), mode=mode)
