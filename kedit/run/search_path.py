"""Where Hydra finds configs beside conf/: in sweeps/, and in no other folder of the checkout.

Importing this module registers it, and the resolvers that conf/ uses, for every composition of this process. What the
command line gives as --config-dir or hydra.searchpath is searched as well, and Python modules that lie there are found.
"""

import os
import sys
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from kedit.common.paths import ROOT

SWEEPS = "sweeps"


class SweepsSource(FileConfigSource):
    """The group sweeps/ of a folder. Its other folders are no groups: as one, runs/ would hide the option `runs`."""

    @staticmethod
    def scheme() -> str:
        return SWEEPS

    def is_group(self, config_path: str) -> bool:
        return (not config_path or _inside(config_path)) and super().is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        return _inside(config_path) and super().is_config(config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if not config_path:
            return [] if results_filter == ObjectType.CONFIG else [SWEEPS]
        return super().list(config_path, results_filter)

    def load_config(self, config_path: str) -> ConfigResult:
        return super().load_config(config_path)


class KeditSearchPath(SearchPathPlugin):
    """Adds sweeps/ to whatever else is searched."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("kedit", f"{SWEEPS}://{ROOT}")


def find_own_code(hydra: Any) -> None:
    """Let yamls in folders of the user's own (--config-dir, hydra.searchpath) name Python modules that lie beside them:
    in mine/, editor/nudge.yaml may say `_target_: nudge.Nudge` of mine/nudge.py. `hydra` is Hydra's own config."""
    files = [source.path for source in hydra.runtime.config_sources if source.schema == "file"]
    own = [os.path.abspath(path) for path in files if not Path(path).resolve().is_relative_to(ROOT.resolve() / "conf")]
    sys.path += [path for path in own if path not in sys.path]  # behind what is installed: it hides nothing


def _inside(config_path: str) -> bool:
    return os.path.normpath(config_path).split(os.sep)[0] == SWEEPS


Plugins.instance().register(SweepsSource)
Plugins.instance().register(KeditSearchPath)


def source(group: str, resources: str, sweep: str, dataset: str, default: str) -> str:
    """Which choice of conf/<group> a part is made of by default: that of its name for resources=NAME, else that of the
    sweep's paper (on the datasets that the paper has files for), else `default`."""
    paper = paper_of(sweep)
    has_files = (ROOT / SWEEPS / "paper" / "resources" / paper / f"{dataset}.yaml").is_file()
    names = [resources, *([paper] if has_files else [])]
    return next((name for name in names if (ROOT / "conf" / group / f"{name}.yaml").is_file()), default)


def has_resources(sweep: str) -> bool:
    """Whether editors of a sweep's paper need files besides the data."""
    return (ROOT / SWEEPS / "paper" / "resources" / paper_of(sweep)).is_dir()


def paper_of(sweep: str) -> str:
    """The paper whose table a sweep fills."""
    return sweep.partition("_table")[0]


OmegaConf.register_new_resolver("kedit.root", lambda: str(ROOT), replace=True)
OmegaConf.register_new_resolver("kedit.paper", paper_of, replace=True)
OmegaConf.register_new_resolver("kedit.source", source, replace=True)
