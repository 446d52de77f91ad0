"""The columns of a table: a name for each kind of question, and what a caption says of them."""

from kedit.evaluation.metrics import metrics

COLUMNS = {  # a probe's kind -> the papers' word for its score
    "reliability": "edit success",
    "generality": "generality",
    "portability": "portability",
    "locality": "locality",
    "efficacy": "efficacy",
    "paraphrase": "paraphrase",
    "neighborhood": "neighborhood",
    "one_hop": "1-hop",
    "multi_hop": "multi-hop",
    "all_hops": "all hops",
    "unedited_multi_hop": "multi-hop, not edited",
    "logical_generalization": "LG",
    "compositionality_1": "CI",
    "compositionality_2": "CII",
    "subject_aliasing": "SA",
    "preservation": "PV",
    "relation_specificity": "RS",
    "fluency": "fluency",
    "consistency": "consistency",
}
HM = ("reliability", "locality", "portability")  # KEDAS's, as far as the dataset has them
SCORE = ("efficacy", "paraphrase", "neighborhood")  # ROME's: of all three
_MEANING = {  # column -> what a caption says of it
    "edit success": "edit success = reliability",
    "locality": "locality = agreement with the unedited model",
    "HM": "HM of edit success, locality and portability",
    "Score": "Score = harmonic mean of efficacy, paraphrase and neighborhood",
}


def meanings() -> dict[str, str]:
    """Column -> what a caption says of it; scores of texts say it themselves."""
    return _MEANING | {COLUMNS[m.kinds[0]]: m.caption for m in metrics().values() if m.of_texts}
