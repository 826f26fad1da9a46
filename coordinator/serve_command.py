"""`genkd-coordinator serve`: where nodes ask to join, and where their SuperNodes connect."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.settings import FederationFlag, Settings
from genkd.console import Answer, AsJson, columns, say
from genkd.layered_settings import KeysFlag

if TYPE_CHECKING:
    from coordinator.certificates import Authority
    from coordinator.enrolment import Application
    from coordinator.joins import Joins
    from coordinator.superlink import RunningSuperLink

app = typer.Typer()

ATTEMPTS, SECONDS_BETWEEN = 5, 2.0


@app.command()
def serve(
    host: Annotated[
        str | None,
        typer.Option(help="The address to listen on.", show_default="all of this machine's"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The port; 0: any free one.", show_default="9092"),
    ] = None,
    keys: KeysFlag = None,
    federation: FederationFlag = None,
    as_json: AsJson = False,
) -> Answer:
    """Serve the federation until it is stopped: nodes ask to join here, and connect.

    \b
    genkd-coordinator serve
    genkd-coordinator serve --host 10.0.0.7 --port 9092

    Needs no passphrase: nothing is signed here. The server's certificate is renewed at the start
    when less than 30 days of it are left.
    """  # noqa: D301
    from coordinator import superlink
    from coordinator.certificates import Authority

    settings = Settings.load(host=host, port=port, keys=keys, federation=federation)
    authority = Authority.open(settings.federation)
    if authority.renew(datetime.now(UTC)):
        say("the server's certificate is renewed")
    joins, enrolment = _enrolment(settings, authority)
    config = superlink.SuperLinkConfig(
        federation=settings.federation,
        host=settings.host,
        port=settings.port,
        public_name=next(iter(authority.server_names()), None),
    )

    def on_ready(running: RunningSuperLink) -> None:
        _announce(settings, authority, running)
        # This is the thread that answers: what asks the SuperLink must not wait in it.
        threading.Thread(target=_let_in, args=(settings, joins), daemon=True).start()

    superlink.serve(config, enrolment, on_ready=on_ready)
    return Answer({"stopped": True}, ["stopped; what was under way goes on with the next start"])


def _enrolment(settings: Settings, authority: Authority) -> tuple[Joins, Application]:
    from coordinator.enrolment import enrolment_app
    from coordinator.federation_card import card_of
    from coordinator.joins import Joins

    card_of(settings)  # what is missing for it is said before anything is served
    joins = Joins(settings.federation)
    return joins, enrolment_app(authority, joins, lambda: card_of(settings))


def _announce(settings: Settings, authority: Authority, running: RunningSuperLink) -> None:
    from coordinator.federation_card import endpoint_for_nodes, join_line, run_names

    certificate = authority.server_certificate
    runs = run_names(settings.federation)
    rows = {
        "serving": running.public,
        "fingerprint": authority.fingerprint,
        "certificate": certificate and f"until {certificate.not_valid_after_utc:%Y-%m-%d}",
        "endpoint": endpoint_for_nodes(settings) or "none is told: nodes set rpc_url themselves",
        "runs": ", ".join(runs) or "none is open: genkd-coordinator open-run NAME",
        "nodes join by": join_line(
            authority, int(running.public.rpartition(":")[2]), runs[-1] if runs else None
        ),
    }
    for line in columns(rows):
        say(line)


def _let_in(settings: Settings, joins: Joins) -> None:
    """Bring the SuperLink in line with what was decided while it was away."""
    from coordinator.supernodes import bring_in_line
    from genkd.errors import GenKDError

    for attempt in range(ATTEMPTS):
        try:
            for node, problem in bring_in_line(settings.federation, joins).items():
                say(f"{node} is not let in: {problem}")
        except GenKDError as error:
            if attempt + 1 == ATTEMPTS:
                say(f"the admitted nodes are not let in: {error.message}; {error.hint}")
            time.sleep(SECONDS_BETWEEN)
        else:
            return
