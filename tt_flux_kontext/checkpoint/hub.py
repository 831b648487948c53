"""The Hugging Face hub: what goes wrong there is said in sentences."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from tt_flux_kontext.checkpoint.files import CheckpointError

_LINK = re.compile(
    r"(?:https?://)?(?:(?:huggingface\.co|hf\.co)/)?"
    r"(?P<repository>[\w.-]+/[\w.-]+)/(?:(?:blob|resolve)/(?P<revision>[^/]+)/)?(?P<file>.+)"
)


def download(repository: str, patterns: list[str]) -> Path:
    """Fetches files of a repository (or finds them in the local cache) and returns its folder.

    Raises `CheckpointError` where there is no such repository, or no way to it.
    """
    with _explained(repository, "folder", repository):
        return Path(snapshot_download(repository, allow_patterns=patterns))


def download_file(link: str) -> Path | None:
    """Fetches a file by its page's address or as `owner/name/file`; None for what is no link. Raises as `download`."""
    found = _LINK.fullmatch(link)
    if not found:
        return None
    with _explained(link, "file", found["repository"]):
        return Path(hf_hub_download(found["repository"], found["file"], revision=found["revision"]))


def list_files(repository: str) -> list[str]:
    """The names of a repository's files, sorted. Raises as `download` does."""
    with _explained(repository, "folder", repository):
        return sorted(list_repo_files(repository))


@contextmanager
def _explained(given: str, kind: str, repository: str) -> Iterator[None]:
    """`kind`: what was given would be on this machine."""
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(
            f"Access to {repository} is gated.\n"
            f"Accept its licence on the model's page, https://huggingface.co/{repository}, signed in.\n"
            "Then sign in here, with `hf auth login` or with a token in HF_TOKEN."
        ) from error
    except (RepositoryNotFoundError, ValueError) as error:
        raise CheckpointError(
            f"'{given}' is neither a {kind} here nor a repository that you can read on the Hugging Face hub.\n"
            f"For a {kind}, check the path. For a repository, check its id (owner/name).\n"
            "If it is private or gated, sign in with `hf auth login` or with a token in HF_TOKEN."
        ) from error
    except (EntryNotFoundError, HfHubHTTPError, OSError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise CheckpointError(f"{repository} on the Hugging Face hub has no such file as '{given}'.") from error
        raise CheckpointError(
            f"{given} is not in the local cache and the Hugging Face hub can't be reached: {error}\n"
            f"Check the network, or fetch it elsewhere with `hf download` and copy the {kind} here.\n"
            f"Then give the {kind} in place of the id."
        ) from error
