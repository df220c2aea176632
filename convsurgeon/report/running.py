"""How to run the file that a bundle recommends: the lines of Python that its README and its page show."""

from __future__ import annotations

from convsurgeon.report.bundle import Recommended

_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}
_CODE = """\
import onnxruntime as ort

options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = {threads}, 1
options.graph_optimization_level = ort.GraphOptimizationLevel.{level}
options.add_session_config_entry("session.intra_op.allow_spinning", "{spinning}")
session = ort.InferenceSession("{name}", options, providers=["CPUExecutionProvider"])
"""


def running_code(best: Recommended) -> str:
    """Return Python that opens the recommended file with the options that it was timed with."""
    return _CODE.format(name=best.name, threads=best.threads, level=_LEVELS[best.level], spinning=int(best.spinning))
