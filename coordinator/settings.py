"""The settings of a coordinator, in the table `[coordinator]` of genkd.toml.

    settings = Settings.load(keys=None)

Which chain and registry the federation lives on stands at the top of the file, where its nodes read
it too. How settings are resolved is told in `genkd.layered_settings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from genkd.layered_settings import FederationSettings, user_folder


class Settings(FederationSettings):
    """All settings of `genkd-coordinator`, resolved.

    Attributes:
        keys: The folder of the coordinator's keys, which own the registry.
        key_password_file: The file that holds their passphrase; None asks for it.
        chain_folder: Where a development chain keeps its state.
    """

    TABLE: ClassVar[str] = "coordinator"

    keys: Path = Field(default_factory=lambda: user_folder() / "coordinator-keys")
    key_password_file: Path | None = None
    chain_folder: Path = Path("chain")
