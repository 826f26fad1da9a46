"""Flower's own SuperLink as an application, with every door of it that we need not left shut.

    application = flower_application(Path("federation"))

Which of its calls is served where is told in `coordinator.superlink_listeners`.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from genkd.durable import atomic_write, unwritable
from genkd.errors import ConfigurationError

if TYPE_CHECKING:
    from coordinator.superlink_listeners import Application

DATABASE, SECRET = "superlink.sqlite", "superlink.secret"
SECRET_BYTES = 32


def flower_application(federation: Path) -> Application:
    """Flower's own server, on the database in this folder.

    Raises:
        ConfigurationError: If the database cannot be used.
        ResourceExhausted: If it, or the secret, cannot be written.
    """
    from starlette.middleware import Middleware

    from contracts.flower_private import (
        GRPC_RERE,
        ISOLATION_BY_PROCESS,
        NoOpControlAuthnPlugin,
        SuperLinkLifespan,
        SuperLinkLifespanConfig,
        create_app,
    )
    from coordinator.node_limits import NodeLimits

    logging.getLogger("flwr").setLevel(logging.WARNING)
    settings = SuperLinkLifespanConfig(
        # The gRPC servers of old stay off; the addresses of the HTTP ones are our listeners'.
        control_address="",
        fleet_api_type=GRPC_RERE,
        fleet_api_address=None,
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        # TLS ends at our public listener.
        insecure=False,
        certificates=None,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        # Only registered keys are nodes, and only who has the secret takes a run's tasks.
        enable_supernode_auth=True,
        superexec_auth_secret=superlink_secret(federation),
        authn_plugin=NoOpControlAuthnPlugin(),
        # The SuperLink starts no process of its own and installs nothing.
        isolation=ISOLATION_BY_PROCESS,
        runtime_dependency_install=False,
        simulation=False,
        database=str(_database(federation)),
        artifact_provider=None,
        enable_event_log=False,
        event_log_plugin=None,
        fleet_event_log_plugin=None,
    )
    try:
        application = create_app(settings, SuperLinkLifespan)
    except Exception as error:  # of whichever database layer Flower has chosen
        raise ConfigurationError(
            f"{settings.database} cannot be used as the SuperLink's: {type(error).__name__}",
            hint="restore it, or move it away and admit each node again",
        ) from error
    # The last one stands innermost: what is asked is parsed there, and who asks is proven.
    application.user_middleware.append(Middleware(NodeLimits, federation=federation))
    return application


def superlink_secret(federation: Path) -> bytes:
    """What proves to the SuperLink that it may hand out a run's tasks; made once, kept.

    Raises:
        ResourceExhausted: If it can be neither read nor written.
    """
    path = federation / SECRET
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        secret = b""
    except OSError as error:
        raise unwritable(path, error) from error
    if len(secret) != 2 * SECRET_BYTES:
        secret = secrets.token_hex(SECRET_BYTES).encode()
        atomic_write(path, secret, mode=0o600)
    return secret


def _database(federation: Path) -> Path:
    """The path of the database, readable by its owner only, as SQLite's own files beside it."""
    path = federation / DATABASE
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise unwritable(path, error) from error
    return path.absolute()
