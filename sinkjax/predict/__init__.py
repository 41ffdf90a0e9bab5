"""Whether a head will be a sink, from what is known before it is computed: fitted and judged."""

from sinkjax.predict.logistic import FEATURES, Examples, Fitted, fit, fit_penalty
from sinkjax.predict.metrics import auc, compare_brier, operate, score_predictions
from sinkjax.predict.run import MODELS, PredictSettings, check_predict, predict_sinks, run_predict

__all__ = [
    "FEATURES",
    "MODELS",
    "Examples",
    "Fitted",
    "PredictSettings",
    "auc",
    "check_predict",
    "compare_brier",
    "fit",
    "fit_penalty",
    "operate",
    "predict_sinks",
    "run_predict",
    "score_predictions",
]
