"""Brings what cells need into the caches, on a machine that has the network: python -m kedit.fetch OVERRIDE ...

The overrides are those of kedit: one cell (model=gpt2-xl editor=memit dataset=zsre), a grid (editor=ft_m,kdpo) or a
table (sweeps=kdpo_table1). Lists models, encoders, data and benchmark tasks with their sizes before it starts; then the
cells run with HF_HUB_OFFLINE=1. What cannot be had is said in one sentence each, and the exit status is 1.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

import kedit.run.main  # noqa: F401 (the resolvers of conf/)
from kedit.common.dotted import dotted
from kedit.common.errors import InputError, first_line
from kedit.common.terminal import use_safe_output
from kedit.run.composition import CONF, explained
from kedit.run.preflight import Preflight
from kedit.run.references import resolved
from kedit.run.sweep import compose_cell, jobs, outside

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NO_REPOSITORIES = ("hub", "hub_file", "project")  # options that do not name a repository of a model
FILES_OF_A_MODEL = ["*.safetensors", "*.json", "*.model", "*.txt", "*.tiktoken", "*.py", "*.jinja"]
NOT_OF_A_MODEL = ["original/*", "onnx/*", "openvino/*", "*/onnx/*"]
NEEDED = ("model", "dataset", "editor", "eval")  # the parts of a config that may name something to fetch


@dataclass(frozen=True, order=True)
class HubFiles:
    """A model of the hub, or one file of a dataset there."""

    repo: str
    revision: str = "main"
    dataset_file: str = ""

    def __str__(self) -> str:
        return f"{self.repo}/{self.dataset_file}" if self.dataset_file else f"{self.repo}@{self.revision}"

    def missing_bytes(self) -> int:
        """How much has to be downloaded. Raises InputError if the hub does not have it or does not answer."""
        return sum(file.file_size or 0 for file in self._asked(dry_run=True) if file.will_download)

    def fetch(self) -> None:
        self._asked(dry_run=False)

    def _asked(self, dry_run: bool) -> Any:
        from huggingface_hub import hf_hub_download, snapshot_download

        try:
            if self.dataset_file:
                of: dict[str, Any] = {"repo_type": "dataset", "revision": self.revision}
                return [hf_hub_download(self.repo, self.dataset_file, dry_run=dry_run, **of)]
            patterns: dict[str, Any] = {"allow_patterns": FILES_OF_A_MODEL, "ignore_patterns": NOT_OF_A_MODEL}
            return snapshot_download(self.repo, revision=self.revision, dry_run=dry_run, **patterns)
        except (OSError, ValueError) as error:
            raise InputError(f"{self}: cannot be downloaded ({first_line(error)})") from error


def cells(overrides: Sequence[str]) -> list[DictConfig]:
    """The configs of the cells that `kedit OVERRIDES`, or `kedit -m OVERRIDES`, would run. Raises InputError."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    single = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
    try:
        config = compose("config", single, return_hydra_config=True)
    except Exception as error:
        raise InputError(explained(error, overrides)) from error
    OmegaConf.set_readonly(config, False)
    config.hydra.overrides.task = list(overrides)
    composed = [compose_cell(job) for job in jobs(config)]
    return [cell for cell in composed if not outside(cell, _names(cell))]


def _names(cell: DictConfig) -> dict[str, str]:
    from kedit.run.naming import names_of

    return names_of(cell.hydra)


def hub_files(cell: DictConfig) -> Iterator[HubFiles]:
    """What a cell needs of the hub, as far as its options name it."""
    from kedit.data.missing_files import data_folder, origin_of
    from kedit.lm.sentence_encoder import source

    own = OmegaConf.masked_copy(cell, [str(key) for key in cell if key != "hydra"])
    config = resolved(own, _names(cell))
    dataset = config["dataset"]
    on_hub = dataset.get("hub") and not dataset.get("path")
    if on_hub and not (data_folder() / Path(dataset["hub_file"]).name).is_file():
        yield HubFiles(dataset["hub"], dataset.get("hub_revision", "main"), dataset["hub_file"])
    for name, value in _texts({part: config[part] for part in NEEDED}):
        if origin := origin_of(Path(value).expanduser()):
            yield HubFiles(origin["dataset"], "main", origin["file"])
        elif _names_a_model(name, value) and not Path(source(value)).exists():
            yield HubFiles(value, _revision(config, name))


