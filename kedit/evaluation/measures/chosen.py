"""The measures of a run: which are chosen, and whether they can be had."""

from collections.abc import Mapping, Sequence

from kedit.common.errors import InputError
from kedit.evaluation.measures import Measure
from kedit.evaluation.measures.perplexity import Perplexity


def named_measures(given: Mapping[str, Measure] | None) -> dict[str, Measure]:
    """The measures of a run, by name. None: perplexity alone. Raises InputError if these are no measures."""
    if given is None:
        return {"perplexity": Perplexity()}
    if not isinstance(given, Mapping) or not all(isinstance(measure, Measure) for measure in given.values()):
        raise InputError(
            f"eval.measures={given!r}: not measures; choose them with eval/measures=[perplexity,lm_eval] (the files of "
            "conf/eval/measures)"
        )
    return dict(given)


def check_measured(measures: Mapping[str, Measure], restored: Sequence[bool]) -> None:
    """Before a model is loaded. `restored`: of each test, whether the model is restored right after it. Raises
    InputError if a measure cannot be had, or would measure nothing but the unedited model."""
    for name, measure in measures.items():
        measure.prepare()
        if measure.needs_tests and not measure.each_restore and all(restored):
            raise InputError(
                f"eval.measures.{name} is asked of a model that stays edited after its test, and this setting restores "
                f"it after each of its {len(restored)} tests; set eval.measures.{name}.each_restore=true to ask at all "
                "of them, or choose setting=sequential"
            )
