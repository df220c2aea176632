"""Time a folder of candidate networks; a device gets a copy of these files, and `measure.py`, which starts them.

They need Python 3.9, numpy, onnxruntime 1.12 (or OpenVINO), and nothing else. The package measures with the same code.
"""