def _names_a_model(option: str, value: str) -> bool:
    return HUB_ID.fullmatch(value) is not None and option.rpartition(".")[2] not in NO_REPOSITORIES


def _texts(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in dotted(dict(config)):
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and not name.endswith("_target_"):
                yield name, one


def _revision(config: Mapping[str, Any], name: str) -> str:
    """The revision that stands beside a model's path."""
    node: Any = config
    for key in name.split(".")[:-1]:
        node = node[key]
    return str(node.get("revision", "main"))


def fetch(overrides: Sequence[str], *, only_list: bool = False) -> int:
    """Print what is needed and download it; returns the exit status."""
    with initialize_config_dir(CONF, version_base="1.3"):
        selected = cells(overrides)
        out(f"{len(selected)} cells")
        faults = _download(sorted({file for cell in selected for file in hub_files(cell)}), only_list)
        if not only_list:
            known = [file.partition(":")[0] for file in faults]
            faults += [said for said in _still_missing(selected) if not any(_is_about(file, said) for file in known)]
    for sentence in faults:
        out(f"missing: {sentence}")
    return int(bool(faults))


def _is_about(file: str, sentence: str) -> bool:
    return file.partition("@")[0] in sentence or file.rpartition("/")[2] in sentence


def _download(needed: Sequence[HubFiles], only_list: bool) -> list[str]:
    """Returns a sentence about each that cannot be had."""
    sizes, faults = {}, []
    for files in needed:
        try:
            sizes[files] = files.missing_bytes()
        except InputError as error:
            faults.append(str(error))
    for files, size in sizes.items():
        out(f"{files}: {f'{size / 1e6:,.1f} MB to download' if size else 'there'}")
    out(f"{sum(sizes.values()) / 1e6:,.1f} MB to download in all")
    for files in () if only_list else sizes:
        try:
            files.fetch()
        except InputError as error:
            faults.append(str(error))
    return faults


def _still_missing(selected: Sequence[DictConfig]) -> Iterator[str]:
    """What the cells' own checks find missing now, each once; benchmark tasks are loaded, which downloads them."""
    preflight, said = Preflight(), set[str]()
    for cell in selected:
        for sentence in [*preflight.missing(cell), *_of_measures(cell), *_of_statistics(cell)]:
            if sentence not in said:
                said.add(sentence)
                yield sentence


def _of_measures(cell: DictConfig) -> Iterator[str]:
    try:
        for measure in instantiate(cell.eval, _convert_="all").measures.values():
            measure.prepare()
    except (InputError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        yield str(cause)


def _of_statistics(cell: DictConfig) -> Iterator[str]:
    """Covariances over Wikipedia are computed on a machine with a GPU, from a stream."""
    statistics = cell.editor.get("statistics")
    if statistics and statistics.get("corpus") == "wikipedia" and not statistics.get("files"):
        names = _names(cell)
        yield (
            f"the covariances of {names['model']} over Wikipedia for {names['editor']} are not downloaded; compute "
            f"them where the network is: python -m kedit.stats build model={names['model']} dataset={names['dataset']} "
            f"editor={names['editor']}"
        )


def out(line: str) -> None:
    Console(soft_wrap=True, highlight=False).print(line, markup=False)


def main() -> None:
    use_safe_output()
    parser = argparse.ArgumentParser(
        prog="python -m kedit.fetch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="as for kedit")
    parser.add_argument("--list", action="store_true", help="list what would be downloaded, and end")
    given = parser.parse_args()
    os.environ.setdefault("TQDM_MININTERVAL", "10")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        sys.exit(fetch(given.overrides, only_list=given.list))
    except InputError as error:
        sys.exit(str(error))
