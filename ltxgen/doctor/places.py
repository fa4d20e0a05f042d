"""Folders and the disks that they are on, and the hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants

from ltxgen.artifacts.artifact import ArtifactSpec
from ltxgen.artifacts.cache_folder import cache_folder
from ltxgen.artifacts.catalog import DEV, TEXT_ENCODER
from ltxgen.artifacts.hub import cache_folder_of_hub, is_offline, shown_size, why_unreadable
from ltxgen.artifacts.resolver import Places
from ltxgen.doctor.finding import Finding, finding
from ltxgen.media.files import check_free_space, check_writable
from ltxgen.recipe.cache import stages_folder
from ltxgen.recipe.store import Store

_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def folders(config: Mapping[str, Any], missing: Mapping[str, ArtifactSpec]) -> Iterator[Finding]:
    """Where a run of `config` writes, and where it finds files or has them downloaded; `missing` are those to come."""
    output = Path(config["output"]["dir"]).expanduser()
    yield finding("folders", "output", check_writable(output), f"{_nearest(output)} can be written, {_free(output)}")
    own = cache_folder()
    wrong = check_writable(own)
    fix = "set LTXGEN_CACHE to a folder that can be written"
    unwritable = Finding("folders", "ltxgen's cache", "note", f"{wrong}; runs can't be resumed", fix)
    yield unwritable if wrong else Finding("folders", "ltxgen's cache", "ok", f"{own}, {_free(own)}")
    yield _stored(config["cache"])
    yield _hub_cache(missing)
    for folder in Places(folders=tuple(config["artifacts"]["folders"])).folder_paths():
        there = "is there" if folder.is_dir() else "is not there, and need not be"
        yield Finding("folders", "models", "ok", f"{folder} {there}")


def hub(online: bool) -> Iterator[Finding]:
    """The login, without a word of the token itself; only `online` asks the hub."""
    offline = [name for name in _OFFLINE if os.environ.get(name, "").upper() in constants.ENV_VARS_TRUE_VALUES]
    if offline:
        what = f"{' and '.join(offline)} keep the hub out of reach; nothing is downloaded"
        yield Finding("hub", "network", "note", what, f"unset {' '.join(offline)} to fetch files")
    token = huggingface_hub.get_token()
    where = next((name for name in _TOKENS if os.environ.get(name)), str(constants.HF_TOKEN_PATH))
    if token is None:
        yield Finding("hub", "login", "note", "no token; Gemma 3 is gated and can't be downloaded without", _LOGIN)
    else:
        yield Finding("hub", "login", "ok", f"a token from {where}")
    for candidate in (DEV, *TEXT_ENCODER) if online and not is_offline() else ():
        lacking = why_unreadable(candidate)
        yield Finding("hub", candidate.repo, "note" if lacking else "ok", lacking or "this login may read it")


def _stored(cache: Mapping[str, Any]) -> Finding:
    """The outputs of stages."""
    folder, limit = stages_folder(cache["folder"]), int(cache["max_gib"] * 2**30)
    held = sum(entry.num_bytes for entry in Store(folder).entries())
    what = f"{folder}, {shown_size(held)} of {shown_size(limit)}"
    if wrong := check_writable(folder):
        return Finding(
            "folders", "stages' outputs", "note", f"{wrong}; nothing is stored", "set cache.folder, or cache=off"
        )
    if short := check_free_space(folder, limit - held):
        return Finding("folders", "stages' outputs", "note", f"{what}: {short}", "lower cache.max_gib")
    return Finding("folders", "stages' outputs", "ok", what)


def _hub_cache(missing: Mapping[str, ArtifactSpec]) -> Finding:
    folder = cache_folder_of_hub()
    sizes = {name: spec.candidates[0].size_bytes or 0 for name, spec in missing.items() if spec.candidates}
    if not missing:
        return Finding("folders", "hub's cache", "ok", f"{folder}, {_free(folder)}")
    names = ", ".join(f"{name} {shown_size(sizes[name] or None)}" if name in sizes else name for name in missing)
    short = check_free_space(folder, sum(sizes.values()))
    what = f"{folder}, {_free(folder)}; to come: {names}, {shown_size(sum(sizes.values()))} in all"
    if short or (wrong := check_writable(folder)):
        return Finding("folders", "hub's cache", "problem", f"{what}: {short or wrong}", "set HF_HUB_CACHE")
    return Finding("folders", "hub's cache", "ok", what)


def _nearest(folder: Path) -> Path:
    """The folder itself, or that of its parents which exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _free(folder: Path) -> str:
    return f"{shown_size(shutil.disk_usage(_nearest(folder)).free)} free"
