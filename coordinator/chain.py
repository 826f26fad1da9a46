"""A federation's chain for development: Anvil with kept state, and the registry on it.

    federation = up(Path("chain"), keys)
    write_settings(Path("genkd.toml"), federation.settings())
    down(Path("chain"))

The folder holds what `contracts.development_chain` keeps there, and `registry.json`: where the
registry is. Everything may be repeated and interrupted: a registry that was deployed and not noted
down is left on the chain, and another is deployed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contracts import development_chain
from contracts.anvil import DEVELOPMENT_CHAIN_ID
from contracts.registry import deploy
from contracts.registry_state import RegistryState
from genkd.canonical import canonical_json, parse_json
from genkd.durable import atomic_write
from genkd.errors import ConfigurationError, GenKDError
from genkd.provenance.node_keys import NodeKeys
from genkd.provenance.typed_data import Domain, parse_address

REGISTRY_FILE = "registry.json"
MAX_REGISTRY_FILE_BYTES = 4096
# Nothing reorganises a chain of one's own, and nothing finalises its blocks while nobody uses it.
CONFIRMATIONS = 0


@dataclass(frozen=True)
class DevelopmentFederation:
    """A development chain with a registry.

    Attributes:
        rpc_url: The chain's endpoint.
        domain: The registry.
        owner: Who owns it.
    """

    rpc_url: str
    domain: Domain
    owner: str

    def settings(self) -> dict[str, str | int]:
        """What both programs' settings must say to use it."""
        return {
            "rpc_url": self.rpc_url,
            "chain_id": self.domain.chain_id,
            "registry": self.domain.contract,
            "confirmations": CONFIRMATIONS,
        }


def up(
    folder: Path, keys: NodeKeys, *, port: int = 0, chain_id: int = DEVELOPMENT_CHAIN_ID
) -> DevelopmentFederation:
    """Start the chain, or find it running, and deploy the registry unless it is there.

    Args:
        folder: Where the chain keeps its state.
        keys: Who pays for the registry and owns it; given test ether.
        port: 0 for any free one.
        chain_id: The chain's id.

    Raises:
        ConfigurationError: If Anvil is missing or does not start, or the registry there is
            somebody else's.
        CannotCheck, Stopped: If the chain does not answer as it should.
        ResourceExhausted: If the folder cannot be written.
    """
    chain = development_chain.up(folder, chain_id=chain_id, port=port)
    development_chain.fund(chain.rpc_url, keys.address)
    domain = _noted(folder, chain_id)
    if domain is None or RegistryState(chain.rpc_url, domain).fault_of_contract() is not None:
        domain, _ = deploy(chain.rpc_url, chain_id, keys, owner=keys.address)
        note = {"chainId": domain.chain_id, "registry": domain.contract}
        atomic_write(folder / REGISTRY_FILE, canonical_json(note))
    owner = RegistryState(chain.rpc_url, domain, confirmations=CONFIRMATIONS).owner()
    if owner != keys.address:
        raise ConfigurationError(
            f"the registry of the chain in {folder} belongs to {owner}, not to {keys.address}",
            hint="use the keys it was made with, or another --chain-folder",
        )
    return DevelopmentFederation(chain.rpc_url, domain, owner)


def status(folder: Path) -> dict[str, object]:
    """What runs in a folder, as plain values.

    Raises:
        CannotCheck: If the chain runs and does not answer.
    """
    chain = development_chain.running(folder)
    if chain is None:
        return {"running": False, "folder": folder}
    found: dict[str, object] = {"running": True, "folder": folder, "rpc_url": chain.rpc_url}
    domain = _noted(folder, chain.chain_id)
    if domain is None:
        return found | {"chain_id": chain.chain_id, "registry": None}
    state = RegistryState(chain.rpc_url, domain, confirmations=CONFIRMATIONS)
    return found | {
        "chain_id": state.chain_id(),
        "block": state.head("latest").number,
        "registry": domain.contract,
        "fault": state.fault_of_contract(),
    }


def down(folder: Path) -> bool:
    """Stop the chain, its state kept; False if none ran.

    Raises:
        ResourceExhausted: If it does not end.
    """
    return development_chain.down(folder)


def is_development_chain(folder: Path, rpc_url: str | None) -> bool:
    """Whether an endpoint is that of the chain which runs in a folder."""
    chain = development_chain.running(folder)
    return chain is not None and chain.rpc_url == rpc_url


def _noted(folder: Path, chain_id: int) -> Domain | None:
    """The registry that was deployed on this chain, None if there is no usable note of it."""
    path = folder / REGISTRY_FILE
    try:
        with path.open("rb") as file:
            value = parse_json(file.read(MAX_REGISTRY_FILE_BYTES))
        if not isinstance(value, dict) or value.get("chainId") != chain_id:
            return None
        return Domain(chain_id, parse_address(value.get("registry")))
    except (OSError, ValueError, GenKDError):
        return None
