"""Words and recipes that are wrong before there is a request: one message that names them, exit code 2, nothing
written, and nothing of Hydra's own."""

from __future__ import annotations

from pathlib import Path

import pytest

RECIPE = ("+recipe=ltx23_two_stage", "model=ltx23_tiny", "request=demo")
OTHER_STAGES = (
    "is not a known key; the stages are prompt, base_images, refine_images, base, upsample, refine, decode_video, "
    "decode_audio, write"
)
WORDS = [
    (("--nonsense",), "command line: unrecognized arguments: --nonsense; see `ltxgen --help`"),
    ((*RECIPE, "--nonsense"), "command line: unrecognized arguments: --nonsense; see `ltxgen --help`"),
    (("--cfg",), "command line: argument --cfg/-c: expected one argument"),
    (("--config-name=nothing", *RECIPE), "command line: Cannot find primary config 'nothing'"),
    ((*RECIPE, "~stages.bse"), f"stages.bse: {OTHER_STAGES}; did you mean 'base'?"),
    ((*RECIPE, "stages.nix=null"), f"stages.nix = null: {OTHER_STAGES}\n"),
    (("-m", *RECIPE, "stages.nix=null", "request.seed=1,2"), f"stages.nix = null: {OTHER_STAGES}\n"),
    (
        ("-m", *RECIPE, "stages.bse=null", "request.seed=1,2"),
        f"stages.bse = null: {OTHER_STAGES}; did you mean 'base'?",
    ),
    ((*RECIPE, "request.prompt"), "command line = request.prompt: an override reads key=value"),
    (("--cfg", "job", "--package", "nix", *RECIPE), "--package = nix: is not in the config; there are name, runtime, "),
    (("--cfg", "job", "--package", "requst", *RECIPE), "--package = requst: is not in the config; there are name, "),
    (("--cfg", "job", "-p", "stages.bse", *RECIPE), "--package = stages.bse: is not in the config; there are stages."),
    (("--cfg", "hydra", "-p", "request", *RECIPE), "--package = request: is not in the config; there are hydra\n"),
    (("--cfg", "job", "-p", "request.negative_prompt", *RECIPE), "--package = request.negative_prompt: is null, so"),
    ((*RECIPE, "request.height=[1"), "request.height = [1: can't be read (no viable alternative at input '[1'); write"),
    ((*RECIPE, "request.images=a.png"), "request.images = a.png: must be a list of mappings with the keys path, frame"),
    ((*RECIPE, "output.dir="), "output.dir = : must name a folder"),
    ((*RECIPE, "requests.mode=zip"), "requests.mode = zip: says how the rows of a file combine; add requests=FILE"),
    ((*RECIPE, "hydra/sweeper=optunaa"), "hydra/sweeper = optunaa: no such choice; there are ltxgen; those of other"),
    (("cp",), "cp: takes two names"),
    (("-m", "+recipe="), "recipe = : no such recipe; there are "),
    (("-m", "+recipe=nothing"), "recipe = nothing: no such recipe; there are "),
    (("-m", *RECIPE, "request.sed=3"), "request.sed = 3: is not a known key; did you mean 'request.seed'?"),
    (("plan", "-m", *RECIPE, "request.seed=1,2", "request.sed=3"), "request.sed = 3: is not a known key"),
    (("-m", *RECIPE, "request.seed=1,"), "request.seed = 1,: can't be read (mismatched input '<EOF>'); write numbers"),
    (("-m", *RECIPE, "request.seed=range(1,"), "request.seed = range(1,: can't be read (no viable alternative"),
    (("-m", *RECIPE, "output.dir="), "output.dir = : must name a folder"),
]


@pytest.mark.parametrize(("words", "message"), WORDS)
def test_wrong_words(run_ltxgen, tmp_path: Path, words: tuple[str, ...], message: str):
    result = run_ltxgen(*words, cwd=tmp_path)
    assert (result.code, result.out) == (2, ""), result.err
    assert result.err.startswith(f"ltxgen: {message}")
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


RECIPES = [
    ("name: x\nstages: 3\n", "stages = 3: must be a mapping from names to mappings with a kind, as in conf/stage"),
    ("name: x\ndefaults: 5\n", "has defaults 5, which must be a list"),
    ("defaults:\n  - mine\n  - _self_\n", "recipe = mine: its defaults lead back to itself"),
    ("defaults:\n  - /stage@stages.a: nope\n  - _self_\n", "Could not find 'stage/nope'; there are condition_images, "),
    ("defaults: [ltx23_two_stag, _self_]\n", "'recipe/ltx23_two_stag'; there are ltx23_audio_to_video, "),
    ("defaults: [ltx23_two_stag, _self_]\n", ", mine; did you mean 'ltx23_two_stage'?"),
    ("defaults: [/stage/denoize@stages.a]\n", "'stage/denoize'; there are condition_images, "),
    ("defaults: [/stage@stages.a: denoize]\n", "; did you mean 'denoise'?"),
    ("a: [\n", "is no YAML that can be read: while parsing a flow node"),
    ("# \udcff\n", "is no YAML that can be read: 'utf-8' codec can't decode"),
]


@pytest.mark.parametrize("flags", [(), ("-m",)], ids=["run", "sweep"])
@pytest.mark.parametrize(("text", "message"), RECIPES, ids=lambda each: each[:12])
def test_broken_recipes(run_ltxgen, tmp_path: Path, text: str, message: str, flags: tuple[str, ...]):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/mine.yaml").write_bytes(text.encode(errors="surrogateescape"))
    result = run_ltxgen(*flags, "+recipe=mine", cwd=tmp_path)
    assert (result.code, result.out) == (2, ""), result.err
    assert result.err.startswith("ltxgen: ")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_recipes_that_can_not_be_read_are_listed_with_the_others(run_ltxgen, tmp_path: Path):
    (tmp_path / "recipes/folder.yaml").mkdir(parents=True)
    (tmp_path / "recipes/broken.yaml").write_bytes(b"# \xff\n")
    result = run_ltxgen("ls", "recipe", cwd=tmp_path)
    assert result.code == 0, result.err
    assert "broken" in result.out
    assert "folder" not in result.out


@pytest.mark.parametrize("words", [("show", "a.mp4"), ("compare", "a.mp4", "a.mp4")])
def test_a_video_that_is_none(run_ltxgen, tmp_path: Path, words: tuple[str, ...]):
    (tmp_path / "a.mp4").write_text("nothing")
    result = run_ltxgen(*words, cwd=tmp_path)
    assert result.code == 2
    assert "= a.mp4: is no readable video (Invalid data found when processing input); give " in result.err
    assert str(tmp_path) not in result.err
