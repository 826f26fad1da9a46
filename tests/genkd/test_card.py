"""Cards: the JSON round trip, what is refused, and the flags of the command line."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genkd.canonical import canonical_json, parse_json
from genkd.card import InputCard, ModelCard, ModelSpec, card_from_json, card_to_json
from genkd.errors import InputFileRefused, UsageError

CARD = ModelCard(
    ModelSpec("resnet8", 3, 1), InputCard(32, 28, 1, (0.2860,), (0.3530,)), ("a", "b", "é"), "mine"
)

means = st.floats(-10, 10, allow_nan=False)
stds = st.floats(1e-5, 10)


@st.composite
def cards(draw: st.DrawFn) -> ModelCard:
    channels = draw(st.integers(1, 4))
    classes = draw(st.integers(2, 4))
    printable = st.text(st.characters(codec="utf-8"), max_size=5).filter(str.isprintable)
    return ModelCard(
        ModelSpec(draw(st.sampled_from(["resnet8", "torchvision:vgg11"])), classes, channels),
        InputCard(
            draw(st.integers(1, 300)),
            draw(st.integers(1, 300)),
            channels,
            tuple(draw(st.lists(means, min_size=channels, max_size=channels))),
            tuple(draw(st.lists(stds, min_size=channels, max_size=channels))),
        ),
        draw(st.none() | st.tuples(*[printable] * classes)),
        draw(printable),
    )


@given(cards())
@settings(max_examples=50, deadline=None)
def test_card_survives_canonical_json_exactly(card: ModelCard) -> None:
    assert card_from_json(parse_json(canonical_json(card_to_json(card)))) == card


def test_card_written_by_hand_with_plain_numbers_is_read() -> None:
    text = """{"v": 1, "architecture": "resnet8", "num_classes": 10,
               "input": {"height": 32, "width": 32, "channels": 1, "mean": [0.5], "std": [1]}}"""
    card = card_from_json(json.loads(text))
    assert card.input == InputCard(32, 32, 1, (0.5,), (1.0,))
    assert card.class_names is None


def _with(path: str, value: object) -> Any:
    """The card's JSON with one field replaced, or removed where the value is ..."""
    fields: Any = copy.deepcopy(card_to_json(CARD))
    *parents, last = path.split(".")
    place = fields
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return fields


HOSTILE: list[tuple[str, object]] = [
    ("v", 2),
    ("v", ...),
    ("extra", 1),
    ("architecture", ...),
    ("architecture", 5),
    ("architecture", "../../etc/passwd"),
    ("architecture", "timm:hf_hub:somebody/model"),
    ("architecture", "a" * 200),
    ("num_classes", 1),
    ("num_classes", True),
    ("num_classes", 10**9),
    ("num_classes", "3"),
    ("input", None),
    ("input.height", 0),
    ("input.height", 10**6),
    ("input.extra", 1),
    ("input.channels", 3),
    ("input.channels", 65),
    ("input.mean", "0.5"),
    ("input.mean", ["nan"]),
    ("input.mean", ["1e999"]),
    ("input.mean", ["0x10"]),
    ("input.mean", [True]),
    ("input.mean", ["1_0"]),
    ("input.mean", []),
    ("input.std", ["0"]),
    ("input.std", ["-1"]),
    ("input.std", [float("nan")]),
    ("input.std", [10**400]),
    ("class_names", "abc"),
    ("class_names", ["a", "b"]),
    ("class_names", ["a", "b", 3]),
    ("class_names", ["a", "b", "\x1b[31m"]),
    ("class_names", ["a", "b", "x" * 1000]),
    ("description", 5),
    ("description", "two\nlines"),
]


@pytest.mark.parametrize(
    ("path", "value"), HOSTILE, ids=[f"{path}={ascii(value)[:24]}" for path, value in HOSTILE]
)
def test_hostile_card_is_refused_in_one_line(path: str, value: object) -> None:
    with pytest.raises(InputFileRefused, match="card is not valid") as caught:
        card_from_json(_with(path, value))
    assert str(caught.value).isprintable()
    assert caught.value.hint


@pytest.mark.parametrize("value", [None, [], {}, "card", 1])
def test_what_is_no_card_at_all_is_refused(value: object) -> None:
    with pytest.raises(InputFileRefused, match="card is not valid"):
        card_from_json(value)


@pytest.mark.parametrize(
    ("flags", "card"),
    [
        (("32x32", "0.5", "0.25"), InputCard(32, 32, 1, (0.5,), (0.25,))),
        (("28x32", "0.5,0.4,0.3", "1"), InputCard(28, 32, 3, (0.5, 0.4, 0.3), (1.0,) * 3)),
        (("3x224x224", "0", "1"), InputCard(224, 224, 3, (0.0,) * 3, (1.0,) * 3)),
    ],
)
def test_flags_make_a_card(flags: tuple[str, str, str], card: InputCard) -> None:
    assert InputCard.from_text(*flags) == card


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("32", "0.5", "0.5"), "is not a size"),
        (("0x32", "0.5", "0.5"), "sides are 1 to"),
        (("32x32x32x3", "0.5", "0.5"), "is not a size"),
        (("3x32x32", "0.5,0.5", "0.5"), "2 values of mean for images of 3"),
        (("999x32x32", "0.5", "0.5"), "image channels"),
        (("32x32", "half", "0.5"), "not a list of numbers"),
        (("32x32", "nan", "0.5"), "not a finite number"),
        (("32x32", "0.5", "0"), "above 0"),
        (("32x32", "127.5", "inf"), "not a finite number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_flags_are_said(flags: tuple[str, str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        InputCard.from_text(*flags)


def test_card_whose_network_takes_other_channels_is_refused() -> None:
    with pytest.raises(UsageError, match="takes images of 3 channel"):
        ModelCard(ModelSpec("resnet8", 10, 3), InputCard(32, 32, 1, (0.5,), (0.5,)))
