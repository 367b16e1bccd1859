"""Models on the Hugging Face Hub: a repository holds the folder of a model, its card first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_fcr.saving.folder import FILES, RECORD


def push_folder(
    folder: Path, repo_id: str, *, private: bool, token: str | None, endpoint: str | None
) -> str:
    """Upload the folder of a model, and return the address of the commit.

    Parameters
    ----------
    folder
        The folder of a model that stands nowhere else.
    repo_id, private, token, endpoint
        As in :meth:`pyro_fcr.FCR.push_to_hub`.
    """
    api = _hub().HfApi(endpoint=endpoint, token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    done = api.upload_folder(
        repo_id=repo_id, folder_path=folder, commit_message="A model of pyro-fcr"
    )
    return str(done.commit_url)


def fetch_folder(
    repo_id: str, *, revision: str | None, token: str | None, endpoint: str | None
) -> Path:
    """Download the files of a model, and return their folder.

    Parameters
    ----------
    repo_id, revision, token, endpoint
        As in :meth:`pyro_fcr.FCR.from_hub`.
    """
    api = _hub().HfApi(endpoint=endpoint, token=token)
    return Path(api.snapshot_download(repo_id, revision=revision, allow_patterns=[RECORD, *FILES]))


def _hub() -> Any:
    try:
        import huggingface_hub  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise ImportError("The Hub needs huggingface_hub: pip install 'pyro-fcr[hub]'.") from error
    return huggingface_hub
