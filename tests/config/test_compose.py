"""Composition: recipes found by name and path, overrides in Hydra's grammar, and mistakes told all at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from ltxgen.config import compose
from ltxgen.config.compose import folders
from ltxgen.config.errors import Refusal
from ltxgen.config.recipe import parse_recipe

RECIPE = "+recipe=ltx23_two_stage"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """A user's project as the current folder; the fixture adds a recipe to it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compose.RecipesByPath.instance(), "files", {})

    def add(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return add


def composed(*words: str) -> dict:
    return compose.compose_config(compose.name_recipe_paths(compose.open_overrides(words)))


def refused(*words: str) -> list[str]:
    with pytest.raises(Refusal) as caught:
        composed(*words)
    return [str(problem) for problem in caught.value.problems]


OWN = "defaults: [ltx23_two_stage, _self_]\nname: own\nrequest: {seed: 77}\nstages: {base: {steps: 5}}\n"


def test_a_recipe_needs_no_plus():
    plain, plus = (composed(f"{word}recipe=ltx23_two_stage", "output.dir=here") for word in ("", "+"))
    assert plain == plus


def test_a_recipe_of_the_package():
    config = composed(RECIPE)
    assert config["name"] == "ltx23_two_stage"
    images = ["base_images", "refine_images"]
    later = ["base", "upsample", "refine", "decode_video", "decode_audio", "write"]
    assert list(config["stages"]) == ["prompt", *images, *later]
    assert parse_recipe(config).stages["base"].steps == 30


def test_a_recipe_of_the_users_project_by_name(project):
    project("recipes/own.yaml", OWN)
    config = composed("+recipe=own")
    assert (config["name"], config["request"]["seed"], config["stages"]["base"]["steps"]) == ("own", 77, 5)
    # The command line wins over the recipe.
    assert composed("+recipe=own", "request.seed=3", "stages.base.steps=4")["stages"]["base"]["steps"] == 4


def test_the_users_project_hides_a_recipe_of_the_same_name(project):
    path = project("recipes/ltx23_two_stage.yaml", "name: mine\n")
    assert composed(RECIPE)["name"] == "mine"
    assert compose.recipe_files()["ltx23_two_stage"] == path


def test_a_recipe_by_path(project):
    project("elsewhere/deep/own.yaml", OWN)
    assert composed("+recipe=elsewhere/deep/own.yaml")["request"]["seed"] == 77
    absolute = project("a b/run (1)/own.yaml", OWN.replace("77", "78"))
    assert composed(f"+recipe={absolute}")["request"]["seed"] == 78


def test_a_missing_recipe_file_is_refused(project):
    (text,) = refused("+recipe=there/is/none.yaml")
    assert text == "recipe = there/is/none.yaml: no such file; give a recipe's name or the path of its YAML"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [unclosed", "is no YAML that can be read: while parsing a flow sequence"),
        ("- a\n- b\n", "must be a mapping"),
        ("defaults: [nowhere]", "Could not load 'recipe/nowhere'"),
    ],
)
def test_broken_recipes_say_what_is_wrong(project, text, message):
    project("recipes/broken.yaml", text)
    (problem,) = refused("+recipe=broken")
    assert problem.startswith("recipe = ")
    assert message in problem
    assert "did you mean" not in problem


def test_the_model_of_the_command_line_wins_over_the_recipe(project):
    project("recipes/fixed.yaml", "defaults: [ltx23_two_stage, {override /model: ltx23}, _self_]\n")
    for recipe in ("ltx23_two_stage", "fixed"):
        config = composed(f"+recipe={recipe}", "model=ltx23_tiny")
        assert config["model"]["name"] == "ltx23_tiny"
        assert config["artifacts"]["source"] == "embedded"
        assert config["runtime"]["dtype"] == "float32"
        assert config["stages"]["base"]["guidance"]["video"]["stg_blocks"] == [2]
        # and a value of the command line wins over the model's
        assert composed(f"+recipe={recipe}", "model=ltx23_tiny", "runtime.dtype=bfloat16")["runtime"] == {
            **config["runtime"],
            "dtype": "bfloat16",
        }


