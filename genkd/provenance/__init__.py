"""Who made a student, from what, and how anyone can check it.

    from genkd.provenance import Policy, verify
    print(verify("student-0x...", policy=Policy(domain), chain=reader).summary)

Imports neither torch nor flwr nor web3, so that an auditor's laptop verifies in half a second. What
is named here is fetched on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Domain", "Policy", "Verification", "verify"]

if TYPE_CHECKING:
    from genkd.provenance.typed_data import Domain
    from genkd.provenance.verification import Policy, Verification
    from genkd.provenance.verifier import verify


def __getattr__(name: str) -> Any:  # Any: a module attribute may be of any type
    if name == "verify":
        from genkd.provenance.verifier import verify

        return verify
    if name in ("Policy", "Verification"):
        from genkd.provenance import verification

        return getattr(verification, name)
    if name == "Domain":
        from genkd.provenance.typed_data import Domain

        return Domain
    raise AttributeError(f"module 'genkd.provenance' has no attribute {name!r}")
