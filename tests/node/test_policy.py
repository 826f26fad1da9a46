"""The policy file says what a node answers, and a mistake in it answers nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from genkd.errors import ConfigurationError
from genkd.provenance.record import run_id_of
from node.policy import POLICY_FILE, Policy, default_policy_text

NODE = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
DIGEST = "ab" * 32


def text(**changes: object) -> str:
    values: dict[str, object] = {
        "node": NODE,
        "runs": ["spring", "0x" + "11" * 32],
        "app_sha256": DIGEST,
        "releases": [Path("/data/runs"), Path("more")],
    }
    return default_policy_text(**(values | changes))  # type: ignore[arg-type]


def load(folder: Path, content: str) -> Policy:
    (folder / POLICY_FILE).write_text(content)
    return Policy.load(folder)


def test_what_join_writes_is_what_is_read(tmp_path: Path) -> None:
    policy = load(tmp_path, text(max_release_bytes=7, seconds_between_answers=0))
    assert policy.node == NODE
    assert policy.run_ids == {run_id_of("spring"), b"\x11" * 32}
    assert policy.app_sha256 == {DIGEST}
    # Wherever the node is started, a relative folder begins at the membership.
    assert policy.releases == (Path("/data/runs"), tmp_path / "more")
    assert (policy.max_release_bytes, policy.seconds_between_answers) == (7, 0)


@pytest.mark.parametrize("name", ["a b", 'quo"te', "back\\slash", "ü", "tab\t", "#", "]"])
def test_names_of_any_kind_survive(name: str, tmp_path: Path) -> None:
    policy = load(tmp_path, text(runs=[name], releases=[Path("/data") / name]))
    assert policy.runs == (name,)
    assert policy.releases == (Path("/data") / name,)


@pytest.mark.parametrize("name", ["\x7f", "\udc80"], ids=["delete", "not-unicode"])
def test_a_name_that_no_file_can_hold_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        text(runs=[name])


LINE = {
    "node": f'node = "{NODE}"',
    "runs": 'runs = ["spring"]',
    "app_sha256": f'app_sha256 = ["{DIGEST}"]',
    "releases": 'releases = ["runs"]',
}


def lines(**changes: str) -> str:
    return "\n".join((LINE | changes).values())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "no policy"),
        ("[[", "cannot be read"),
        ("#" * (2**20 + 1), "larger than"),
        (lines(x="ruins = []"), "unknown key: ruins"),
        (lines(x="secret = 1"), "unknown key: secret"),
        (lines(node=""), "not an Ethereum address"),
        (lines(node='node = "0x12"'), "not an Ethereum address"),
        (lines(node=f'node = "{NODE[:-1]}A"'), "checksum"),
        (lines(runs=""), "runs is not a list"),
        (lines(runs="runs = []"), "runs is not a list"),
        (lines(runs='runs = "spring"'), "runs is not a list"),
        (lines(runs="runs = [1]"), "runs holds"),
        (lines(runs='runs = [""]'), "runs holds"),
        (lines(app_sha256='app_sha256 = ["*"]'), "app_sha256 holds"),
        (lines(app_sha256=f'app_sha256 = ["{DIGEST.upper()}"]'), "app_sha256 holds"),
        (lines(releases='releases = ["\\u0000"]'), "releases holds"),
        (lines(x="max_release_bytes = 0"), "max_release_bytes is not"),
        (lines(x="max_release_bytes = 1.5"), "max_release_bytes is not"),
        (lines(x="max_release_bytes = true"), "max_release_bytes is not"),
        (lines(x=f"max_release_bytes = {2**62}"), "max_release_bytes is not"),
        (lines(x="seconds_between_answers = -1"), "seconds_between_answers is not"),
        (lines(x='seconds_between_answers = "often"'), "seconds_between_answers is not"),
    ],
)
def test_a_mistake_is_named(content: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=told):
        load(tmp_path, content)


def test_a_misspelt_key_is_corrected(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, lines(x="max_release_byte = 5"))
    assert refused.value.hint == "did you mean max_release_bytes?"


def test_without_a_file_there_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no policy"):
        Policy.load(tmp_path)