def test_choices_inside_stages():
    config = composed(RECIPE, "guidance@stages.base.guidance=none", "request=demo", "memory=resident")
    assert config["stages"]["base"]["guidance"] == {"kind": "none"}
    assert config["request"]["num_frames"] == 33
    assert config["memory"]["policy"] == "resident"


def test_loras_are_added_without_a_plus():
    config = composed(
        RECIPE,
        "stages.base.loras.style=0.4",
        "stages.refine.loras.distilled=0.5",
        "stages.refine.loras.style=-1",
        "artifacts.loras.style.path=/somewhere/style.safetensors",
    )
    assert config["stages"]["base"]["loras"] == {"style": 0.4}
    assert config["stages"]["refine"]["loras"] == {"distilled": 0.5, "style": -1}
    assert config["artifacts"]["loras"] == {"style": {"path": "/somewhere/style.safetensors"}}
    parsed = parse_recipe(config)
    assert parsed.artifacts.loras["style"].path == "/somewhere/style.safetensors"
    assert parsed.stages["base"].loras == {"style": 0.4}


def test_override_grammar():
    config = composed(
        RECIPE,
        "request.fps=30000/1001",
        "stages.refine.sigmas=[0.9, 0.5, 0]",
        "stages.decode_video.tiling=null",
        "stages.base.guidance.video={cfg_scale: 2.0}",
        "~stages.write",
        "output.dir=some where/${name}",
    )
    assert config["request"]["fps"] == "30000/1001"
    assert config["stages"]["refine"]["sigmas"] == [0.9, 0.5, 0]
    assert config["stages"]["decode_video"]["tiling"] is None
    assert config["stages"]["base"]["guidance"]["video"]["cfg_scale"] == 2.0
    assert config["stages"]["base"]["guidance"]["video"]["modality_scale"] == 3.0
    assert "write" not in config["stages"]
    assert config["output"]["dir"] == "some where/ltx23_two_stage"


@pytest.mark.parametrize(
    "prompt",
    [
        "a boat, at dawn",
        'it\'s dawn; he says "hi" (loud)',
        "a=b [c] {d: e}, 100%",
        "Über den Wolken – 🌊",
        "two\nlines",
        "back\\slash and \\'",
        "ends in \\",
        "5",
        "true",
        "null",
        "",
    ],
)
def test_prompts_are_taken_as_they_stand(prompt: str):
    assert parse_recipe(composed(RECIPE, f"request.prompt={prompt}")).request.prompt == prompt


def test_hydras_quotes_and_null_keep_their_meaning():
    config = composed(RECIPE, "request.prompt='a, b'", "request.negative_prompt=null", "artifacts.checkpoint.path=null")
    assert config["request"]["prompt"] == "a, b"
    assert config["request"]["negative_prompt"] is None
    assert config["artifacts"]["checkpoint"]["path"] is None
    path = "/a b/c, d (1)=.safetensors"
    assert composed(RECIPE, f"artifacts.checkpoint.path={path}")["artifacts"]["checkpoint"]["path"] == path


