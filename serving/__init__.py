"""What answers: pictures in, classes out. Needs the ONNX file and nothing that trained it."""
