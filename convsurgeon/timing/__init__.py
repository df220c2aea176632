"""Speed and memory of ONNX files in onnxruntime, public as `cs.timing`; the names stand in `__init__.pyi`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
