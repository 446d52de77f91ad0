"""Numbers of an editor for a model: which files of conf/hparams a cell is made of, and what of them is in use.

A composition takes the files of the editor's ancestors first, each behind its own yaml, and the editor's own last.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kedit.common.dotted import dotted

Files = Mapping[str, tuple[str, Path]]  # by name, e.g. "ft_m/gpt2-xl": the option below which it stands, and the file
EDITOR, HPARAMS = "editor", "hparams"


def number_files(hydra: Any) -> Files:
    """The files that a composition took, in its order."""
    found: dict[str, tuple[str, Path]] = {}
    for key, choice in hydra.runtime.choices.items():
        group, _, option = key.partition("@")
        if group.partition("/")[0] == HPARAMS:
            place = f"{group}/{choice}"
            files = (Path(source.path, f"{place}.yaml") for source in hydra.runtime.config_sources)
            if path := next((file for file in files if file.is_file()), None):
                found.setdefault(place.removeprefix(f"{HPARAMS}/"), (option, path))
    return found


def described(files: Files, config: Mapping[str, Any]) -> dict[str, Any]:
    """For meta.json: the options that each file gives the cell, and whether anybody has tuned the editor or an ancestor
    for its model."""
    final = dict(dotted(config))
    giver: dict[str, str] = {}
    for file, (option, path) in files.items():
        given = dotted(OmegaConf.to_container(OmegaConf.load(path)), option)
        giver |= {name: file for name, value in given if _same(final.get(name), value)}
    numbers = {file: sorted(name for name, source in giver.items() if source == file) for file in files}
    tuned = any(option == EDITOR for option, _ in files.values())
    return {"numbers": {file: names for file, names in numbers.items() if names}, "untuned": not tuned}


def _same(final: Any, given: Any) -> bool:
    """Does the cell have what the file gives? A reference is taken to be in use."""
    return final == given or (isinstance(given, str) and "${" in given)


def said(names: Mapping[str, str], numbers: Mapping[str, Any]) -> Iterator[str]:
    """One line for the log if the numbers are not the editor's own."""
    editor, model = names["editor"], names["model"]
    inherited = [file for file in numbers["numbers"] if file.count("/") == 1 and file.partition("/")[0] != editor]
    if numbers["untuned"]:
        yield (
            f"editor={editor} has no numbers for model={model}, nor has an editor that it builds on: nothing is tuned, "
            "and layers are taken by relative depth"
        )
    elif inherited:
        yield f"editor={editor} has numbers for model={model} from conf/hparams: {', '.join(inherited)}"
