"""WikiData_recent as FT-editing's appendix A uses it: KnowEdit's edits, paraphrases, neighbours from CounterFact.

Efficacy and paraphrases are scored by token match; a neighbour by whether its true object is likelier than the new one
of its own CounterFact record. The paper's paraphrases are written by gpt-3.5-turbo-0125; here the user gives them.
"""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

from kedit.cases import Case, Probe
from kedit.common.errors import InputError
from kedit.common.options import Count, PathText, Seed
from kedit.data import counterfact, knowedit
from kedit.data.files import parse_file
from kedit.data.records import Record, is_blank, read_any


class WikiRecent:
    """Parses a record of KnowEdit's WikiData_recent, and asks ROME's three kinds as well.

    `paraphrases`: a json or jsonl file, index of the record -> list of paraphrases of its prompt (an object, or a list
    in the records' order); None: no paraphrase is asked. `counterfact`: a CounterFact file in ROME's form; each case
    gets `neighbors` of its neighbourhood prompts, drawn by `seed` and the case.
    """

    def __init__(
        self,
        *,
        counterfact: PathText | None,
        paraphrases: PathText | None = None,
        neighbors: Count = 10,
        seed: Seed = 0,
    ):
        if counterfact is None:
            raise InputError(
                "dataset.parse.counterfact is null: locality asks CounterFact's neighbourhood prompts; give a "
                "CounterFact file in ROME's form with dataset.parse.counterfact=FILE"
            )
        self.paraphrases = {} if paraphrases is None else _paraphrases(Path(paraphrases).expanduser())
        self.pool = _neighbors(Path(counterfact).expanduser())
        if not 0 < neighbors <= len(self.pool):
            raise InputError(
                f"dataset.parse.neighbors={neighbors}: {counterfact} has {len(self.pool)} neighbourhood prompts with a "
                "competing object; give a number from 1 to that"
            )
        self.neighbors, self.seed = neighbors, seed

    def __call__(self, record: Record, case_id: str, dropped: Counter[str]) -> Case:
        case = knowedit.parse(record, case_id, dropped)
        [edit] = case.edits
        rng = random.Random(f"{self.seed}/{case_id}")
        rome = [
            Probe("efficacy", edit.prompt, (edit.target_new,)),
            *(Probe("paraphrase", text, (edit.target_new,)) for text in self.paraphrases.get(_index(case_id), [])),
            *rng.sample(self.pool, self.neighbors),
        ]
        return replace(case, probes=(*case.probes, *rome))


def _index(case_id: str) -> int:
    """The record's place in its file."""
    return int(case_id.rpartition("-")[2])


def _neighbors(path: Path) -> list[Probe]:
    """Every distinct neighbourhood prompt that has two objects."""
    cases = parse_file(counterfact.parse, path, True, Counter(), option="dataset.parse.counterfact")
    found = (probe for case in cases for probe in case.probes if probe.kind == "neighborhood")
    return list(dict.fromkeys(probe for probe in found if probe.competing_answer))


def _paraphrases(path: Path) -> dict[int, list[str]]:
    data = read_any(path, "dataset.parse.paraphrases")
    entries = data.items() if isinstance(data, dict) else enumerate(data if isinstance(data, list) else [data])
    found: dict[int, list[str]] = {}
    for index, texts in entries:
        good = isinstance(texts, list) and all(isinstance(text, str) and not is_blank(text) for text in texts)
        if not good or not str(index).isdecimal():
            raise InputError(f"{path}: entry {index!r} is not a record's index with a list of texts; correct it")
        found[int(index)] = texts
    return found
