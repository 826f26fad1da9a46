"""Which registry a membership is about, and how the node reads it.

    domain, registry = registry_of_membership(membership)

What the node's own settings say counts. The coordinator's card, which `join` left in the
membership, fills in what they leave open; where the two name different registries, nothing is
answered. A node that names no endpoint of its own reads the chain through the coordinator's, and
then believes what that endpoint says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from contracts.enrolment import MAX_CARD_BYTES, FederationCard
from contracts.registry_access import trusted_domain
from contracts.registry_state import RegistryState, Run
from genkd.errors import CannotCheck, ConfigurationError, InputFileRefused
from genkd.layered_settings import FederationSettings
from genkd.provenance.chain import ChainReader
from genkd.provenance.release import read_bounded
from genkd.provenance.typed_data import Domain, parse_address
from node.settings import load_settings

CARD_FILE: Final = "federation.json"


class RunReader(ChainReader, Protocol):
    """A registry as a verifier asks it, which also tells who coordinates a run."""

    def run(self, run_id: bytes) -> Run:
        """A run; its coordinator is the zero address if there is no such run."""
        ...


def registry_of_membership(membership: Path) -> tuple[Domain, RunReader]:
    """The registry of a membership.

    Raises:
        ConfigurationError: If settings and membership contradict each other, do not say which
            registry counts, or cannot be read.
        CannotCheck: If neither names an endpoint.
    """
    settings = settings_of_membership(membership)
    domain = trusted_domain(settings)
    if settings.rpc_url is None:
        raise CannotCheck(
            "no Ethereum endpoint is named", hint="set rpc_url in genkd.toml to one you trust"
        )
    return domain, RegistryState(settings.rpc_url, domain, confirmations=settings.confirmations)


def domain_of_membership(membership: Path) -> Domain:
    """The registry of a membership by its name alone.

    Raises:
        ConfigurationError: As `registry_of_membership`.
    """
    return trusted_domain(settings_of_membership(membership))


def settings_of_membership(membership: Path) -> FederationSettings:
    """The node's settings, with what they leave open from the coordinator's card.

    Raises:
        ConfigurationError: As `registry_of_membership`.
    """
    settings = load_settings()
    card = read_card(membership)
    if card is None:
        return settings
    for name, own, said in (
        ("chain_id", settings.chain_id, card.chain_id),
        ("registry", settings.registry and parse_address(settings.registry), card.registry),
    ):
        if own is not None and own != said:
            raise ConfigurationError(
                f"the settings name {name} {own}, the coordinator {said}",
                hint="join with the settings of this federation, or correct them",
            )
    update: dict[str, object] = {"chain_id": card.chain_id, "registry": card.registry}
    if settings.rpc_url is None:
        update["rpc_url"] = card.rpc_url
    if "confirmations" not in settings.model_fields_set:
        update["confirmations"] = card.confirmations
    return settings.model_copy(update=update)


def read_card(membership: Path) -> FederationCard | None:
    """What the coordinator said when the node joined; None if it did not say anything.

    Raises:
        ConfigurationError: If the file is damaged.
    """
    path = membership / CARD_FILE
    if not path.exists():
        return None
    try:
        return FederationCard.from_bytes(read_bounded(path, MAX_CARD_BYTES))
    except InputFileRefused as error:
        raise ConfigurationError(
            f"{path} is damaged: {error.message}", hint="join again: it is fetched anew"
        ) from error
