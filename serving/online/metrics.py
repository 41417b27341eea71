"""What Prometheus is told, at /metrics."""

import os

# BentoML's environment asks for values in files that several processes share. One process answers here; in memory they
# are exact and quick, and the series of a model that was replaced can end.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "exposition"]

disable_created_metrics()

REQUESTS = Counter("classifier_requests", "Requests answered", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "classifier_request_seconds",
    "From a request to its answer",
    ["route"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
REFUSALS = Counter("classifier_refusals", "Requests and pictures refused, by the code of the answer", ["code"])
QUEUE_LENGTH = Gauge("classifier_queue_length", "Pictures that wait or run")
BATCH_SIZE = Histogram(
    "classifier_batch_size", "Pictures in one run of the model", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
STAGE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
QUEUE_SECONDS = Histogram("classifier_queue_seconds", "A picture's time in the queue", buckets=STAGE_BUCKETS)
DECODE_SECONDS = Histogram("classifier_decode_seconds", "The decoding of a picture", buckets=STAGE_BUCKETS)
MODEL_SECONDS = Histogram("classifier_model_seconds", "A run of the model", buckets=STAGE_BUCKETS)
PREDICTIONS = Counter("classifier_predictions", "Pictures by the class they were taken for", ["label"])
CONFIDENCE = Histogram(
    "classifier_confidence", "Probability of the class that was answered", buckets=[step / 10 for step in range(1, 11)]
)
MODEL = Gauge("classifier_model_info", "The model that answers", ["name", "version", "run_id", "precision"])
MODEL_LACKS = Gauge("classifier_model_lacks", "What is asked for and not to be had here, see /model")
MODEL_CHANGES = Counter("classifier_model_changes", "New versions: taken, or failed and not taken", ["outcome"])


def observe_run(pictures: int, seconds: float) -> None:
    """A run of the model for so many pictures."""
    BATCH_SIZE.observe(pictures)
    MODEL_SECONDS.observe(seconds)


def exposition() -> bytes:
    """All metrics, in Prometheus' text format."""
    return generate_latest(REGISTRY)
