"""The registry's refusals, as errors a person can act on.

    raise refusal(error_name(revert_data))

The contract names each with a custom error; the table below says what each means to whoever sent
the call. `AlreadyThere` is not among them: what it means depends on what is there.
"""

from __future__ import annotations

from typing import Final

from genkd.errors import GenKDError, KeyOrSignatureError, RefusedByPolicy


class RegistryRefused(RefusedByPolicy):
    """The registry refuses a call for what it says.

    Attributes:
        reason: The contract's custom error, for a caller that can mend it.
    """

    def __init__(self, message: str, *, hint: str, reason: str) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class KeyRefusedByRegistry(KeyOrSignatureError):
    """The registry refuses a call for who signed or sent it.

    Attributes:
        reason: The contract's custom error, for a caller that can mend it.
    """

    def __init__(self, message: str, *, hint: str, reason: str) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


ASK_OWNER = "ask the federation's coordinator to admit it, or use the key that is enrolled"
# Custom error -> what it means, what to do.
ABOUT_KEYS: Final = {
    "NotANode": ("the signing key is not enrolled now", ASK_OWNER),
    "BadSignature": (
        "the signature is not the node's over this message for this registry",
        "sign it again with the enrolled key, for this chain and registry",
    ),
    "WrongNextKey": (
        "this is not the key whose hash was committed to as the next one",
        "rotate to the next key that was made together with the current one",
    ),
    "NotCoordinator": (
        "the sending key is not the run's coordinator",
        "send it with the key that the run was opened for",
    ),
    "OwnableUnauthorizedAccount": (
        "the sending key does not own the registry",
        "send it with the key that the registry was deployed for",
    ),
}
ABOUT_CONTENT: Final = {
    "Expired": ("its deadline has passed", "run the command again: it signs with a new deadline"),
    "UnknownRun": (
        "the run is not open in this registry",
        "check the run id; the coordinator opens it with open-run",
    ),
    "TeacherNotCommitted": (
        "the node has not committed to this teacher",
        "commit to the teacher first; publish does so by itself",
    ),
    "NotEarlier": (
        "a removal can neither lie in the future nor come later than the one on the chain",
        "name an earlier time; a removal is never taken back",
    ),
    "ZeroValue": ("a value that must be given is zero", "give the missing value"),
}


def refusal(name: str | None) -> GenKDError:
    """The error for a reverted call.

    Args:
        name: The contract's custom error (`contracts.artifact.error_name`), None if unknown.
    """
    if name in ABOUT_KEYS:
        message, hint = ABOUT_KEYS[name]
        return KeyRefusedByRegistry(f"the registry refuses: {message}", hint=hint, reason=name)
    message, hint = ABOUT_CONTENT.get(
        name or "",
        (f"it reverts with {name or 'an unknown error'}", "check the registry's address"),
    )
    return RegistryRefused(f"the registry refuses: {message}", hint=hint, reason=name or "")
