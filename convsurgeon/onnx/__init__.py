"""A model as one ONNX file that devices accept: exported, cleaned, named, and equal to torch or not written."""
