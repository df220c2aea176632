"""onnxruntime as an engine: graphs run on arrays, values of torch on one side and of the runtime on the other.

Half precision is float32 in torch: weights are fitted in it, and the CPU computes in it anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import ModelProto, TensorProto, TypeProto, helper
from torch import Tensor

from convsurgeon.onnxnet.session import Level, open_session, session_options

Array = npt.NDArray[Any]

_ELEMENTS = {
    "float": TensorProto.FLOAT,
    "double": TensorProto.DOUBLE,
    **{name.lower(): value for name, value in TensorProto.DataType.items() if name != "UNDEFINED"},
}


class Runner:
    """A graph that onnxruntime runs; its session is made when it is first needed, and shared by all copies.

    It has no `__dict__` on purpose: putting back what a run of a model has changed would throw the session away.
    """

    __slots__ = ("_lock", "_session", "inputs", "model", "optimised", "outputs")

    def __init__(self, model: ModelProto, outputs: Sequence[str], optimised: bool) -> None:
        self.model, self.outputs, self.optimised = model, tuple(outputs), optimised
        self.inputs = tuple((info.name, _numpy_type(info.type)) for info in model.graph.input)
        self._session: Any = None
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Runner:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _runner, (self.model.SerializeToString(), self.outputs, self.optimised)

    def run(self, values: Sequence[Any]) -> list[Any]:
        """Arrays in the order of the outputs; what is no tensor stays what the runtime makes of it."""
        feed = {name: _fed(value, wanted) for (name, wanted), value in zip(self.inputs, values, strict=True)}
        with self._lock:
            if self._session is None:
                self._session = _session(self.model, self.optimised)
        return list(self._session.run(list(self.outputs), feed))

    def types(self) -> dict[str, str]:
        """The runtime's word for the type of every output, once it has run."""
        return {} if self._session is None else {one.name: one.type for one in self._session.get_outputs()}


def _runner(data: bytes, outputs: Sequence[str], optimised: bool) -> Runner:
    return Runner(ModelProto.FromString(data), outputs, optimised)


def _session(model: ModelProto, optimised: bool) -> Any:
    level: Level = "all" if optimised else "off"
    return open_session(model, session_options(torch.get_num_threads(), level, spinning=False))


def type_of(words: str) -> TypeProto:
    """The runtime's word for a type, such as `seq(tensor(float))`, as a type of a graph's input.

    Raises:
        ValueError: a word that is not known.
    """
    kind, _, inner = words.removesuffix(")").partition("(")
    if kind == "tensor" and inner in _ELEMENTS:
        return helper.make_tensor_type_proto(_ELEMENTS[inner], None)
    if kind == "seq":
        return helper.make_sequence_type_proto(type_of(inner))
    if kind == "optional":
        return helper.make_optional_type_proto(type_of(inner))
    raise ValueError(f"{words} is no type that can stand between two pieces")


def _numpy_type(kind: TypeProto) -> np.dtype[Any] | None:
    """Of a tensor; None for all that is none."""
    if not kind.HasField("tensor_type") or kind.tensor_type.elem_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return None
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type))


def _fed(value: Any, wanted: np.dtype[Any] | None) -> Any:
    """A value of torch as the runtime takes it."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and wanted is not None:
        return np.ascontiguousarray(value.astype(wanted, copy=False)).reshape(value.shape)
    return value


def to_array(value: Tensor, kind: int) -> Array:
    """A tensor as an array of a type of ONNX, by its number."""
    return np.ascontiguousarray(value.detach().cpu().numpy().astype(helper.tensor_dtype_to_np_dtype(kind), copy=False))


def to_torch(value: Any) -> Any:
    """A value of the runtime as torch takes it; half precision as float32, what is no number as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        return value
    if value.dtype == np.float16:
        value = value.astype(np.float32)
    made = value if value.flags.writeable and value.flags.c_contiguous else np.array(value, order="C")
    return torch.from_numpy(made)


def run_once(model: ModelProto, outputs: Sequence[str], feed: Mapping[str, Any]) -> tuple[list[Any], dict[str, str]]:
    """A graph without optimisations on some arrays: its outputs, and the runtime's words for their types."""
    runner = Runner(model, outputs, optimised=False)
    found = runner.run([feed[name] for name, _ in runner.inputs])
    return found, runner.types()
