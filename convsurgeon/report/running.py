"""How to run the file that a bundle recommends: the lines of Python that its README and its page show."""

from __future__ import annotations

from convsurgeon.onnxnet.measuring.engine import OPENVINO, Engine
from convsurgeon.onnxnet.measuring.openvino import openvino_options
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
{settings}
session = ort.InferenceSession("{name}", options, providers={providers})
"""
_IN_OPENVINO = """\
import openvino

model = openvino.Core().compile_model("{name}", "{device}", {options})
"""


def running_code(best: Recommended) -> str:
    """Return Python that opens the recommended file with the options that it was timed with."""
    engine = Engine(best.threads, best.provider, best.options)
    if best.provider == OPENVINO:
        device, options = openvino_options(engine.threads, engine.options)
        return _IN_OPENVINO.format(name=best.name, device=device, options=options)
    entries = {"session.intra_op.allow_spinning": str(int(best.spinning)), **engine.session_entries()}
    settings = [f'options.add_session_config_entry("{name}", "{value}")' for name, value in entries.items()]
    settings += [f"options.{name} = {value}" for name, value in engine.session_attributes().items()]
    return _CODE.format(
        name=best.name,
        threads=best.threads,
        level=_LEVELS[best.level],
        settings="\n".join(settings),
        providers=str(engine.providers()).replace("'", '"'),
    )
