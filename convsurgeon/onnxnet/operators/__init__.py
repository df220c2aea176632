"""What operators of ONNX compute, in functions of torch, and the rule by which a node becomes one; a file a family."""
