"""How many layers a model has, before it is loaded."""

from pathlib import Path

from transformers import AutoConfig


def layers_at(path: str = "", revision: str = "main", trust_remote_code: bool = False) -> int | None:
    """Layers by the config of a directory or a hub id; None if it cannot be read: loading will say why."""
    folder = Path(path).expanduser()
    source = str(folder) if folder.is_dir() else path
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return getattr(config.get_text_config(), "num_hidden_layers", None)
