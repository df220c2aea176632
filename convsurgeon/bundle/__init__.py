"""The folder to ship: ONNX files, weights, plan, reports, and which of the files to use.

The folder appears whole or not at all.
"""
