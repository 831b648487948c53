"""The Hugging Face hub: what goes wrong there is said in sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from tt_flux_kontext.checkpoint.files import CheckpointError


def download(repository: str, patterns: list[str]) -> Path:
    """Fetches files of a repository (or finds them in the local cache) and returns its folder.

    Raises `CheckpointError` where there is no such repository, or no way to it.
    """
    with _explained(repository):
        return Path(snapshot_download(repository, allow_patterns=patterns))


def list_files(repository: str) -> list[str]:
    """The names of a repository's files, sorted. Raises as `download` does."""
    with _explained(repository):
        return sorted(list_repo_files(repository))


@contextmanager
def _explained(repository: str) -> Iterator[None]:
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
            f"'{repository}' is neither a folder here nor a repository that you can read on the Hugging Face hub.\n"
            "For a folder, check the path. For a repository, check its id (owner/name).\n"
            "If it is private or gated, sign in with `hf auth login` or with a token in HF_TOKEN."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{repository} is not in the local cache and the Hugging Face hub can't be reached: {error}\n"
            "Check the network, or fetch it elsewhere with `hf download` and copy the folder here.\n"
            "Then give the folder in place of the id."
        ) from error
