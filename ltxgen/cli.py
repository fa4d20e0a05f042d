"""The command line: finds the command, lets Hydra compose, and is the only place that prints an error and exits.

Exit codes: 0 done; 2 the request, recipe or artifacts are refused, with nothing written; 130 interrupted; 1 the rest.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ltxgen import __version__
from ltxgen.config.errors import MISSING, JobsFailed, Problem, Refusal, did_you_mean
from ltxgen.parallel import ending
from ltxgen.parallel.ending import RankFailure

if TYPE_CHECKING:
    from ltxgen.config.launcher import SweepJob

Result = TypeVar("Result")
Command = Callable[[dict[str, Any]], float | None]
RunComposed = Callable[["Sequence[SweepJob]"], Sequence[float | None]]

USAGE = """\
ltxgen {version}: LTX-2.3 audio-video generation from YAML

  ltxgen +recipe=NAME [key=value ...]        run a recipe (also: ltxgen run ...)
  ltxgen plan +recipe=NAME [key=value ...]   what would run: stages, files, sizes, passes; reads no weights
  ltxgen resume DIR                          the jobs of a sweep that failed or were not reached
  ltxgen fetch +recipe=NAME                  download and verify the files it needs
  ltxgen lock +recipe=NAME [key=value ...]   the composed recipe with every file pinned by sha256, into NAME.lock.yaml
  ltxgen replay FOLDER [--check]             make a run again from its recipe.yaml; --check: is it bit-equal?
  ltxgen ls [GROUP]                          recipes and choices: recipe, model, request, stage, attention, ...
  ltxgen cp RECIPE NEW                       copy a recipe to ./recipes/NEW.yaml to edit it
  ltxgen compare A B [--page FILE]           two runs: picture, sound and latents, and a page that shows both
  ltxgen show VIDEO_OR_FOLDER [--recipe]     how it was made; --recipe prints the YAML that runs it again
  ltxgen resume FOLDER                       go on with the interrupted run into FOLDER
  ltxgen cache ls | rm | verify              outputs of stages that are stored and used again
  ltxgen bench [CASE ...] [key=value ...]    how fast its parts are here, beside their floors and diffusers
  ltxgen bench parallel [key=value ...]      how every layout of this machine's GPUs compares with one of them

  ltxgen +recipe=ltx23_two_stage model=ltx23_tiny request=demo     try it now, no weights needed
  ltxgen +recipe=NAME requests=FILE          a job for each row of a JSONL, CSV, YAML or text file
  ltxgen -m +recipe=NAME request.seed=1,2    a sweep; --cfg job shows a composed recipe; --help has all keys
  --debug                                    a traceback instead of one message
