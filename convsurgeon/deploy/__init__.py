"""Everything that imports onnx or onnxruntime."""
