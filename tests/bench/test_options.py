"""The words of `ltxgen bench`."""

from pathlib import Path

import pytest

from ltxgen.bench.options import SIZES, Size, parse_options
from ltxgen.config.errors import Refusal


def overrides(*words: str) -> list[list[str]]:
    return parse_options(words).overrides_of_runs(Path("out"))


def test_nothing_is_every_case_of_the_two_stage_recipe_at_two_sizes():
    options = parse_options(())
    assert (options.cases, options.sizes, options.peer) == ((), SIZES, "auto")
    first, second = options.overrides_of_runs(Path("out"))
    assert first[:2] == ["+recipe=ltx23_two_stage", "artifacts=synthetic"]
    assert "request.width=768" in first
    assert "request.width=1536" in second
    assert first[-1] == "output.dir=out"


def test_cases_options_and_overrides_in_any_order():
    words = ("attention=sdpa_cudnn", "--sizes", "64x32x9", "guided", "--json", "out.json", "~stages.write", "forward")
    options = parse_options(words)
    assert options.cases == ("forward", "guided")
    assert options.sizes == (Size(64, 32, 9),)
    assert options.overrides == ("attention=sdpa_cudnn", "~stages.write")
    assert options.json == Path("out.json")


def test_an_option_may_hold_its_value():
    assert parse_options(("--sizes=64x32x9,128x64x17", "--peer=none")).sizes == (Size(64, 32, 9), Size(128, 64, 17))


def test_what_is_chosen_is_not_chosen_again():
    (tiny,) = overrides("model=ltx23_tiny", "request=demo")
    assert tiny[:3] == ["+recipe=ltx23_two_stage", "model=ltx23_tiny", "request=demo"]
    assert not any("request.width" in word for word in tiny)
    assert overrides("+recipe=mine", "artifacts=files")[0][:2] == ["+recipe=mine", "artifacts=files"]


def test_sizes_beside_another_request():
    (words,) = overrides("request.seed=3", "--sizes", "64x32x9")
    assert words.index("request.seed=3") < words.index("request.width=64")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("forwrad",), "bench = forwrad: must be one of forward, .*did you mean 'forward'"),
        (("--sizes", "64x32"), "--sizes = 64x32: must be WIDTHxHEIGHTxFRAMES"),
        (("--sizes",), "expected one argument; it takes forward"),
        (("--size", "64x32x9"), "unrecognized arguments: --size"),
        (("--peer", "diffuser"), "did you mean 'diffusers'"),
        (("--json", "nowhere/out.json"), "--json = nowhere/out.json: the folder"),
    ],
)
def test_what_is_no_word_of_bench(words, message):
    with pytest.raises(Refusal, match=message):
        parse_options(words)
