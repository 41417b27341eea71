"""Scores any registered version or ONNX file: python -m training.evaluate model_uri=... data=folder data.root=..."""

import json
import logging
from pathlib import Path

from omegaconf import DictConfig

from training.config import hydra_command
from training.data import load_data
from training.errors import UserError
from training.evaluation import evaluate, predict
from training.export import onnx_classify, onnx_metadata
from training.registry import onnx_file
from training.report import write_report
from training.settings import require_valid

log = logging.getLogger(__name__)


def main(config: DictConfig) -> None:
    """Scores the model on the test pictures and writes the report.

    Raises:
        UserError: there is no such model, or the pictures' classes are not the model's.
    """
    require_valid(config)
    file = onnx_file(config.model_uri)
    classes = json.loads(onnx_metadata(file).get("classes", "[]"))
    data = load_data(config.data, config.seed)
    if classes != data.classes:
        raise UserError(
            f"{config.model_uri} knows the classes {', '.join(classes) or '(none)'},\n"
            f"but the pictures are of {', '.join(data.classes)}"
        )
    probabilities = predict(onnx_classify(file), data.test, "evaluating")
    evaluation = evaluate(probabilities, data.test.labels, classes)
    report = Path(config.report)
    write_report(report, f"{config.model_uri} on {data.name}", evaluation, probabilities, data.test, classes)
    for name, value in evaluation.metrics.items():
        log.info("%-18s %.4f", name, value)
    log.info("report: %s", report)


if __name__ == "__main__":
    hydra_command(main, "evaluate")
