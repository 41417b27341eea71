"""Temperature scaling: confidences that are as high as the answers are right."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from training.data.pictures import Pictures
from training.model.classifier import ImageClassifier
from training.quality.evaluation import expected_calibration_error, predict, torch_logits

RANGE = (0.05, 20.0)


def calibrate(classifier: ImageClassifier, validation: Pictures, batch_size: int) -> dict[str, float]:
    """Sets the classifier's temperature by the validation pictures, where that lowers their calibration error.

    No answer changes by it, only how sure the classifier is of it. Returns the temperature, 1 where it is left as it
    was, and the expected calibration error before and after.
    """
    logits = predict(torch_logits(classifier), validation, "calibrating", batch_size)
    temperature = fit_temperature(logits, validation.labels)
    before, after = (
        expected_calibration_error(softmax(logits / divisor, axis=1), validation.labels)
        for divisor in (1.0, temperature)
    )
    if after >= before:
        temperature, after = 1.0, before
    classifier.temperature.fill_(temperature)
    return {
        "temperature": temperature,
        "validation_calibration_error_uncalibrated": before,
        "validation_calibration_error": after,
    }


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The divisor of the logits (N, classes) with the least negative log-likelihood (Guo et al. 2017)."""
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(RANGE), method="bounded").x))
