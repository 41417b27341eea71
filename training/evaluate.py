"""The report on any model: python -m training.evaluate model_uri=models:/NAME@ALIAS data=folder data.root=PATH"""

import logging
from functools import partial

from serving.model.errors import UserError
from serving.model.predictor import Predictor
from serving.model.registry import onnx_file
from training.config import hydra_command
from training.data.split import load_data
from training.quality.evaluation import evaluate, predict
from training.quality.figures import evaluation_figures
from training.quality.report import render_report, write_whole
from training.settings import EvaluateSettings

log = logging.getLogger(__name__)


def main(settings: EvaluateSettings) -> None:
    """Scores the model on the test pictures and writes the report."""
    predictor = Predictor(onnx_file(settings.model_uri, settings.state_dir))
    data = load_data(settings.data, settings.seed)
    if predictor.classes != data.classes:
        raise UserError(
            f"{settings.model_uri} knows the classes {', '.join(predictor.classes)},\n"
            f"but the pictures are of {', '.join(data.classes)}"
        )
    probabilities = predict(partial(predictor.predict, all_cores=True), data.test, "evaluating")
    evaluation = evaluate(probabilities, data.test, data.classes)
    title = f"{settings.model_uri} on {data.name}"
    write_whole(settings.report, render_report(title, evaluation, evaluation_figures(evaluation)))
    for name, value in evaluation.metrics.items():
        log.info("%-18s %.4f", name, value)
    log.info("report: %s", settings.report)


if __name__ == "__main__":
    hydra_command(main, EvaluateSettings, "evaluate")