def test_in_a_sweep_commas_separate():
    words = ["-m", RECIPE, "request.prompt=a,b", "request.seed=1,2"]
    assert compose.open_overrides(words) == words
    jobs = compose.jobs_of_sweep(compose.open_overrides(words)[1:])
    assert [job[1:] for job in jobs] == [
        [f"request.prompt={prompt}", f"request.seed={seed}"] for prompt in "ab" for seed in (1, 2)
    ]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("request.sed=1", "request.sed = 1: is not a known key; did you mean 'request.seed'?"),
        ("stages.bas.steps=1", "stages.bas.steps = 1: is not a known key; the stages are prompt, "),
        (
            "model=ltx23_tinny",
            "model = ltx23_tinny: no such choice; there are ltx2, ltx23, ltx23_tiny, ltx2_tiny; did you mean",
        ),
        ("request=5", "request = 5: no such choice; there are default, demo"),
        ("request.seed=1,2", "request.seed = 1,2: several values are a sweep: add -m"),
        ("request.seed=[1", "request.seed = [1: "),
        ("word", "command line = word: an override reads key=value"),
        ("=3", "command line = =3: an override reads key=value"),
        (
            "guidance@stages.base.guidance=nine",
            "guidance@stages.base.guidance = nine: no such choice; there are by_sigma, ltx23, ltx23_audio, ",
        ),
    ],
)
def test_what_cannot_be_applied_is_named(word: str, message: str):
    (text,) = refused(RECIPE, word)
    assert text.startswith(message)


def test_unknown_recipe():
    (text,) = refused("+recipe=ltx23_two_stag")
    assert text.startswith("recipe = ltx23_two_stag: no such recipe; there are ")
    assert text.endswith("did you mean 'ltx23_two_stage'?")


def test_all_that_cannot_be_applied_in_one_message_and_no_innocent_word():
    """Taking out the recipe makes every stages.* override fail as well: it must not be blamed for them."""
    texts = refused(RECIPE, "stages.base.steps=2", "request.sed=1", "stages.refine.sigmas=[1,0]", "foo=1", "model=x")
    assert {text.split(" =")[0] for text in texts} == {"request.sed", "foo", "model"}
    # in any order of the words
    texts = refused("stages.base.steps=2", "request.sed=1", "foo=1", RECIPE)
    assert {text.split(" =")[0] for text in texts} == {"request.sed", "foo"}


def test_the_rest_of_the_config_comes_with_the_refusal():
    with pytest.raises(compose.CompositionRefusal) as caught:
        composed(RECIPE, "request.sed=1", "request.num_frames=100")
    assert caught.value.data["request"]["num_frames"] == 100
    assert caught.value.data["name"] == "ltx23_two_stage"


def test_an_interpolation_that_leads_nowhere_is_refused():
    (text,) = refused(RECIPE, "output.dir=${nowhere}")
    assert text.startswith("output.dir: Interpolation key 'nowhere' not found")


def test_composing_twice_gives_the_same_and_leaves_hydra_clean():
    first = composed(RECIPE, "output.dir=x")
    assert composed(RECIPE, "output.dir=x") == first
    assert not GlobalHydra.instance().is_initialized()


def test_groups_and_their_first_sentences(project):
    project("recipes/own.yaml", "# Three words here. And more.\n# ltxgen +recipe=own\nname: own\n")
    groups = compose.groups()
    assert next(iter(groups)) == "recipe"
    assert {"ltx23_two_stage", "own"} <= set(groups["recipe"])
    assert groups["recipe"] == sorted(groups["recipe"])
    assert set(groups) >= {"request", "model", "artifacts", "parallel", "attention", "stage", "sampler", "guidance"}
    assert compose.first_comment("recipe", "own") == "Three words here."
    assert compose.first_comment("model", "ltx23") == "LTX-2.3, 22B: picture and sound."


def test_data_folders_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a wheel conf/ and recipes/ stand inside the package."""
    assert (compose.data_folder("conf") / "config.yaml").is_file()
    (tmp_path / "ltxgen" / "conf").mkdir(parents=True)
    monkeypatch.setattr(folders.resources, "files", lambda name: tmp_path / name)
    assert compose.data_folder("conf") == tmp_path / "ltxgen" / "conf"
    assert compose.data_folder("recipes") == tmp_path / "recipes"


def test_the_composed_config_is_plain_yaml():
    config = composed(RECIPE, "model=ltx23_tiny")
    assert yaml.safe_load(yaml.safe_dump(config)) == config
    assert "hydra" not in config