"""

# Flags of Hydra's own that show something and run nothing.
_SHOWING_FLAGS = (
    "--help",
    "-h",
    "--hydra-help",
    "--cfg",
    "-c",
    "--info",
    "-i",
)
_COMPLETION_FLAGS = ("--shell-completion", "-sc")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command; ends the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if ending.is_rank():
        ending.end_promptly()
    sys.exit(_guarded(lambda: _dispatch(words, debug), debug))


def _guarded(command: Callable[[], int | None], debug: bool) -> int:
    """Run a command and turn whatever it raises into one message and an exit code."""
    try:
        return command() or 0
    except Refusal as refusal:
        return _told(_counted(refusal), 2, debug)
    except JobsFailed as failure:
        return _told(str(failure), 1, False)
    except RankFailure as failure:
        return _told(str(failure), failure.code, False)
    except KeyboardInterrupt:
        return _told("interrupted", 130, False)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        what = f"{type(error).__name__}: {str(error) or type(error).__name__} (--debug shows where)"
        if ending.is_rank():
            ending.wait_for_the_end()
            what = f"rank {os.environ['RANK']}: {what}"
        return _told(what, 1, debug)


def _told(message: str, code: int, debug: bool) -> int:
    """Print what ended a command; of several ranks one does, and none stays behind in what it was doing."""
    if ending.is_rank():
        ending.end_within_grace(code)
    if message and ending.speaks(message):
        if debug:
            traceback.print_exc()
        print(f"ltxgen: {message}", file=sys.stderr)
    return code


def _counted(refusal: Refusal) -> str:
    if len(refusal.problems) == 1:
        return str(refusal)
    lines = "\n".join(f"  {line}" for line in str(refusal).splitlines())
    return f"{len(refusal.problems)} things to change:\n{lines}"


def _dispatch(words: list[str], debug: bool) -> int | None:
    if not words:
        print(USAGE.format(version=__version__), end="")
        return 0
    if "--version" in words:
        print(f"ltxgen {__version__}")
        return 0
    command, rest = words[0], words[1:]
    if command == "replay":
        return _replay(rest, debug)
    if command in _RECIPE_COMMANDS and command != "run":
        return _with_recipe(_RECIPE_COMMANDS[command], rest, debug)
    if command == "rank" and ending.is_rank():
        return _rank(rest)
    if command == "bench-rank" and ending.is_rank():
        return _bench_rank(rest)
    if command == "sweep-rank" and ending.is_rank():
        return _sweep_rank(rest, debug)
    if command == "resume":
        return _resume(rest, debug)
    if command in _PLAIN_COMMANDS:
        return _PLAIN_COMMANDS[command](rest)
    if command == "run" or "=" in command or command.startswith(("-", "+", "~")):
        return _run_words(rest if command == "run" else words, debug)
    known = (*_RECIPE_COMMANDS, *_PLAIN_COMMANDS, "resume", "replay")
    raise Refusal([Problem("command", command, f"must be one of {', '.join(known)}{did_you_mean(command, known)}")])


def _run_words(words: list[str], debug: bool) -> int | None:
    from ltxgen.config import compose

    run = functools.partial(_run, debug=debug)
    rows, words = _requests(words)
    if not compose.is_sweep(words):
        return _with_recipe(run, words, debug)
    with _sweeping(debug) as run_jobs:
        return _with_recipe(run, words, debug, run_jobs, rows)


def _requests(words: list[str]) -> tuple[list[list[str]] | None, list[str]]:
    """The overrides of each request in the file of `requests=FILE`, and the words that are left, now a sweep's."""
    from ltxgen.config import compose
    from ltxgen.config.requests import read_requests

    given = {key: value for key, separator, value in (word.partition("=") for word in words) if separator}
    if "requests" not in given:
        return None, words
    if compose.has_other_plugins(words, "sweeper"):
        message = "its rows are the jobs; leave out the sweeper, or the file"
        raise Refusal([Problem("requests", given["requests"], message)])
    rows = read_requests(Path(given["requests"]).expanduser(), given.get("requests.mode", "zip"))
    rest = [word for word in words if word.partition("=")[0] not in ("requests", "requests.mode")]
    return rows, rest if compose.is_sweep(rest) else ["-m", *compose.open_overrides(rest)]


def _with_recipe(
    command: Command,
    words: list[str],
    debug: bool,
    run_jobs: RunComposed | None = None,
    rows: Sequence[Sequence[str]] | None = None,
) -> int | None:
    """Let Hydra compose the recipe and call `command` with it, or, in a sweep, `run_jobs` with all jobs; without it,
    `command` with each. With `rows` there are as many jobs for each, with its overrides."""
    from ltxgen.config import compose

    if any(word in _COMPLETION_FLAGS for word in words):  # their words are Hydra's own: install=bash
        _hide_command_from_completion()
    else:
        words = compose.name_recipe_paths(compose.open_overrides(words))
        shows = any(word in _SHOWING_FLAGS for word in words)
        if not compose.is_sweep(words) or shows or compose.has_other_plugins(words):
            _refuse_bad_overrides(words)
        else:
            compose.jobs_of_sweep([word for word in words if not word.startswith("-")])  # or refused

    def composed(jobs: Callable[[], Sequence[SweepJob]]) -> Sequence[SweepJob]:
        try:
            return jobs()
        except compose.COMPOSITION_ERRORS:
            _refuse_bad_overrides(words)
            raise

    def guarded(run: Callable[[], Result]) -> Result:
        results: list[Result] = []
        code = _guarded(lambda: results.append(run()), debug)
        if code:
            sys.exit(code)  # past Hydra, which would print a traceback
        return results[0]

    def job(config: dict[str, Any]) -> float | None:
        return guarded(lambda: command(config))

    def run_all(jobs: Callable[[], Sequence[SweepJob]]) -> Sequence[float | None]:
        if run_jobs is not None:
            return guarded(lambda: run_jobs(composed(jobs)))
        return [job(dict(each.config)) for each in guarded(lambda: composed(jobs))]

    compose.hydra_app(job, run_all, words, rows)
    return 0


