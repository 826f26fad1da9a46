"""What this node answers a coordinator, as its owner says in `policy.toml`.

    policy = Policy.load(membership)
    policy.run_ids                              # of the runs that the node takes part in

The file belongs to the owner: `join` writes it once, and only he changes it afterwards. It is read
anew for every message, so a change counts from the next one on, and a mistake in it answers
nothing. No coordinator can change or read it.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from genkd.errors import ConfigurationError, InputFileRefused
from genkd.layered_settings import read_file
from genkd.provenance.record import run_id_of
from genkd.provenance.release import SIZE_LIMITS
from genkd.provenance.typed_data import BYTES32, parse_address

POLICY_FILE: Final = "policy.toml"
MAX_RUNS, MAX_RUN_CHARACTERS = 1000, 200
MAX_RELEASE_BYTES = sum(SIZE_LIMITS.values())
DEFAULT_RELEASE_BYTES = 64 * 2**20
DEFAULT_SECONDS = 10
MAX_SECONDS = 366 * 24 * 3600


@dataclass(frozen=True)
class Policy:
    """What the node answers.

    Attributes:
        node: The node's address, checksum form. Only releases that it signed are given out.
        runs: The runs it takes part in, by name or id; it answers for no other.
        app_sha256: The app bundles it lets a coordinator run, 64 lower-case hexadecimal digits
            each. A bundle names the app that is installed here; it brings no code.
        releases: The folders in which its run directories lie.
        max_release_bytes: The largest release it gives out or takes, all four files together.
        seconds_between_answers: Between two releases that it gives out, at least.
    """

    node: str
    runs: tuple[str, ...]
    app_sha256: frozenset[str]
    releases: tuple[Path, ...]
    max_release_bytes: int = DEFAULT_RELEASE_BYTES
    seconds_between_answers: int = DEFAULT_SECONDS

    @property
    def run_ids(self) -> frozenset[bytes]:
        """The ids of `runs`, 32 bytes each."""
        return frozenset(run_id_of(run) for run in self.runs)

    @classmethod
    def load(cls, membership: Path) -> Policy:
        """Read the policy of a membership.

        Args:
            membership: The folder of the membership; relative folders in the file start here.

        Raises:
            ConfigurationError: If there is no policy, a key is unknown, or a value does not fit.
        """
        path = membership / POLICY_FILE
        values = read_file(path)
        if not values:
            raise ConfigurationError(
                f"there is no policy in {path}",
                hint="genkd-node join writes one; without it the node answers nothing",
            )
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise _unknown(path, key, known)
        try:
            return cls(
                node=parse_address(values.get("node")),
                runs=tuple(_texts(values, "runs", MAX_RUN_CHARACTERS)),
                app_sha256=frozenset(_digests(values)),
                releases=tuple(membership / one for one in _texts(values, "releases", 4096)),
                max_release_bytes=_whole(
                    values, "max_release_bytes", DEFAULT_RELEASE_BYTES, 1, MAX_RELEASE_BYTES
                ),
                seconds_between_answers=_whole(
                    values, "seconds_between_answers", DEFAULT_SECONDS, 0, MAX_SECONDS
                ),
            )
        except (ValueError, InputFileRefused) as error:
            raise ConfigurationError(
                f"{path}: {error}", hint="correct it there; until then the node answers nothing"
            ) from error


def default_policy_text(
    *,
    node: str,
    runs: Sequence[str],
    app_sha256: str,
    releases: Sequence[Path],
    max_release_bytes: int = DEFAULT_RELEASE_BYTES,
    seconds_between_answers: int = DEFAULT_SECONDS,
) -> str:
    """The policy that `join` writes when there is none.

    Args:
        node: The node's address.
        runs: Names or ids of the runs that the owner named.
        app_sha256: Of the app bundle of this version of the program.
        releases: The folders in which run directories lie; absolute paths stay right when the
            node is started elsewhere.
        max_release_bytes: As `Policy`.
        seconds_between_answers: As `Policy`.

    Raises:
        ConfigurationError: If a name or a path cannot stand in such a file.
    """
    folders = [str(path) for path in releases]
    text = f"""\
# What this node answers the coordinator. Changes count from the next message on.

# The address this node goes by; only releases it signed are given out.
node = {_quoted(node)}
# The runs it takes part in, by name or id.
runs = {_listed(runs)}
# The app bundles a coordinator may run here. They name the installed app and bring no code.
app_sha256 = {_listed([app_sha256])}
# The folders in which run directories lie.
releases = {_listed(folders)}
# The largest release that is given out or taken.
max_release_bytes = {max_release_bytes}
# Between two releases that are given out, at least.
seconds_between_answers = {seconds_between_answers}
"""
    expected = {"node": node, "runs": list(runs), "releases": folders}
    try:
        written = tomllib.loads(text.encode().decode())
    except ValueError:  # UnicodeEncodeError is one too
        written = {}
    if {key: written.get(key) for key in expected} != expected:
        raise ConfigurationError(
            "the policy cannot be written: a run or a folder has an unusual name",
            hint="use names of letters and digits",
        )
    return text


def _quoted(text: str) -> str:
    """A basic string of TOML; JSON's escapes are among its own."""
    return json.dumps(text, ensure_ascii=False)


def _listed(texts: Sequence[str]) -> str:
    return "[" + ", ".join(map(_quoted, texts)) + "]"


def _unknown(path: Path, key: str, known: Sequence[str]) -> ConfigurationError:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
    return ConfigurationError(f"{path} has an unknown key: {key}", hint=hint)


def _texts(values: Mapping[str, object], key: str, longest: int) -> list[str]:
    found = values.get(key)
    if not isinstance(found, list) or not 0 < len(found) <= MAX_RUNS:
        raise ValueError(f"{key} is not a list of 1 to {MAX_RUNS} texts")
    for one in found:
        if not isinstance(one, str) or not 0 < len(one) <= longest or "\0" in one:
            raise ValueError(f"{key} holds something else than texts of 1 to {longest} characters")
    return found


def _digests(values: Mapping[str, object]) -> list[str]:
    found = _texts(values, "app_sha256", 64)
    if not all(BYTES32.fullmatch("0x" + one) for one in found):
        raise ValueError("app_sha256 holds something else than 64 lower-case hexadecimal digits")
    return found


def _whole(values: Mapping[str, object], key: str, default: int, low: int, high: int) -> int:
    found = values.get(key, default)
    if type(found) is not int or not low <= found <= high:
        raise ValueError(f"{key} is not a whole number from {low} to {high}")
    return found
