"""From a benchmark's file (local, or of a hub dataset) to a Dataset."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kedit.cases import Case
from kedit.common.cache import sha256 as file_sha256
from kedit.common.download import downloaded
from kedit.common.errors import InputError
from kedit.common.hub import hub_file as hub_copy
from kedit.common.options import Count, Name, PathText, Seed, Sha256, Url
from kedit.data import counterfact, knowedit, mquake, qaedit, rippleedits, wikibigedit, zsre_mend
from kedit.data.dataset import Dataset, Dedup, Overlap, drop_leaking, leakage_note, select
from kedit.data.missing_files import at_hand, check_files, data_folder, missing_files
from kedit.data.records import Record, is_blank, read_records

Parse = Callable[[Record, str, Counter[str]], Case | None]  # None: the record is left out, and counted
# each with `recognises`, `dataset_of` and `parse`; KnowEdit's fields occur in the other forms too, so it comes last
FORMS = (mquake, rippleedits, counterfact, zsre_mend, qaedit, wikibigedit, knowedit)
TRAIN_OPTION = "dataset.train_path"


def load(
    parse: Parse,
    *,
    path: PathText | None = None,
    hub: Name | None = None,
    hub_file: Name | None = None,
    hub_revision: Name = "main",
    url: Url | None = None,
    sha256: Sha256 | None = None,
    train_path: PathText | Sequence[PathText] | None = None,
    train_limit: Count | Mapping[str, Count] | None = None,
    dedup: Dedup = "none",
    order_seed: Seed | None = None,
    limit: Count | None = None,
    drop_empty_targets: bool = False,
    train_overlap: Overlap = "drop",
    train: bool = False,
) -> Dataset:
    """Cases of `path`; if that is None those of the file at the address `url`, whose sha256 is `sha256` (None: that of
    the first download), or of `hub_file` in the hub dataset `hub`.

    `train` says that the editor's fit learns from training cases: they are those of `train_path`, one file or several
    of any form that kedit knows, without those that a test asks about (`train_overlap` keep: with them); of each file
    the first `train_limit`, or as many as that says for the file's name. Raises InputError, naming file, record and
    field, if a record is malformed or no case is left, and if an edit has no target unless `drop_empty_targets`.
    """
    train_files = _train_files(train_path) if train else []
    _check_path(path)
    tests = [Path(path).expanduser()] if path else []
    check_files([*(("dataset.path", file) for file in tests), *((TRAIN_OPTION, file) for file in train_files)])
    origin = Origin(hub, hub_file, hub_revision, url, sha256)
    source = at_hand(tests[0]) if tests else origin.file()
    dropped: Counter[str] = Counter()
    cases = parse_file(parse, source, drop_empty_targets, dropped)
    chosen = select(cases, dedup=dedup, order_seed=order_seed, limit=limit, dropped=dropped)
    if not chosen:
        lost = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        raise InputError(f"{source}: none of its records is left to edit (dropped: {lost}); give another file")
    learnable = _training(parse, train_files, train_limit, drop_empty_targets, dropped)
    notes = leakage_note(learnable, chosen)
    learnable = drop_leaking(learnable, chosen, dropped) if train_overlap == "drop" else learnable
    return Dataset(
        cases=chosen,
        train=tuple(learnable),
        source=str(path or origin),
        file=str(source),
        sha256=file_sha256(source),
        dropped=dict(+dropped),
        notes=notes,
    )


def _check_path(path: str | None) -> None:
    if path is not None and not path.strip():
        raise InputError("dataset.path is empty; give the data file with dataset.path=FILE, or null for the hub's")


def _train_files(paths: str | Sequence[str] | None) -> list[Path]:
    """Raises InputError if there is none."""
    files = [Path(path).expanduser() for path in ([paths] if isinstance(paths, str) else paths or []) if path.strip()]
    if not files:
        raise InputError(f"the editor's fit learns from training cases; give a file with {TRAIN_OPTION}=FILE")
    return files


def missing_sources(
    *,
    path: str | None = None,
    hub: str | None = None,
    hub_file: str | None = None,
    hub_revision: str = "main",
    url: str | None = None,
    sha256: str | None = None,
    train_path: str | Sequence[str] | None = None,
    train: bool = False,
    **_: Any,
) -> Iterator[str]:
    """A sentence about each file that `load` would not find when it is called with these options."""
    try:
        files = [(TRAIN_OPTION, file) for file in (_train_files(train_path) if train else [])]
    except InputError as error:
        files = []
        yield str(error)
    if path is not None:
        files.insert(0, ("dataset.path", Path(path).expanduser()))
    yield from missing_files(files)
    if path is None:
        try:
            Origin(hub, hub_file, hub_revision, url, sha256).file()
        except InputError as error:
            yield str(error)


def _training(
    parse: Parse,
    files: Sequence[Path],
    limit: int | Mapping[str, int] | None,
    drop_empty_targets: bool,
    dropped: Counter[str],
) -> list[Case]:
    """A file of the form that `parse` reads is read by it, with its options."""
    cases, lost = [], Counter[str]()
    for file in files:
        there = at_hand(file)
        form = recognise(there, TRAIN_OPTION)
        reader = parse if form.parse is _function(parse) else form.parse
        first = limit.get(file.name) if isinstance(limit, Mapping) else limit
        cases += parse_file(reader, there, drop_empty_targets, lost, TRAIN_OPTION)[:first]
    dropped.update({f"training: {reason}": n for reason, n in lost.items()})
    return cases


def parse_file(
    parse: Parse, path: Path, drop_empty_targets: bool, dropped: Counter[str], option: str = "dataset.path"
) -> list[Case]:
    """Every record as a case, its id "<file>-<index in file>"; the user gives the file with `option`. `dropped` counts
    what is left out, by reason."""
    cases = []
    for i, record in enumerate(read_records(path, option)):
        _check_form(record, parse)
        case = parse(record, f"{path.stem}-{i}", dropped)
        if case is None:
            continue
        if not any(is_blank(edit.target_new) for edit in case.edits):
            cases.append(case)
        elif drop_empty_targets:
            dropped["edit with an empty target"] += 1
        else:
            raise InputError(
                f"{record.where}: field {record.empty_field!r} is empty, so the edit {case.edits[0].prompt!r} has an "
                "empty target; correct the record, or set dataset.drop_empty_targets=true to leave such records out"
            )
    return cases


def unused_fields(parse: Parse, path: Path) -> tuple[Counter[str], set[str]]:
    """In how many records of a file that `parse` can read each field is that it does not read, and which fields it
    looks for that no record has."""
    unused: Counter[str] = Counter()
    read: set[str] = set()
    there: set[str] = set()
    for i, record in enumerate(read_records(path)):
        parse(record, f"{path.stem}-{i}", Counter())
        unused.update(record.unused())
        read |= record.read
        there |= record.data.keys()
    return unused, read - there


def _check_form(record: Record, parse: Parse) -> None:
    """A record of one form that another form's parser reads would lose fields in silence."""
    form = form_of(record)
    if form and form.parse is not _function(parse) and any(known.parse is _function(parse) for known in FORMS):
        raise InputError(
            f"{record.where}: has the form that dataset={form.dataset_of(record)} reads (its fields are "
            f"{', '.join(list(record.data)[:6])}); choose that dataset, or correct the record"
        )


