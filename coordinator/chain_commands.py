"""`genkd-coordinator chain up | down | status`: a local Ethereum test chain with the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coordinator.settings import Settings
from genkd.console import Answer, AsJson, columns
from genkd.layered_settings import FILE_NAME, KeysFlag, write_settings

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

ChainFolder = Annotated[
    Path | None,
    typer.Option(help="Where the chain keeps its state.", show_default="chain"),
]
SettingsFile = Annotated[
    Path, typer.Option("--settings", help="The file to write the chain's address to.")
]


@app.command()
def up(
    chain_folder: ChainFolder = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8545,
    settings_file: SettingsFile = Path(FILE_NAME),
    keys: KeysFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Start the chain, deploy the registry unless it is there, and write both to the settings.

    \b
    genkd-coordinator chain up
    genkd-coordinator chain up --port 0
    """  # noqa: D301
    from coordinator.chain import up as chain_up
    from coordinator.registry_commands import keys_of

    settings = Settings.load(chain_folder=chain_folder, keys=keys)
    federation = chain_up(settings.chain_folder, keys_of(settings), port=port)
    values = federation.settings()
    write_settings(settings_file, values)
    rows = values | {"owner": federation.owner, "written to": settings_file}
    return Answer(values | {"owner": federation.owner, "settings": settings_file}, columns(rows))


@app.command()
def down(chain_folder: ChainFolder = None, as_json: AsJson = False) -> Answer:
    """Stop the chain; its state is kept.

    \b
    genkd-coordinator chain down
    """  # noqa: D301
    from coordinator.chain import down as chain_down

    folder = Settings.load(chain_folder=chain_folder).chain_folder
    ran = chain_down(folder)
    return Answer({"ran": ran}, ["the chain is down" if ran else f"no chain ran in {folder}"])


@app.command()
def status(chain_folder: ChainFolder = None, as_json: AsJson = False) -> Answer:
    """Say whether the chain runs, and what is on it.

    \b
    genkd-coordinator chain status
    """  # noqa: D301
    from coordinator.chain import status as chain_status

    found = chain_status(Settings.load(chain_folder=chain_folder).chain_folder)
    return Answer(found, columns(found))
