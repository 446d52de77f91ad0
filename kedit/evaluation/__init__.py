"""Scores of a model before and after editing: the evaluator, the metrics, the unedited model's cached answers."""