def _hide_command_from_completion() -> None:
    """Hydra completes overrides of the line that the shell hands over, and knows no `plan` in front of them."""
    line = os.environ.get("COMP_LINE", "")
    command = re.match(rf"\S+\s+(({'|'.join(_RECIPE_COMMANDS)})\s+)", line)
    if command:
        os.environ["COMP_LINE"] = line[: command.start(1)] + line[command.end(1) :]
        os.environ["COMP_POINT"] = str(len(os.environ["COMP_LINE"]))


def _refuse_bad_overrides(words: Sequence[str]) -> None:
    """Compose every job before Hydra does: what it can't apply is refused together with what the rest holds wrong.

    Where a config is only shown, its values may be wrong.
    """
    from ltxgen.config import compose
    from ltxgen.config.recipe import parse_recipe

    shows = any(word in _SHOWING_FLAGS for word in words)
    # A flag that shows takes a word of its own: `--cfg job`.
    overrides = [word for word in words if not word.startswith("-") and ("=" in word or not shows)]
    problems: list[Problem] = []
    for job in _jobs(overrides) if compose.is_sweep(words) else [overrides]:
        try:
            config = compose.compose_config(job)
        except compose.CompositionRefusal as refusal:
            problems += refusal.problems
            config = refusal.data
        try:
            if not shows:
                parse_recipe(config)
        except Refusal as refusal:
            unknown_recipe = any(problem.path == "recipe" for problem in problems)
            problems += [each for each in refusal.problems if not (unknown_recipe and each.path == "stages")]
    if problems:
        raise Refusal(problems)


def _jobs(overrides: Sequence[str]) -> list[list[str]]:
    """The jobs that are known beforehand; of a sweeper that chooses them as it goes, what all have in common."""
    from ltxgen.config import compose

    by_other = compose.has_other_plugins(overrides, "sweeper")
    return [compose.fixed_words(overrides)] if by_other else compose.jobs_of_sweep(overrides)


def _run(config: Mapping[str, Any], debug: bool = False) -> float | None:
    from ltxgen.recipe.launch import run_config

    folder = run_config(config, ("--debug",) if debug else ())
    return None if folder is None else _print_results(folder, config)


def _print_results(folder: Path, config: Mapping[str, Any]) -> float | None:
    """Print where the results of a run are; returns what a sweeper compares."""
    from ltxgen.recipe.manifest import objective

    _print_files(folder)
    return objective(folder, config["output"]["objective"])


def _print_files(folder: Path | None) -> None:
    """What a run is for, where this process has made it."""
    for name in ("video.mp4", "sound.wav", "contact_sheet.png"):
        if folder is not None and (folder / name).exists():
            print(folder / name)


@contextmanager
def _sweeping(debug: bool) -> Iterator[RunComposed]:
    """Runs the jobs of a sweep, batch after batch, with what stays loaded between them."""
    from ltxgen.config import compose
    from ltxgen.recipe.sweep import Sweep
    from ltxgen.recipe.sweep_folder import Job

    sweep = Sweep(debug)

    def run_jobs(jobs: Sequence[SweepJob]) -> Sequence[float | None]:
        written = [tuple(map(compose.written_word, each.overrides)) for each in jobs]
        folders = sweep.run([Job(each.number, words, each.config) for each, words in zip(jobs, written, strict=True)])
        shown = [_print_results(folder, job.config) for folder, job in zip(folders, jobs, strict=False)]
        if folders:
            _print_page(folders[0].parent)
        return shown or [None] * len(jobs)  # a rank, or a machine, that writes nothing

    try:
        yield run_jobs
    finally:
        sweep.close()


def _resume(words: list[str], debug: bool) -> int:
    from ltxgen.recipe.launch import resume
    from ltxgen.recipe.sweep import resume_sweep
    from ltxgen.recipe.sweep_folder import RECORD

    if len(words) != 1:
        raise Refusal([Problem("resume", " ".join(words) or MISSING, "takes one folder: `ltxgen resume FOLDER`")])
    path = Path(words[0]).expanduser()
    if not (path / RECORD).exists():
        _print_files(resume(path, ("--debug",) if debug else ()))
        return 0
    for folder in resume_sweep(path, debug):
        print(folder)
    _print_page(path)
    return 0


