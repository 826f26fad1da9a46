"""From settings to the registry they name: to read it, and to write to it.

domain, reader = reader_of(settings, urls)
client = registry_of(settings, keys)
"""

from __future__ import annotations

from collections.abc import Sequence

from contracts.account import TransactionSigner
from contracts.chain_reader import RegistryReader
from contracts.json_rpc import JsonRpc
from contracts.registry import RegistryClient
from genkd.errors import ConfigurationError, UsageError
from genkd.layered_settings import FederationSettings
from genkd.provenance.chain import AgreeingReaders, ChainReader
from genkd.provenance.typed_data import Domain, parse_address


def reader_of(
    settings: FederationSettings, urls: Sequence[str]
) -> tuple[Domain | None, ChainReader | None]:
    """Which registry is trusted, and how to ask it; None for what nobody said.

    Args:
        settings: Without a chain id, the chain of the first endpoint is meant.
        urls: The endpoints; several are believed as far as they agree.

    Raises:
        UsageError: If an endpoint is named without a registry, or a registry without a chain.
        CannotCheck: If the first endpoint's chain is asked for and it does not answer.
    """
    if settings.registry is None:
        if urls:
            raise UsageError(
                "an endpoint is named, but not the registry that is trusted",
                hint="give --registry ADDRESS",
            )
        return None, None
    if not urls:
        if settings.chain_id is None:
            raise UsageError(
                "a registry is named, but not the chain it is on",
                hint="give --chain-id or --rpc",
            )
        return trusted_domain(settings), None
    if settings.chain_id is None:
        # Who names an endpoint and no chain means the chain of that endpoint.
        settings = settings.model_copy(
            update={"chain_id": JsonRpc(urls[0]).quantity("eth_chainId")}
        )
    domain = trusted_domain(settings)
    readers = [RegistryReader(url, domain, confirmations=settings.confirmations) for url in urls]
    return domain, readers[0] if len(readers) == 1 else AgreeingReaders(readers)


def trusted_domain(settings: FederationSettings) -> Domain:
    """The registry that is trusted.

    Raises:
        ConfigurationError: If the settings do not say which.
    """
    if settings.registry is None or settings.chain_id is None:
        raise ConfigurationError(
            "which registry on which chain is trusted is not said",
            hint="set registry and chain_id in genkd.toml, or give --registry and --chain-id",
        )
    return Domain(settings.chain_id, parse_address(settings.registry))


def registry_of(settings: FederationSettings, payer: TransactionSigner) -> RegistryClient:
    """The registry to write to; `payer` pays.

    Raises:
        ConfigurationError: If the settings name no endpoint or no registry.
    """
    if settings.rpc_url is None:
        raise ConfigurationError(
            "no Ethereum endpoint is named",
            hint="set rpc_url in genkd.toml or give --rpc; 'genkd-coordinator chain up' starts a "
            "test chain and sets it; publish can do without by --offline",
        )
    return RegistryClient(
        settings.rpc_url,
        trusted_domain(settings),
        signer=payer,
        confirmations=settings.confirmations,
    )
