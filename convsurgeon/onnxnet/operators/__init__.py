"""The operators that stand between convs, in functions of torch, so that gradients go through them.

Everything else runs in a subgraph, in onnxruntime.
"""