def _function(parse: Parse) -> Parse:
    """Without the options that a partial gives it."""
    return getattr(parse, "func", parse)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a dataset's file comes from if the user names none."""

    hub: str | None
    hub_file: str | None
    revision: str
    url: str | None
    sha256: str | None

    def __str__(self) -> str:
        return self.url or f"{self.hub}/{self.hub_file}@{self.revision}"

    def file(self) -> Path:
        """The file of this name in the folder KEDIT_DATA, or in the cache, downloaded if need be. Raises InputError."""
        name = self.url or (self.hub_file if self.hub else None)
        if not name:
            raise InputError("this dataset is not on the hub; give its file with dataset.path=FILE")
        local = data_folder() / Path(name).name
        if local.is_file():
            return local
        try:
            if self.url:
                return downloaded(self.url, self.sha256)
            return hub_copy(str(self.hub), str(self.hub_file), repo_type="dataset", revision=self.revision)
        except InputError as error:
            what = self.url or f"{self.hub_file} of the hub dataset {self.hub}"
            raise InputError(
                f"{what} could not be downloaded ({error}); download it elsewhere and put it into {data_folder()}, the "
                "folder that KEDIT_DATA names, or give it with dataset.path=FILE"
            ) from error


def form_of(record: Record) -> ModuleType | None:
    """Which of FORMS the record has."""
    return next((form for form in FORMS if form.recognises(record)), None)


def recognise(path: Path, option: str = "dataset.path") -> ModuleType:
    """Which of FORMS the file's first record has. Raises InputError if it has none of them."""
    return _recognised(path, next(read_records(path, option)))


def dataset_of(path: Path) -> str:
    """The choice of conf/dataset that reads the file, by its first record."""
    record = next(read_records(path))
    return str(_recognised(path, record).dataset_of(record))


def _recognised(path: Path, first: Record) -> ModuleType:
    form = form_of(first)
    if form is None:
        there = f"the fields {', '.join(first.data)}" if first.data else "no field"
        raise InputError(
            f"{path}: not the form of any benchmark kedit knows; its first record has {there}, "
            "but needs at least prompt, target_new and subject (docs/data.md)"
        )
    return form
