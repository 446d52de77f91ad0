"""Consistency: does a text written about an edited subject sound like texts about things that have the new object?

ROME's reference score (Meng et al. 2022): the cosine of two TF-IDF vectors, of a case's generations and of
Wikipedia passages about subjects that truly have the new object.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kedit.cases import Question
from kedit.common.errors import InputError
from kedit.common.options import PathText
from kedit.data.missing_files import check_files
from kedit.data.records import read_any


class Consistency:
    """Reference texts, and the vectoriser that compares with them.

    `path`: a file in the form of ROME's attribute_snippets.json, a list of {relation_id, target_id, samples: [{text}]};
    None: no references, so no consistency. `idf` and `vocabulary`: ROME's idf.npy and tfidf_vocab.json; None: computed
    from all texts of `path`, as ROME's are. Raises InputError naming a file that is missing, before a model is loaded.
    """

    def __init__(self, path: PathText | None = None, idf: PathText | None = None, vocabulary: PathText | None = None):
        if (idf is None) != (vocabulary is None):
            raise InputError(f"eval.consistency has idf={idf}, vocabulary={vocabulary}: give both, or neither")
        files = {"path": path, "idf": idf, "vocabulary": vocabulary}
        named = [(f"eval.consistency.{name}", Path(file).expanduser()) for name, file in files.items() if file]
        check_files(named, "eval.consistency=null to leave consistency out")
        self.references = _references(path) if path else {}
        self._vectoriser = _vectoriser(self.references, idf, vocabulary)

    def rows(self, asked: Sequence[Question], generated: Sequence[str | None]) -> list[dict[str, Any]]:
        """A row for each case whose fluency texts have references; `written` are the answers to `asked`."""
        texts: dict[tuple[str, str], list[str]] = {}
        for question, text in zip(asked, generated, strict=True):
            if question.probe.kind == "fluency" and question.probe.topic in self.references:
                texts.setdefault((question.case, question.probe.topic), []).append(text or "")
        return [
            {"case": case, "kind": "consistency", "group": "", "probe": 0, "scoring": "generate"}
            | {"cosine": round(self.cosine(" ".join(said), " ".join(self.references[topic])), 6)}
            for (case, topic), said in texts.items()
        ]

    def cosine(self, text: str, reference: str) -> float:
        """In [0, 1]; 0 where they share no word that the vectoriser knows."""
        both = self._vectoriser.transform([text, reference])  # each of length 1, or 0
        return min(1.0, float((both @ both.T)[0, 1]))


def _vectoriser(references: Mapping[str, Sequence[str]], idf: str | None, vocabulary: str | None) -> Any:
    """scikit-learn's TfidfVectorizer, fitted on all texts or with the statistics of these files; None without texts."""
    if not references:
        return None
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise InputError("consistency needs scikit-learn; install it with: pip install 'kedit[retrieval]'") from error
    if idf is None or vocabulary is None:
        return TfidfVectorizer().fit([text for texts in references.values() for text in texts])
    import numpy as np

    try:
        words = read_any(Path(vocabulary).expanduser(), "eval.consistency.vocabulary")
        vectoriser = TfidfVectorizer(vocabulary=words)
        vectoriser.idf_ = np.load(Path(idf).expanduser(), allow_pickle=False)
    except InputError:
        raise
    except (ValueError, TypeError, EOFError) as error:
        raise InputError(
            f"{idf} and {vocabulary} are not ROME's idf.npy and tfidf_vocab.json ({error}); give two files that "
            "belong together, or neither"
        ) from error
    return vectoriser


def _references(path: str) -> dict[str, list[str]]:
    """relation_id/target_id -> texts."""
    found: dict[str, list[str]] = {}
    entries = read_any(Path(path).expanduser(), "eval.consistency.path")
    try:
        for entry in entries:
            topic = f"{entry['relation_id']}/{entry['target_id']}"
            found.setdefault(topic, []).extend(_text(sample["text"]) for sample in entry["samples"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: not in the form of attribute_snippets.json ({type(error).__name__}: {error}); give a list of "
            "{relation_id, target_id, samples: [{text}]}"
        ) from error
    return {topic: texts for topic, texts in found.items() if texts}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"text is {type(value).__name__}")
    return value
