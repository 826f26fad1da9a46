"""The coordinator as a Flower ServerApp: for `genkd-coordinator run`, and for a stock `flwr run`.

    flwr run APP_FOLDER CONNECTION --run-config 'plan="plan.toml"'

A stock `flwr run` names a plan file (`run_request`) in its run configuration. The settings, the
place of the keys among them, are those of the folder and the environment that the SuperLink was
started in: a Flower app has no other place to find them.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from contracts.registry_access import registry_of
from coordinator.federation_run import FederationRun
from coordinator.flower_run import LOCK
from coordinator.joins import Joins
from coordinator.merged_release import ReleasePress
from coordinator.merging import Interruptible
from coordinator.node_messages import NodeMessages
from coordinator.run_archive import DoneRound, RunArchive
from coordinator.run_request import RunRequest
from coordinator.settings import Settings
from coordinator.store import Store
from coordinator.superlink import lock
from genkd.errors import ConfigurationError
from genkd.provenance.keys import KeyFolder, open_keys
from genkd.provenance.node_keys import NodeKeys

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds that the run's plan file asks for."""
    named = context.run_config.get("plan")
    if not isinstance(named, str) or not named:
        raise ConfigurationError(
            "the run does not name its plan",
            hint="flwr run ... --run-config 'plan=\"plan.toml\"', or genkd-coordinator run",
        )
    settings = Settings.load()
    request = RunRequest.read(Path(named))
    unlocked = open_keys(settings.keys, settings.key_password_file)
    with lock(settings.federation / LOCK, f"another process runs {settings.federation}"):
        run_rounds(grid, settings, request, *unlocked)


def run_rounds(
    grid: Grid,
    settings: Settings,
    request: RunRequest,
    key_folder: KeyFolder,
    keys: NodeKeys,
    interruptible: Interruptible = lambda: nullcontext(lambda: None),
) -> list[DoneRound]:
    """Run the rounds that are asked for and not done yet.

    Args:
        grid: Flower's.
        settings: Which federation.
        request: What to do.
        key_folder: The coordinator's keys.
        keys: The same, unlocked.
        interruptible: What a stop signal interrupts, see `merging`.

    Returns:
        All rounds, round 0 first.

    Raises:
        GenKDError: As `FederationRun.run`.
    """
    plan, start = request.plan(), request.start()
    press = ReleasePress(registry_of(settings, keys), keys, key_folder)
    with Store.open(settings.federation) as store:
        archive = RunArchive(settings.federation, store, press, plan.run_id)
        messages = NodeMessages(grid)
        return FederationRun(
            messages,
            archive,
            plan,
            start,
            speaks_for=Joins(settings.federation).supernodes,
            interruptible=interruptible,
        ).run()
