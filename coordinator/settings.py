"""The settings of a coordinator, in the table `[coordinator]` of genkd.toml.

    settings = Settings.load(keys=None)

Which chain and registry the federation lives on stands at the top of the file, where its nodes read
it too. How settings are resolved is told in `genkd.layered_settings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import typer
from pydantic import Field

from genkd.layered_settings import FederationSettings, user_folder

FederationFlag = Annotated[
    Path | None,
    typer.Option("--federation", help="The federation's folder.", show_default="federation"),
]


class Settings(FederationSettings):
    """All settings of `genkd-coordinator`, resolved.

    Attributes:
        keys: The folder of the coordinator's keys, which own the registry.
        key_password_file: The file that holds their passphrase; None asks for it.
        chain_folder: Where a development chain keeps its state.
        federation: The folder of the federation: authority, joins, SuperLink, releases.
        host: The address that nodes' connections are taken on; all of this machine's by default.
        port: Where they are taken; 0 for any free one.
        public_rpc_url: The Ethereum endpoint that nodes are told of, see `endpoint_for_nodes`.
    """

    TABLE: ClassVar[str] = "coordinator"

    keys: Path = Field(default_factory=lambda: user_folder() / "coordinator-keys")
    key_password_file: Path | None = None
    chain_folder: Path = Path("chain")
    federation: Path = Path("federation")
    host: str = Field(default="0.0.0.0", min_length=1, max_length=253)  # noqa: S104
    port: int = Field(default=9092, ge=0, le=65535)
    public_rpc_url: str | None = Field(default=None, repr=False)
