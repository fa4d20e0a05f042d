"""The Hugging Face hub: what its cache holds, and downloads whose failures say what to do."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ltxgen.artifacts.artifact import Candidate


class DownloadFailed(Exception):
    """A download that did not happen; the text says why and what to do. `not_there`: the hub has no such file."""

    def __init__(self, message: str, *, not_there: bool = False) -> None:
        super().__init__(message)
        self.not_there = not_there


@dataclass(frozen=True)
class Cached:
    path: Path
    revision: str | None


def find_cached(candidate: Candidate, cache: Path | None = None) -> Cached | None:
    """The candidate's file or snapshot folder in the Hugging Face cache (`cache` or its usual place); no network."""
    found = try_to_load_from_cache(
        candidate.repo, candidate.file or "config.json", cache_dir=cache, revision=candidate.revision
    )
    if not isinstance(found, str):  # None, or the mark of a file that is known not to exist
        return None
    return _cached(Path(found).parent if candidate.is_folder else Path(found))


def download(candidate: Candidate, cache: Path | None = None, *, again: bool = False) -> Cached:
    """Download a file or the chosen files of a folder into the Hugging Face cache, resuming what is half there.

    Files that the cache holds are kept, also damaged ones, unless `again`. Raises DownloadFailed.
    """
    _check_space(candidate, cache)
    try:
        if candidate.is_folder:
            patterns = list(candidate.patterns) or None
            path = snapshot_download(
                candidate.repo,
                revision=candidate.revision,
                cache_dir=cache,
                allow_patterns=patterns,
                force_download=again,
            )
        else:
            path = hf_hub_download(
                candidate.repo, candidate.file, revision=candidate.revision, cache_dir=cache, force_download=again
            )
    except Exception as error:
        raise _translated(candidate, error) from error
    return _cached(Path(path))


def cache_folder_of_hub(cache: Path | None = None) -> Path:
    return Path(cache or constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE keeps huggingface_hub from the network."""
    return bool(constants.HF_HUB_OFFLINE)


def why_unreadable(candidate: Candidate) -> str | None:
    """Why the hub would not let this login have the candidate, which it is asked; None if it would."""
    try:
        huggingface_hub.auth_check(candidate.repo)
    except (HfHubHTTPError, OfflineModeIsEnabled) as error:
        return str(_translated(candidate, error))
    except Exception as error:  # of the HTTP library, which is another one from version to version
        return f"the hub can't be reached ({type(error).__name__}): check the network or proxy"
    return None


def shown_size(size_bytes: int | None) -> str:
    """`46.1 GB` (decimal, as the hub shows it); `size unknown` for None."""
    if size_bytes is None:
        return "size unknown"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes} bytes"


def _cached(path: Path) -> Cached:
    # .../models--OWNER--NAME/snapshots/COMMIT/...
    parts = path.parts
    revision = parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None
    return Cached(path.absolute(), revision)


def _check_space(candidate: Candidate, cache: Path | None) -> None:
    folder = cache_folder_of_hub(cache)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if candidate.size_bytes is not None and free < candidate.size_bytes:
        raise DownloadFailed(
            f"needs {shown_size(candidate.size_bytes)}, but {folder} has {shown_size(free)} free; make room or set "
            "HF_HUB_CACHE to a larger disk"
        )


def _translated(candidate: Candidate, error: Exception) -> DownloadFailed:
    """What the failure means to the user. The order matters: these classes derive from each other."""
    page = f"https://huggingface.co/{candidate.repo}"
    login = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return DownloadFailed(f"{candidate.repo} is gated: accept its licence at {page}, then {login}")
    if isinstance(error, RepositoryNotFoundError):
        return DownloadFailed(
            f"{candidate.repo} does not exist on the hub or your account can't see it: check {page}, then {login}",
            not_there=True,
        )
    if isinstance(error, RevisionNotFoundError):
        return DownloadFailed(f"{candidate.repo} has no revision {candidate.revision}: see {page}/commits")
    if isinstance(error, OfflineModeIsEnabled) or (isinstance(error, LocalEntryNotFoundError) and is_offline()):
        return DownloadFailed(
            "is not in the Hugging Face cache and HF_HUB_OFFLINE keeps the hub out of reach: unset it, or set the path "
            "to a file you have"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return DownloadFailed(
            "is not in the Hugging Face cache and the hub can't be reached: check the network or proxy, or set the "
            "path to a file you have"
        )
    if isinstance(error, EntryNotFoundError):
        return DownloadFailed(f"{candidate.repo} holds no {candidate.file}: see {page}/tree/main", not_there=True)
    if isinstance(error, HfHubHTTPError):
        return DownloadFailed(_http_message(candidate, error, login, page))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return DownloadFailed(
            f"the disk of {cache_folder_of_hub()} is full (needs {shown_size(candidate.size_bytes)}): make room or set "
            "HF_HUB_CACHE to a larger disk; what was downloaded is kept and resumed"
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return DownloadFailed(f"{cache_folder_of_hub()} can't be written: set HF_HUB_CACHE to a folder that can")
    return DownloadFailed(f"the download failed ({type(error).__name__}: {error}); run `ltxgen fetch` again to resume")


def _http_message(candidate: Candidate, error: HfHubHTTPError, login: str, page: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        token = "your token is not valid" if os.environ.get("HF_TOKEN") or huggingface_hub.get_token() else "no token"
        return f"the hub refused the request (401, {token}): {login}"
    if status == 403:
        return f"your account may not read {candidate.repo} (403): accept its licence at {page}, then {login}"
    return f"the hub answered {status or 'with an error'} ({error}); run `ltxgen fetch` again to resume"
