"""Definitions, on examples computed by hand."""

import math
import re
from pathlib import Path

import pytest

from kedit.evaluation import metrics
from kedit.evaluation.metrics import Forced, Written, grades
from kedit.evaluation.metrics.free_answer import exact_match, normalise
from kedit.evaluation.metrics.free_text import ngram_entropy
from kedit.evaluation.metrics.teacher_forced import magnitude, mean_nll, success, token_match
from kedit.reports.table import cli
from kedit.results.means import half_width, harmonic_mean
from kedit.results.scores import summary


def test_token_match_is_the_share_of_equal_positions() -> None:
    assert token_match([1, 2, 3], [1, 9, 3]) == pytest.approx(2 / 3)
    assert token_match([7], [7]) == 1
    with pytest.raises(ValueError, match="0 predicted"):
        token_match([], [])


def test_ngram_entropy_of_a_short_text_by_hand() -> None:
    # "a b a b a": bigrams ab ba ab ba (H = 1 bit); trigrams aba bab aba (H = log2 3 - 2/3)
    assert ngram_entropy("a b a b a") == pytest.approx(1 / 3 + 2 / 3 * (math.log2(3) - 2 / 3))


def test_ngram_entropy_is_low_for_repetition_and_six_for_prose() -> None:
    prose = " ".join(f"w{i}" for i in range(100))
    assert ngram_entropy("a b c " * 30) < 2
    assert ngram_entropy(prose) == pytest.approx(math.log2(99) / 3 + 2 * math.log2(98) / 3)
    assert ngram_entropy("word") == 0


@pytest.mark.parametrize(
    ("parts", "expected"),
    [((99.4, 77.0, 46.9), 67.6), ((99.6, 91.0, 73.6), 86.7), ((99.6, 49.2, 69.2), 66.9), ((96.7, 89.7, 26.6), 50.8)],
)
def test_harmonic_means_that_the_papers_print(parts: tuple[float, ...], expected: float) -> None:
    assert round(harmonic_mean(parts), 1) == expected


def test_harmonic_mean_with_a_zero_is_zero() -> None:
    assert harmonic_mean((90.0, 0.0, 80.0)) == 0


def test_the_likelier_object_by_hand() -> None:
    right, other = mean_nll([math.log(0.5), math.log(0.125)]), mean_nll([math.log(0.125)])
    assert (right, other) == (pytest.approx(math.log(4)), pytest.approx(math.log(8)))
    assert (success(right, other), success(other, right), success(right, right)) == (True, False, False)  # a tie fails
    assert magnitude(right, other) == pytest.approx(1 / 4 - 1 / 8)


def test_half_width_by_hand() -> None:
    # mean 75, deviations 25 and -25: std 25
    assert half_width([100.0, 50.0, 100.0, 50.0]) == pytest.approx(1.96 * 25 / 2)
    assert half_width([100.0] * 10) == 0
    assert math.isnan(half_width([100.0]))


@pytest.mark.parametrize(
    ("generated", "matches"),
    [
        (" Paris", True),
        (" Paris.", True),
        ("paris. It is the capital.", True),
        (" Paris\nQ: What", True),
        (" Paris, France", False),
        (" Paris and Rome", False),
        (" the city of light", True),
        ("", False),
    ],
)
def test_exact_match_says_the_answer_and_stops(generated: str, matches: bool) -> None:
    assert exact_match(generated, ["Paris", "City of Light"]) is matches


def test_exact_match_of_an_answer_with_a_full_stop_inside() -> None:
    assert exact_match(" St. Louis. It lies", ["St. Louis"])


def test_normalise() -> None:
    assert normalise(" The  “U.S.” Army ") == "“us” army"


def test_a_metric_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that docs/metrics.md prints: rows have it, tables show it, nothing else is touched."""
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "word_f1.py").write_text(code, "utf-8")
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    metrics.metrics.cache_clear()
    try:
        scores = grades("generate", Written("reliability", "The city of Oslo.", acceptable=("Bergen", "Oslo")))
        assert scores == {"exact": 0, "word_f1": 2 / 4}
        assert "word_f1" not in grades("forced", Forced("reliability", [1], [1], [-0.1]))
        rows = [row("before", 0, word_f1=0.25), row("test", 1, word_f1=0.5), row("test", 1, word_f1=1.0)]
        table = summary(rows, score="word_f1", kinds=["reliability"])
        assert table["edit success"].tolist() == [25, 75]
        assert cli.parser().parse_args(["--scoring", "word_f1"]).scoring == "word_f1"
    finally:
        metrics.metrics.cache_clear()


def row(when: str, T: int, **scores: float) -> dict[str, object]:
    place = {"step": T, "when": when, "T": T or None, "case": "0", "kind": "reliability", "group": "", "probe": 0}
    return place | {"scoring": "generate"} | scores
