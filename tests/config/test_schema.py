"""Plain data to dataclasses: every problem is found, told at its path, and none is repaired silently."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, Literal

import pytest

from ltxgen.config.errors import MISSING, Problem, Refusal, did_you_mean
from ltxgen.config.recipe import parse_recipe
from ltxgen.config.schema import INVALID, Check, Kind, PositiveFraction, PositiveInt, UnitFloat, parse


@dataclass(frozen=True)
class Wheel:
    size: PositiveInt
    pressure: float = 2.5


@dataclass(frozen=True)
class Cart:
    name: str
    colour: Literal["red", "blue"] = "red"
    front: Wheel = Wheel(3)
    spare: Wheel | None = None
    loads: dict[str, float] = field(default_factory=dict)
    axles: tuple[PositiveInt, ...] = ()
    ratio: PositiveFraction = Fraction(1)
    share: UnitFloat = 0.5
    is_new: bool = False
    even: Annotated[int, Check("must be even", lambda value: value % 2 == 0)] = 2


def problems_of(data: object) -> list[str]:
    problems: list[Problem] = []
    result = parse(Cart, data, "cart", problems)
    assert (result is INVALID) == bool(problems)
    return [str(problem) for problem in problems]


def test_sound_data_become_the_dataclass():
    problems: list[Problem] = []
    data = {
        "name": 7,  # YAML reads a text of digits as a number
        "colour": "blue",
        "spare": {"size": 1, "pressure": 2},
        "loads": {"hay": 1},
        "axles": [1, 2],
        "ratio": "30000/1001",
        "is_new": True,
    }
    cart = parse(Cart, data, "", problems)
    assert problems == []
    assert cart == Cart("7", "blue", Wheel(3), Wheel(1, 2.0), {"hay": 1.0}, (1, 2), Fraction(30000, 1001), is_new=True)
    assert isinstance(cart.spare.pressure, float)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("24", Fraction(24)), (24, Fraction(24)), (29.97, Fraction(2997, 100)), ("23.976", Fraction(2997, 125))],
)
def test_a_decimal_is_taken_as_written(value: object, expected: Fraction):
    problems: list[Problem] = []
    assert parse(Cart, {"name": "a", "ratio": value}, "", problems).ratio == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("colour", "bleu", "cart.colour = bleu: must be one of red, blue; did you mean 'blue'?"),
        ("colour", None, "cart.colour = None: must be one of red, blue"),
        ("front", 3, "cart.front = 3: must be a mapping with the keys size, pressure"),
        ("front", {}, "cart.front.size: is missing"),
        ("front", {"size": 0}, "cart.front.size = 0: must be a whole number of at least 1"),
        ("front", {"size": 1.0}, "cart.front.size = 1.0: must be a whole number"),
        ("front", {"size": True}, "cart.front.size = True: must be a whole number"),
        ("front", {"size": 1, "pressure": float("nan")}, "cart.front.pressure = nan: must be a finite number"),
        ("front", {"size": 1, "pressure": float("inf")}, "cart.front.pressure = inf: must be a finite number"),
        ("front", {"size": 1, "pressure": "2"}, "cart.front.pressure = 2: must be a finite number"),
        (
            "spare",
            {"sise": 1},
            "cart.spare.sise: is not a known key; known here are size, pressure; did you mean 'size'?",
        ),
        ("loads", [1], "cart.loads = [1]: must be a mapping from names to a finite number"),
        ("loads", {"hay": "x"}, "cart.loads.hay = x: must be a finite number"),
        ("axles", 1, "cart.axles = 1: must be a list of a whole number"),
        ("axles", "12", "cart.axles = 12: must be a list of a whole number"),
        ("axles", [1, -1], "cart.axles[1] = -1: must be a whole number of at least 1"),
        ("ratio", "1/0", "cart.ratio = 1/0: must be a number or a fraction such as 30000/1001"),
        ("ratio", float("nan"), "cart.ratio = nan: must be a number or a fraction such as 30000/1001"),
        ("ratio", "fast", "cart.ratio = fast: must be a number or a fraction such as 30000/1001"),
        ("ratio", 0, "cart.ratio = 0: must be greater than 0"),
        ("ratio", "-1/2", "cart.ratio = -1/2: must be greater than 0"),
        ("share", 1.5, "cart.share = 1.5: must be between 0 and 1"),
        ("is_new", 1, "cart.is_new = 1: must be true or false"),
        ("is_new", "yes", "cart.is_new = yes: must be true or false"),
        ("even", 3, "cart.even = 3: must be even"),
        ("name", None, "cart.name = None: must be a text"),
        ("name", True, "cart.name = True: must be a text"),
    ],
)
def test_one_wrong_value(key: str, value: object, message: str):
    found = problems_of({"name": "a", key: value})
    assert message in found


def test_all_problems_at_once():
    found = problems_of({"colour": 1, "front": {"size": -1, "weight": 3}, "axles": [0, "x"], "share": 2})
    assert {line.split(":")[0].split(" =")[0] for line in found} == {
        "cart.name",
        "cart.colour",
        "cart.front.weight",
        "cart.front.size",
        "cart.axles[0]",
        "cart.axles[1]",
        "cart.share",
    }
    assert "cart.name: is missing" in found


def test_components_by_kind():
    @dataclass(frozen=True)
    class Holder:
        sampler: Annotated[Any, Kind("sampler")]

    problems: list[Problem] = []
    held = parse(Holder, {"sampler": {"kind": "euler"}}, "", problems)
    assert problems == []
    assert held.sampler.kind == "euler"
    assert parse(Holder, {"sampler": {"kind": "eular"}}, "", problems) is INVALID
    assert parse(Holder, {"sampler": {}}, "", problems) is INVALID
    assert parse(Holder, {"sampler": {"kind": "euler", "order": 2}}, "", problems) is INVALID
    texts = [str(problem) for problem in problems]
    assert "did you mean 'euler'?" in texts[0]
    assert texts[1].startswith("sampler.kind = None: must be one of")
    assert texts[2].startswith("sampler.order: is not a known key")


def test_refusals_tell_each_problem_once_and_shorten_long_values():
    problem = Problem("a.b", "x" * 300, "is too long")
    refusal = Refusal([problem, problem, Problem("c", MISSING, "is missing")])
    assert len(refusal.problems) == 2
    first, second = str(refusal).splitlines()
    assert len(first) < 160
    assert second == "c: is missing"


def test_values_of_any_type_may_be_refused():
    """Lists and mappings are no less wrong than numbers."""
    problem = Problem("a", [1, {"b": 2}], "is wrong")
    assert str(Refusal([problem, Problem("a", [1, {"b": 2}], "is wrong")])) == "a = [1, {'b': 2}]: is wrong"
    assert len(Refusal([problem, Problem("a", [2], "is wrong")]).problems) == 2


def test_did_you_mean_only_for_close_names():
    assert did_you_mean("heigth", ["width", "height"]) == "; did you mean 'height'?"
    assert did_you_mean("colour", ["width", "height"]) == ""


def test_a_recipe_tells_everything_at_once():
    """Types, bounds, unknown keys and rules over several values come in one refusal."""
    with pytest.raises(Refusal) as caught:
        parse_recipe(
            {
                "name": "x",
                "request": {"prompt": "a", "default_negative_prompt": "b", "num_frames": 100, "heigth": 64},
                "runtime": {"dtype": "float8"},
                "stages": {"1st": {"kind": "encode_prompt"}, "base": {"kind": "denoize"}},
            }
        )
    texts = [str(problem) for problem in caught.value.problems]
    for start in (
        "request.heigth: is not a known key",
        "request.num_frames = 100: must be 8k + 1; the nearest are 97 and 105",
        "runtime.dtype = float8: must be one of float32, bfloat16",
        "stages.base.kind = denoize: must be one of",
        "stages.1st: a stage name is letters, digits and underscores",
        "model: is missing",
        "output: is missing",
        "attention: is missing",
    ):
        assert any(text.startswith(start) for text in texts), start


@pytest.mark.parametrize(("num_frames", "nearest"), [(100, "97 and 105"), (2, "1 and 9"), (8, "1 and 9")])
def test_frame_counts(num_frames: int, nearest: str):
    request = {"prompt": "a", "default_negative_prompt": "b", "num_frames": num_frames}
    with pytest.raises(Refusal, match=f"the nearest are {nearest}"):
        parse_recipe({"request": request})


@pytest.mark.parametrize("stages", [None, {}])
def test_a_recipe_has_stages(stages: object):
    with pytest.raises(Refusal, match=r"stages: a recipe has stages; choose one with \+recipe=NAME"):
        parse_recipe({"stages": stages})
