import numpy as np
from scipy.special import softmax

from tests.helpers.state import TINY
from training.config import compose
from training.data.split import load_data
from training.model.classifier import build_model
from training.quality.calibration import calibrate, fit_temperature
from training.quality.evaluation import predict, torch_classify


def test_the_temperature_that_made_the_labels_is_found_again() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (20_000, 10))
    for true in (0.5, 3.0):
        chances = softmax(logits / true, axis=1)
        labels = (chances.cumsum(axis=1) > random.random((len(logits), 1))).argmax(axis=1)
        np.testing.assert_allclose(fit_temperature(logits, labels), true, rtol=0.05)


def test_a_classifier_that_is_too_sure_answers_the_same_but_less_sure() -> None:
    settings = compose([*TINY, "model.weights=none"])
    data = load_data(settings.data, settings.seed, settings.model.decoding)
    model = build_model(settings.model, len(data.classes))
    model.head[0].weight.data *= 1000  # an untrained model that is sure of everything
    before = predict(torch_classify(model), data.validation, "before", 32)

    metrics = calibrate(model, data.validation, 32)
    after = predict(torch_classify(model), data.validation, "after", 32)
    assert metrics["temperature"] > 1
    assert metrics["validation_calibration_error"] < metrics["validation_calibration_error_uncalibrated"]
    np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))
    assert after.max(axis=1).mean() < before.max(axis=1).mean()


def test_a_classifier_that_is_as_sure_as_it_is_right_stays_as_it_is() -> None:
    settings = compose([*TINY, "model.weights=none"])
    data = load_data(settings.data, settings.seed, settings.model.decoding)
    model = build_model(settings.model, len(data.classes))
    model.head[0].weight.data.zero_()
    model.head[0].bias.data.zero_()  # every class alike, which is right for a tenth of the pictures
    metrics = calibrate(model, data.validation, 32)
    assert metrics["temperature"] == 1 == float(model.temperature)
