"""The commands. A new one is a file beside this one with a function `command(words, debug)`, its name in `COMMANDS` and
its line in `USAGE`.

They are imported when they are called: `ltxgen ls` waits for nothing that only a run needs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

Command = Callable[[list[str], bool], "int | None"]

USAGE = """\
ltxgen {version}: LTX-2.3 audio-video generation from YAML

  ltxgen +recipe=NAME [key=value ...]        run a recipe (also: ltxgen run ...)
  ltxgen plan +recipe=NAME [key=value ...]   what would run: stages, files, sizes, passes; reads no weights
  ltxgen fetch +recipe=NAME                  download and verify the files it needs
  ltxgen lock +recipe=NAME [key=value ...]   the composed recipe with every file pinned by sha256, into NAME.lock.yaml
  ltxgen replay FOLDER [--check]             make a run again from its recipe.yaml; --check: is it bit-equal?
  ltxgen ls [GROUP]                          recipes and choices: recipe, model, request, stage, attention, ...
  ltxgen ls recipe --memory [key=value ...]  recipes with the GPU memory that they would take
  ltxgen cp RECIPE NEW                       copy a recipe to ./recipes/NEW.yaml to edit it
  ltxgen compare A B [--page FILE]           two runs: picture, sound and latents, and a page that shows both
  ltxgen show VIDEO_OR_FOLDER [--recipe]     how it was made; --recipe prints the YAML that runs it again
  ltxgen resume FOLDER                       go on with an interrupted run, or a sweep's jobs that are not done
  ltxgen cache ls | rm | verify              outputs of stages that are stored and used again
  ltxgen doctor [+recipe=NAME] [--json]      what this machine has and lacks for a run, and how to mend it
  ltxgen bench [CASE ...] [key=value ...]    how fast its parts are here, beside their floors and diffusers
  ltxgen bench parallel [key=value ...]      how every layout of this machine's GPUs compares with one of them

  ltxgen +recipe=ltx23_two_stage model=ltx23_tiny request=demo     try it now, no weights needed
  ltxgen +recipe=NAME requests=FILE          a job for each row of a JSONL, CSV, YAML or text file
  ltxgen -m +recipe=NAME request.seed=1,2    a sweep; --cfg job shows a composed recipe; --help has all keys
  --debug                                    a traceback instead of one message
"""

RECIPE_COMMANDS = ("run", "plan", "fetch", "lock", "doctor")
"""Those whose words are overrides of a recipe."""
COMMANDS = (*RECIPE_COMMANDS, "ls", "cp", "compare", "cache", "show", "bench", "resume", "replay")


def command(name: str) -> Command:
    """The command called `name`, one of these or `rank`."""
    found: Command = import_module(f"ltxgen.cli.{name}").command
    return found
