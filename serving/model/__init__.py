"""The model as a file: pictures in, probabilities out. Free of torch, HTTP and Prometheus."""
