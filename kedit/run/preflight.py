"""What cells need and do not find: files, and models of the hub. Nothing is loaded."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from kedit.common.dotted import dotted
from kedit.common.errors import InputError, named_in

DATA_FILES = (".json", ".jsonl")
GIVEN_WITH = re.compile(r"with (\S+)=FILE")


def check_inputs(cfg: DictConfig, editor: Any) -> None:
    """Raises InputError about the first file or model that a cell's editor or data need and do not find; it names
    the others."""
    first, *others = [*editor.missing_inputs(), *_of_data(cfg, editor.needs_train)] or [None]
    if first is not None:
        names = [name for name in dict.fromkeys(map(named_in, others)) if name != named_in(first)]
        raise InputError(first + (f" (missing too: {', '.join(names)})" if names else ""))


class Preflight:
    """Says of the cells of a sweep what each lacks; what several have in common is looked up once."""

    def __init__(self) -> None:
        self._known: dict[str, list[str]] = {}
        self._needs_train: dict[str, bool] = {}

    def missing(self, cfg: DictConfig) -> list[str]:
        """A sentence about each file and model that this cell needs and does not find."""
        editor = OmegaConf.to_yaml(cfg.editor, resolve=True)
        found = self._once(editor, lambda: self._of_editor(editor, cfg))
        train = self._needs_train.get(editor, False)
        data = f"{train}{OmegaConf.to_yaml(cfg.dataset, resolve=True)}{OmegaConf.to_yaml(cfg.eval, resolve=True)}"
        model = {name: cfg.model[name] for name in ("path", "revision") if name in cfg.model}
        return [
            *found,
            *self._once(data, lambda: _of_data(cfg, train)),
            *self._once(f"model {model}", lambda: _of_model(**model)),
        ]

    def _once(self, key: str, look: Callable[[], Iterator[str]]) -> list[str]:
        if key not in self._known:
            self._known[key] = list(look())
        return self._known[key]

    def _of_editor(self, key: str, cfg: DictConfig) -> Iterator[str]:
        """Also what its constructor refuses."""
        try:
            editor = instantiate(cfg.editor, _convert_="all")
        except (InputError, InstantiationException) as error:
            cause = error.__cause__ if isinstance(error, InstantiationException) else error
            if isinstance(cause, InputError):
                yield str(cause)
            return  # anything else the cell itself says
        self._needs_train[key] = editor.needs_train
        yield from editor.missing_inputs()


def _of_data(cfg: DictConfig, train: bool) -> Iterator[str]:
    from kedit.data.files import missing_sources
    from kedit.data.missing_files import missing_files

    options: dict[str, Any] = OmegaConf.to_container(cfg.dataset, resolve=True)  # type: ignore[assignment]
    if "hub_file" in options:  # it is read from a file
        yield from missing_files(list(_named_files("dataset.parse", options.get("parse"))))
        yield from missing_sources(**options | {"train": train})
    texts = OmegaConf.select(cfg, "eval.consistency")
    if texts:
        given = {f"eval.consistency.{name}": texts.get(name) for name in ("path", "idf", "vocabulary")}
        files = [(option, Path(file).expanduser()) for option, file in given.items() if file]
        yield from missing_files(files, "eval.consistency=null to leave consistency out")


def _named_files(option: str, values: Any) -> Iterator[tuple[str, Path]]:
    for name, value in dotted(values, option) if isinstance(values, Mapping) else ():
        if isinstance(value, str) and value.endswith(DATA_FILES):
            yield name, Path(value).expanduser()


def _of_model(path: str | None = None, revision: str = "main") -> Iterator[str]:
    from kedit.common.hub import why_no_model

    if path is not None and (why := why_no_model(path, revision)):
        yield f"model.path={path}: this model cannot be had ({why}); give a directory, or a hub id that you can reach"


def said(blocked: Mapping[str, Sequence[str]], cells: int) -> Iterator[str]:
    """For the user: a sentence about each file or model, with how many cells cannot start without it. `blocked`: the
    sentences by cell."""
    texts: dict[str, list[str]] = {}
    waiting: dict[str, set[str]] = {}
    for cell, sentences in blocked.items():
        for sentence in sentences:
            what = sentence.partition(": no such file")[0]
            texts.setdefault(what, [])
            texts[what] += [sentence] if sentence not in texts[what] else []
            waiting.setdefault(what, set()).add(cell)
    yield f"{len(blocked)} of {cells} cells cannot start, because something is missing:"
    yield from (f"- {_merged(texts[what])} [{len(waiting[what])} cells]" for what in texts)


def _merged(sentences: Sequence[str]) -> str:
    """One file may be given with several options: the first sentence, and the options of the others."""
    options = [option for sentence in sentences[1:] for option in GIVEN_WITH.findall(sentence)]
    return sentences[0] + (f" (used as {', '.join(dict.fromkeys(options))} too)" if options else "")
