"""Files of the Hugging Face hub: from its cache on this machine, or downloaded."""

from functools import cache
from pathlib import Path

from kedit.common.errors import InputError, first_line

CONFIG = "config.json"  # every model has one


class _Connection:
    """Whether the hub has answered so far: after one request in vain only its cache on this machine is asked, since
    each request in vain takes half a minute."""

    lost = False


def hub_file(repo: str, file: str, repo_type: str | None = None, revision: str = "main") -> Path:
    """The file on this machine, downloaded if need be. Raises InputError that says why it cannot be had."""
    found = _looked_up(repo, file, repo_type, revision)
    if isinstance(found, str):
        raise InputError(found)
    return found


def why_no_model(source: str, revision: str = "main") -> str:
    """Why a model (a directory or a hub id) cannot be had; "" if it can: its config is here, or the hub gives it."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return "" if (folder / CONFIG).is_file() else f"the folder has no {CONFIG}"
    found = _looked_up(source, CONFIG, None, revision)
    return found if isinstance(found, str) else ""


@cache
def _looked_up(repo: str, file: str, repo_type: str | None, revision: str) -> Path | str:
    """The file, or why it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        only = _Connection.lost
        return Path(hf_hub_download(repo, file, repo_type=repo_type, revision=revision, local_files_only=only))
    except LocalEntryNotFoundError:
        _Connection.lost = True
        return "it is not in the hub's cache on this machine, and the hub does not answer"
    except (OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as error:
        return first_line(error)
