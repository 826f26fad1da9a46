"""Every error a person can meet, split by whose fault it is and what to do next.

    GenKDError                        exit  whose fault
    ├── VerificationFailed              1   the release: verification says no
    ├── UsageError                      2   the command line
    ├── ConfigurationError              3   a setting, a recipe key, another run's directory
    ├── InputFileRefused                4   a file: hostile, truncated, of the wrong kind
    ├── CoordinatorUnreachable          5   the network
    ├── CannotCheck                     6   the chain: unreachable, the wrong one, no contract
    ├── KeyOrSignatureError             7   a key, a passphrase, a signature
    ├── ResourceExhausted               8   memory or disk of this machine
    ├── RefusedByPolicy                 9   a policy file of this node or coordinator
    ├── Stopped                        75   nobody: stopped, and the same command resumes
    └── Interrupted                   130   nobody: Ctrl-C, checkpoint kept

An error is one line (`str(error)`) and one hint: what a person should do next. Foreign exceptions
are caught in the one module that calls the library and re-raised as one of these, always `from`
the cause. No secret ever enters a message.
"""

from __future__ import annotations

from typing import ClassVar


class GenKDError(Exception):
    """The root of the tree.

    Args:
        message: What is wrong, in one line, naming the file or the setting.
        hint: What to do next, in one line.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class VerificationFailed(GenKDError):
    """A release was checked and is not valid."""

    exit_code = 1
    code = "not_valid"


class UsageError(GenKDError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2
    code = "usage"


class ConfigurationError(GenKDError):
    """A setting, a recipe or a run directory does not fit."""

    exit_code = 3
    code = "configuration"


class InputFileRefused(GenKDError):
    """A file is missing, hostile, truncated, of the wrong kind, or of another model."""

    exit_code = 4
    code = "input_file_refused"


class CoordinatorUnreachable(GenKDError):
    """The coordinator does not answer."""

    exit_code = 5
    code = "coordinator_unreachable"


class CannotCheck(GenKDError):
    """A check could not be made. This is never "valid"."""

    exit_code = 6
    code = "cannot_check"


class KeyOrSignatureError(GenKDError):
    """A key cannot be read or used, or a passphrase is wrong."""

    exit_code = 7
    code = "key_or_signature"


class ResourceExhausted(GenKDError):
    """Memory or disk ran out, or a folder cannot be written."""

    exit_code = 8
    code = "memory_or_disk"


class RefusedByPolicy(GenKDError):
    """A policy file of this node or coordinator forbids it."""

    exit_code = 9
    code = "refused_by_policy"


class Stopped(GenKDError):
    """Work was stopped in an orderly way; the same command resumes it."""

    exit_code = 75
    code = "stopped"


class Interrupted(GenKDError):
    """A person pressed Ctrl-C; the last checkpoint is kept."""

    exit_code = 130
    code = "interrupted"
