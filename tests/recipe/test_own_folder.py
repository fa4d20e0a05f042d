from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from ltxgen.recipe.own_folder import FORMAT, own_folder

LATENTS_ONLY = ("~stages.decode_video", "~stages.decode_audio", "~stages.write")


def this_second() -> str:
    return datetime.datetime.now().strftime(FORMAT)


def test_the_default_folder_has_such_a_name():
    from ltxgen.config import compose

    folder = Path(compose.compose_config(["+recipe=ltx23_two_stage"])["output"]["dir"])
    assert datetime.datetime.strptime(folder.name, FORMAT)


def test_each_has_its_own(tmp_path: Path):
    wanted = tmp_path / "outputs" / this_second()
    with ExitStack() as held, ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(lambda _: held.enter_context(own_folder(wanted)), range(8)))
        for number, folder in enumerate(sorted(folders)):
            (folder / str(number)).touch()
    names = [wanted.name, *(f"{wanted.name}_{number}" for number in range(2, 9))]
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == sorted(names)
    assert len(set(folders)) == 8


@pytest.mark.parametrize("name", ["mine", "2020-01-31_12-00-00", "2020-13-01_00-00-00", "9999-01-01_00-00-00"])
def test_a_name_that_was_given_is_used_as_it_is(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    with own_folder(tmp_path / name) as folder:
        assert folder == tmp_path / name
    with own_folder(tmp_path / "new" / name) as folder:
        assert not folder.parent.exists()


def test_nothing_is_left_of_what_came_to_nothing(tmp_path: Path):
    wanted = tmp_path / "a" / "b" / this_second()

    def fail(*names: str) -> None:
        with own_folder(wanted) as folder:
            for name in names:
                (folder / name).touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError):
        fail("something")
    assert (wanted / "something").exists()


def test_where_nothing_can_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    wanted = tmp_path / "file" / this_second()
    with own_folder(wanted) as folder:
        assert folder == wanted


def test_runs_and_sweeps_that_start_in_one_second(run_ltxgen, tiny_words, tmp_path: Path):
    name = this_second()
    words = (*tiny_words, *LATENTS_ONLY, f"output.dir=outputs/{name}")
    for command in ((), (), ("-m", "request.seed=1,2")):
        result = run_ltxgen(*command, *words, cwd=tmp_path)
        assert result.code == 0, result.err
    runs = sorted(path.parent.relative_to(tmp_path / "outputs") for path in tmp_path.rglob("manifest.json"))
    assert list(map(str, runs)) == [name, f"{name}_2", f"{name}_3/0", f"{name}_3/1"]
    assert (tmp_path / "outputs" / f"{name}_3" / "sweep.json").exists()
    for command in ((), ("-m",)):
        assert run_ltxgen(*command, *words, "request.num_frames=100", cwd=tmp_path).code == 2
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == [name, f"{name}_2", f"{name}_3"]
    resumed = run_ltxgen("resume", f"outputs/{name}_3", cwd=tmp_path)
    assert resumed.code == 0, resumed.err


def test_sweeps_by_other_launchers_that_start_in_one_second(run_ltxgen, tiny_words, tmp_path: Path):
    name = this_second()
    words = ("-m", *tiny_words, *LATENTS_ONLY, "hydra/launcher=basic", f"output.dir=outputs/{name}", "request.seed=1,2")
    for _ in range(2):
        result = run_ltxgen(*words, cwd=tmp_path)
        assert result.code == 0, result.err
    runs = sorted(path.parent.relative_to(tmp_path / "outputs") for path in tmp_path.rglob("manifest.json"))
    assert list(map(str, runs)) == [f"{name}/0", f"{name}/1", f"{name}_2/0", f"{name}_2/1"]
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == [name, f"{name}_2"]


def test_sweeps_by_other_sweepers_that_start_in_one_second(run_ltxgen, tiny_words, tmp_path: Path):
    """They leave their results beside the jobs, which ltxgen's launcher runs."""
    name = this_second()
    words = ("-m", *tiny_words, *LATENTS_ONLY, "hydra/sweeper=basic", f"output.dir=outputs/{name}", "request.seed=1,2")
    for folder in (name, f"{name}_2"):
        result = run_ltxgen(*words, cwd=tmp_path)
        assert result.code == 0, result.err
        left = sorted(path.name for path in (tmp_path / "outputs" / folder).iterdir())
        assert left == [".sweep", "0", "1", "index.html", "multirun.yaml", "sweep.json"]
