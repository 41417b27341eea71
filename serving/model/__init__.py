"""The model as a file: pictures in, probabilities out. Free of torch, HTTP and Prometheus."""

from pathlib import Path

# How all pages look: the service's own, and the reports of training.
STYLESHEET = Path(__file__).with_name("style.css")
