"""An ONNX file as a network of torch: read, run, and written back with other convs and nothing else touched."""
