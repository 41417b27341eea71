"""The report on any model: python -m training.evaluate model_uri=models:/NAME@ALIAS data=folder data.root=PATH"""

import logging
from functools import partial

from serving.model.errors import UserError
from serving.model.precision import chosen
from serving.model.predictor import Predictor
from serving.model.registry import onnx_file
from serving.model.runtime import providers_for
from training.config import hydra_command
from training.data.split import load_data
from training.pages.page import write_whole
from training.quality.evaluation import evaluate, predict
from training.quality.figures import evaluation_plots
from training.quality.report import next_steps, render_report
from training.settings import EvaluateSettings
from training.tracking import state_dir

log = logging.getLogger(__name__)


def main(settings: EvaluateSettings) -> None:
    """Scores the model on the test pictures and writes the report."""
    precision = chosen()
    file = onnx_file(settings.model_uri, state_dir())
    predictor = Predictor(file, providers=providers_for(precision), precision=precision)
    data = load_data(settings.data, settings.seed, predictor.metadata.decoding, for_training=False)
    log.info("%s", data.table())
    if unknown := [name for name in data.classes if name not in predictor.classes]:
        raise UserError(
            f"{settings.model_uri} knows the classes {', '.join(predictor.classes)},\n"
            f"but the pictures are of {', '.join(unknown)}"
        )
    if not len(data.test):
        raise UserError(f"data.root={settings.data.root}: there are no test pictures, in test/<class>/ or in <class>/")
    data = data.with_classes(predictor.classes)
    probabilities = predict(
        partial(predictor.predict, all_cores=True), data.test, "evaluating", settings.evaluation_batch_size
    )
    evaluation = evaluate(probabilities, data.test, data.classes)
    title = f"{settings.model_uri} on {data.name}"
    said = predictor.metadata
    subtitle = (
        f"{said.model_name} in {predictor.precision}, trained on {said.data_name} by MLflow run {said.mlflow_run_id}"
    )
    steps = next_steps(settings.data, settings.model_uri)
    plots = evaluation_plots(evaluation)
    write_whole(settings.report, render_report(title, subtitle, evaluation, data, plots, steps))
    for name, value in evaluation.metrics.items():
        log.info("%-18s %.4f", name, value)
    log.info("report: %s", settings.report)


if __name__ == "__main__":
    hydra_command(main, EvaluateSettings, "evaluate")
