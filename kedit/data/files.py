"""From a benchmark's file (local, or of a hub dataset) to a Dataset."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from kedit.cases import Case
from kedit.common.cache import sha256
from kedit.common.errors import InputError, first_line
from kedit.common.options import Count, Name, PathText, Seed
from kedit.data import counterfact, knowedit, zsre_mend
from kedit.data.dataset import Dataset, Dedup, Overlap, drop_leaking, leakage_note, select
from kedit.data.records import Record, read_records

Parse = Callable[[Record, str, Counter[str]], Case]
FORMS = (knowedit, counterfact, zsre_mend)  # each with `recognises` and `parse`


def load(
    parse: Parse,
    *,
    path: PathText | None = None,
    hub: Name | None = None,
    hub_file: Name | None = None,
    hub_revision: Name = "main",
    train_path: PathText | Sequence[PathText] | None = None,
    dedup: Dedup = "none",
    order_seed: Seed | None = None,
    limit: Count | None = None,
    drop_empty_targets: bool = False,
    train_overlap: Overlap = "drop",
    train: bool = False,
) -> Dataset:
    """Cases of `path`, or where it is null of `hub_file` in the hub dataset `hub`.

    `train` says that the editor's fit learns from training cases: they are those of `train_path`, one file or several
    of any form that kedit knows, without those that a test asks about (`train_overlap` keep: with them). Raises
    InputError, naming file, record and field, where a record is malformed, and where an edit has no target unless
    `drop_empty_targets`.
    """
    source = Path(path).expanduser() if path else download(hub, hub_file, hub_revision)
    dropped: Counter[str] = Counter()
    cases = parse_file(parse, source, drop_empty_targets, dropped)
    chosen = select(cases, dedup=dedup, order_seed=order_seed, limit=limit, dropped=dropped)
    learnable = _training(parse, train_path, drop_empty_targets, dropped) if train else []
    notes = leakage_note(learnable, chosen)
    if train_overlap == "drop":
        learnable = drop_leaking(learnable, chosen, dropped)
    return Dataset(
        cases=chosen,
        train=tuple(learnable),
        source=str(path or f"{hub}/{hub_file}@{hub_revision}"),
        sha256=sha256(source),
        dropped=dict(+dropped),
        notes=notes,
    )


def _training(
    parse: Parse, paths: str | Sequence[str] | None, drop_empty_targets: bool, dropped: Counter[str]
) -> list[Case]:
    """A file of the form that `parse` reads is read by it, with its options."""
    if not paths:
        raise InputError("the editor's fit learns from training cases; give a file with dataset.train_path=FILE")
    cases, lost, own = [], Counter[str](), getattr(parse, "func", parse)
    for path in [paths] if isinstance(paths, str) else paths:
        file = Path(path).expanduser()
        form = recognise(file, "dataset.train_path")
        reader = parse if form.parse is own else form.parse
        cases += parse_file(reader, file, drop_empty_targets, lost, "dataset.train_path")
    dropped.update({f"training: {reason}": n for reason, n in lost.items()})
    return cases


def parse_file(
    parse: Parse, path: Path, drop_empty_targets: bool, dropped: Counter[str], option: str = "dataset.path"
) -> list[Case]:
    """Every record as a case, its id "<file>-<index in file>"; `option` is the one that gives the file."""
    cases = []
    for i, record in enumerate(read_records(path, option)):
        case = parse(record, f"{path.stem}-{i}", dropped)
        if all(edit.target_new.strip() for edit in case.edits):
            cases.append(case)
        elif drop_empty_targets:
            dropped["edit with an empty target"] += 1
        else:
            raise InputError(
                f"{record.where}: the edit {case.edits[0].prompt!r} has an empty target; mend the record, or set "
                "dataset.drop_empty_targets=true to leave such records out"
            )
    return cases


def download(hub: str | None, hub_file: str | None, revision: str) -> Path:
    """The file in the hub's local cache, downloaded if need be."""
    if not hub or not hub_file:
        raise InputError("this dataset is not on the hub; give its file with dataset.path=FILE")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(hub, hub_file, repo_type="dataset", revision=revision))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise InputError(
            f"{hub_file} of the hub dataset {hub} could not be downloaded ({first_line(error)}); "
            "download it elsewhere and give it with dataset.path=FILE"
        ) from error


def recognise(path: Path, option: str = "dataset.path") -> ModuleType:
    """Which of FORMS the file's first record has."""
    record = next(read_records(path, option))
    for form in FORMS:
        if form.recognises(record):
            return form
    raise InputError(
        f"{path}: not the form of any benchmark kedit knows; its first record has the fields {', '.join(record.data)}"
    )
