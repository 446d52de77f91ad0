"""The filter's pairs in question form, and the threshold that its training finds."""

import pytest

from kedit.cases import Case, Edit, Probe
from kedit.common.errors import InputError
from kedit.editors.incontext.filter import threshold_of
from kedit.editors.incontext.filter_pairs import FilterPairs, as_question


def test_a_stated_edit_is_also_paired_as_a_question() -> None:
    """Its queries are stated or asked; what cannot be asked stays as it is."""
    probes = (Probe("portability", "The capital of the land is", ("x",)), Probe("locality", "Spain lies in", ("y",)))
    stated = Case("f-0", (Edit("The capital of Spain is", "Rome"),), probes)
    plain, both = (FilterPairs(questions=questions).of([stated]) for questions in (False, True))
    assert both[: len(plain)] == plain
    added = both[len(plain) :]
    assert {pair.stored for pair in added} == {"What is the capital of Spain? Rome"}
    assert [(pair.relevant, pair.kind) for pair in added] == [(pair.relevant, pair.kind) for pair in plain]
    assert added[2].query == "Spain lies in"
    assert as_question("The names of the sons of Ann are") == "What are the names of the sons of Ann?"


def test_the_threshold_is_that_of_the_recall_on_held_out_pairs() -> None:
    judged = [(True, 0.9), (True, 0.6), (True, 0.3), (True, 0.1), (False, 0.95)]
    assert [threshold_of(recall, judged) for recall in (0.25, 0.5, 0.75, 0.76, 1.0)] == [0.9, 0.6, 0.3, 0.1, 0.1]
    with pytest.raises(InputError, match="held-out relevant pairs"):
        threshold_of(0.9, [(False, 0.5)])