def _print_page(folder: Path) -> None:
    if (folder / "index.html").exists():
        print(folder / "index.html")


def _rank(words: list[str]) -> int:
    """What a launching ltxgen starts on each rank; not for users."""
    from ltxgen.recipe.launch import run_as_rank

    frozen, sha256, folder = words
    run_as_rank(Path(frozen), sha256, Path(folder))
    return 0


def _sweep_rank(words: list[str], debug: bool) -> int:
    """As `_rank`, for all jobs of a sweep."""
    from ltxgen.recipe.sweep import run_as_sweep_rank

    frozen, sha256, claims = words
    run_as_sweep_rank(Path(frozen), sha256, Path(claims), debug)
    return 0


def _bench_rank(words: list[str]) -> int:
    """As `_rank`, for `ltxgen bench parallel`."""
    from ltxgen.bench.parallel.rank import run_as_bench_rank

    frozen, sha256 = words
    run_as_bench_rank(Path(frozen), sha256)
    return 0


def _plan(config: Mapping[str, Any]) -> None:
    from ltxgen.config.recipe import parse_recipe
    from ltxgen.recipe.plan import make_plan
    from ltxgen.recipe.show import show_plan

    plan = make_plan(parse_recipe(config))
    show_plan(plan, _console())
    if plan.problems:
        raise Refusal(plan.problems)


def _fetch(config: Mapping[str, Any]) -> None:
    from ltxgen.artifacts.resolver import Places, fetch
    from ltxgen.config.recipe import parse_recipe
    from ltxgen.recipe.plan import make_plan
    from ltxgen.recipe.show import artifact_table

    recipe = parse_recipe(config)
    specs = make_plan(recipe).specs
    result = fetch(specs, Places(folders=recipe.artifacts.folders), print)
    tried = {**{name: found.tried for name, found in result.artifacts.items()}, **result.tried}
    _console().print(artifact_table(specs, result.artifacts, tried))
    if result.problems:
        raise Refusal(result.problems)


def _lock(config: dict[str, Any]) -> None:
    from ltxgen.config.recipe import parse_recipe
    from ltxgen.recipe.lock import write_recipe
    from ltxgen.recipe.plan import make_plan

    plan = make_plan(parse_recipe(config))
    if plan.problems:  # what only this machine lacks keeps nobody from pinning
        raise Refusal(plan.problems)
    path = Path(f"{plan.recipe.name}.lock.yaml")
    write_recipe(config, plan.artifacts, path)
    print(f"{path}; run it with: ltxgen +recipe={path}")


def _replay(words: list[str], debug: bool) -> int:
    """Exit code 0: made again, and with --check bit-equal; 1: it is not."""
    from ltxgen.config import compose
    from ltxgen.recipe.launch import run_config
    from ltxgen.recipe.replay import recipe_of, verdict

    overrides = [word for word in words if "=" in word or word.startswith("~")]
    folders = [word for word in words if word not in (*overrides, "--check")]
    if len(folders) != 1:
        message = "takes one folder of a run: `ltxgen replay FOLDER [--check] [key=value ...]`"
        raise Refusal([Problem("replay", " ".join(folders) or MISSING, message)])
    folder, checks = Path(folders[0]).expanduser(), "--check" in words
    with tempfile.TemporaryDirectory(prefix="ltxgen-") as scratch:
        # A check makes everything anew, and leaves nothing that wasn't asked for.
        own = ["cache=off", f"output.dir={scratch}/run"] if checks else []
        given = compose.open_overrides([f"+recipe={recipe_of(folder)}", *own, *overrides])
        made = run_config(compose.compose_config(compose.name_recipe_paths(given)), ("--debug",) if debug else ())
        if made is None:
            return 0
        if not checks:
            _print_files(made)
            return 0
        found = verdict(folder, made)
    print("\n".join(found.lines))
    return 0 if found.equal else 1


