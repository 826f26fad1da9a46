"""The environment of every process that runs Flower: it asks no other host for anything.

    subprocess.Popen([...], env=flower_environment(membership / "flwr-home"))

Left alone, Flower reports each start to a telemetry host, asks another for newer versions, and a
ServerApp installs its dependencies from the network. Three variables turn that off, a home of its
own keeps one membership apart from the next and from what a person does with `flwr` by hand.
"""

from __future__ import annotations

import os
from pathlib import Path

from genkd.durable import unwritable

# flwr reads the first two when it is imported, the others when they matter.
_OFFLINE = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_TELEMETRY_LOGGING": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
# Both halves of Flower speak HTTP over loopback, which no proxy can reach.
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_PROXY_EXCEPTIONS = ("NO_PROXY", "no_proxy")
# What an environment could turn on again behind our back, or would hand to code that needs it not.
_FOREIGN_PREFIXES = ("FLWR_", "GENKD_")


def flower_environment(home: Path) -> dict[str, str]:
    """What a process that runs Flower gets: this process's environment, made safe.

    Variables of Flower that were set outside are dropped (one of them can switch the telemetry on,
    another the old gRPC ports), and so are this project's, among them the path of a passphrase.

    Args:
        home: The folder in which Flower keeps what it keeps; made, readable by its owner only.

    Raises:
        ResourceExhausted: If the folder cannot be made.
    """
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise unwritable(home, error) from error
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN_PREFIXES) and name not in _PROXY_EXCEPTIONS
    }
    return kept | _proxy_exceptions() | _OFFLINE | {"FLWR_HOME": str(home.absolute())}


def set_flower_environment(home: Path) -> None:
    """The same for this process, before anything imports flwr.

    This project's own variables stay: the settings are read from them. Where flwr was imported
    before, `contracts.flower_private` switches the telemetry off all the same.

    Raises:
        ResourceExhausted: If the folder cannot be made.
    """
    wanted = flower_environment(home)
    for name in [name for name in os.environ if name.startswith("FLWR_")]:
        del os.environ[name]
    os.environ.update(wanted)


def _proxy_exceptions() -> dict[str, str]:
    already = next((os.environ[name] for name in _PROXY_EXCEPTIONS if name in os.environ), "")
    hosts = [host.strip() for host in already.split(",") if host.strip()]
    hosts += [host for host in _LOOPBACK if host not in hosts]
    return dict.fromkeys(_PROXY_EXCEPTIONS, ",".join(hosts))
