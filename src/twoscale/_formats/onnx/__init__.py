"""The saved form: an ONNX file of standard integer operators, written and read."""