def _ls(words: list[str]) -> int:
    from ltxgen.config import compose

    groups = compose.groups()
    if not words:
        for group, names in groups.items():
            print(f"{group + ':':<12} {', '.join(names)}")
        return 0
    group = " ".join(words)
    if group not in groups:
        message = f"must be one of {', '.join(groups)}{did_you_mean(group, groups)}"
        raise Refusal([Problem("ls", group, message)])
    lacking = _lacking_attention() if group == "attention" else {}
    for name in groups[group]:
        print(f"{name:<24} {compose.first_comment(group, name)}")
        if lacking.get(name):
            print(f"{'':<24} unavailable here: {lacking[name]}")
    return 0


def _lacking_attention() -> Mapping[str, str | None]:
    """Why each attention backend can't run on this machine in bfloat16; None for those that can."""
    from ltxgen.attention.choice import availability
    from ltxgen.attention.protocol import DeviceFacts
    from ltxgen.runtime.environment import DTYPES, resolve_device

    return availability(DeviceFacts.of(resolve_device()), DTYPES["bfloat16"])


def _cp(words: list[str]) -> int:
    from ltxgen.config import compose

    if len(words) != 2:
        raise Refusal([Problem("cp", " ".join(words), "takes two names: `ltxgen cp RECIPE NEW`")])
    source, target = words
    files = compose.recipe_files()
    if source not in files:
        message = f"no such recipe; there are {', '.join(files)}{did_you_mean(source, files)}"
        raise Refusal([Problem("cp", source, message)])
    name = target.removesuffix(".yaml")
    if not re.fullmatch(r"\w[\w-]*", name):
        raise Refusal([Problem("cp", target, "a recipe's name is letters, digits, _ and -; it goes into ./recipes")])
    path = Path("recipes") / f"{name}.yaml"
    if path.exists():
        raise Refusal([Problem("cp", str(path), "exists already; choose another name")])
    path.parent.mkdir(exist_ok=True)
    text = files[source].read_text(encoding="utf-8")
    path.write_text(re.sub(rf"\b{re.escape(source)}\b", name, text), encoding="utf-8")  # its commands and output folder
    print(f"{path}; run it with: ltxgen +recipe={path.stem}")
    return 0


def _compare(words: list[str]) -> int:
    from rich.table import Table

    from ltxgen.media.compare import compare_runs
    from ltxgen.media.gallery import write_comparison

    page = Path("compare.html")
    if len(words) == 4 and words[2] == "--page":
        page = Path(words[3])
    elif len(words) != 2:
        message = "takes two run folders or videos: `ltxgen compare A B`, and `--page FILE` for where the page goes"
        raise Refusal([Problem("compare", " ".join(words) or MISSING, message)])
    a, b = map(Path, words[:2])
    comparison = compare_runs(a, b)
    table = Table("", "measure", "value")
    for row in comparison.rows():
        table.add_row(*row)
    _console().print(table)
    print(write_comparison(a, b, comparison, page))
    return 0


def _show(words: list[str]) -> int:
    from ltxgen.media.provenance import read_provenance
    from ltxgen.recipe.show import show_made

    places = [word for word in words if word != "--recipe"]
    if len(places) != 1 or len(words) > 2:
        message = "takes a video or a run's folder: `ltxgen show video.mp4`, with --recipe for the recipe alone"
        raise Refusal([Problem("show", " ".join(words) or MISSING, message)])
    made = read_provenance(places[0])
    if "--recipe" in words:
        sys.stdout.write(made.recipe)
    else:
        show_made(made, _console())
    return 0


def _bench(words: list[str]) -> int:
    from ltxgen.bench.command import bench
    from ltxgen.config import compose

    def composed(overrides: Sequence[str]) -> dict[str, Any]:
        return compose.compose_config(compose.name_recipe_paths(compose.open_overrides(overrides)))

    return bench(words, composed, _console())


def _cache(words: list[str]) -> int:
    from ltxgen.recipe.cache_command import cache

    return cache(words, _console())


def _console() -> Any:
    """Where tables go: as wide as the terminal, and wide where a file or pipe has no width to respect."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    return console


_RECIPE_COMMANDS: Mapping[str, Command] = {"run": _run, "plan": _plan, "fetch": _fetch, "lock": _lock}
_PLAIN_COMMANDS: Mapping[str, Callable[[list[str]], int]] = {
    "ls": _ls,
    "cp": _cp,
    "compare": _compare,
    "cache": _cache,
    "show": _show,
    "bench": _bench,
}
