"""The jobs of a sweep are composed as Hydra composes them, though most of it is done once for all."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ltxgen.config import compose
from ltxgen.config.compose.composition import CONFIG_NAME
from ltxgen.config.launcher import Compositions

RECIPE, MODEL = "+recipe=ltx23_two_stage", "model=ltx23_tiny"
NAMED = "output.dir='outputs/${hydra:job.override_dirname}'"
JOBS = [
    (RECIPE, MODEL, "request.seed=1", NAMED),
    (RECIPE, MODEL, "request.seed=2", NAMED),
    (RECIPE, MODEL, "request.seed=2", "stages.refine.loras.distilled=0.5", "~stages.write", "+request.more={a: 1}"),
    (RECIPE, MODEL, "stages.refine.loras={}", "request.prompt='a, ${b} = \"c\" 中'", "++runtime.extra=[1,2]"),
    (RECIPE, "request=demo", "attention=reference", "request.seed=3", "hydra.job.chdir=false"),
    ("+recipe=ltx23_text_to_audio", MODEL, "request.seed=3"),
    (RECIPE, MODEL, "guidance@stages.base.guidance=none", "request.seed=1"),
    (RECIPE, MODEL, "request.seed=1", NAMED),
]


@pytest.fixture
def loader(monkeypatch):
    compose.register_plugins()
    GlobalHydra.instance().clear()
    setup_globals()
    with initialize_config_dir(version_base="1.3", config_dir=str(compose.data_folder("conf")), job_name="ltxgen"):
        yield GlobalHydra.instance().hydra.config_loader


@pytest.fixture
def master(loader) -> DictConfig:
    return loader.load_configuration(CONFIG_NAME, ["output.tensors=true"], RunMode.MULTIRUN)


def plain(config: DictConfig) -> tuple[Any, bool]:
    return OmegaConf.to_container(config, resolve=False), OmegaConf.is_struct(config)


def test_jobs_are_what_hydra_makes_of_them(loader, master):
    compositions = Compositions(loader, master)
    for words in JOBS:
        assert plain(compositions.compose(words)) == plain(loader.load_sweep_config(master, list(words))), words
    assert len(compositions._known) == 4


@pytest.mark.parametrize(
    "word", ["request.sead=1", "+request.seed=1", "~request.nothing", "model=nothing", "nothing@a=b"]
)
def test_what_hydra_refuses(loader, master, word):
    with pytest.raises(Exception) as theirs:
        loader.load_sweep_config(master, [RECIPE, word])
    compositions = Compositions(loader, master)
    compositions.compose([RECIPE])
    with pytest.raises(type(theirs.value)) as ours:
        compositions.compose([RECIPE, word])
    assert isinstance(ours.value, ConfigCompositionException)
    assert str(ours.value) == str(theirs.value)
