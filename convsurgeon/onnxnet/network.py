"""The file as one module: its convs, what is between them in torch, and pieces that onnxruntime runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from convsurgeon.onnxnet.leaf import Leaf
from convsurgeon.onnxnet.padding import Padding

if TYPE_CHECKING:  # which loads onnx
    from convsurgeon.onnxnet.source_file import Source

_HALF = 10  # onnx.TensorProto.FLOAT16; onnx itself is not loaded here

PLUS = "+"
"""Target of a step that adds two values, as fx likes to see it."""


@dataclass(frozen=True)
class Step:
    """One call: a module by its path, the values that go in, those that come out, and those not needed after it."""

    target: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    drops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Port:
    """An input of the file: its name, its type in torch, its shape on the example, and the names of open dimensions.

    `kind` is its type in the file, by ONNX's number.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    open: tuple[tuple[int, str], ...]
    kind: int

    @property
    def half(self) -> bool:
        """Whether the file has it in half precision, which is float32 here."""
        return self.kind == _HALF


@dataclass(frozen=True)
class Owner:
    """What a conv module stands for in the file.

    Args:
        outputs: first outputs of its nodes, one per call.
        dtype: of its weight there, in numpy's words.
        fingerprint: of its weights as they were read.
        padding: that the module has not: other amounts at either end, or amounts that follow from the size.
        sizes: spatial sizes of its inputs on the example, one per call.
        open_sizes: whether they may be others.
    """

    outputs: tuple[str, ...]
    dtype: str
    fingerprint: str
    padding: Padding | None = None
    sizes: tuple[tuple[int, ...], ...] = ()
    open_sizes: bool = False

    def size(self, output: str) -> tuple[int, ...]:
        """Return the spatial size of what the node of this output reads on the example."""
        return self.sizes[self.outputs.index(output)]


def fingerprint(module: nn.Module) -> str:
    """Of a module's parameters."""
    digest = hashlib.sha256()
    for name, tensor in module.named_parameters():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Entry(Leaf):
    """What goes in, in the type that the file wants; half precision is float32 here, rounded as the file rounds it."""

    def __init__(self, dtype: torch.dtype, half: bool) -> None:
        super().__init__()
        self.dtype, self.half_precision = dtype, half

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return x.half().float() if self.half_precision else x.to(self.dtype)

    def extra_repr(self) -> str:
        """What it makes of its input."""
        return str(self.dtype)


class Counted(Leaf):
    """Lets batches of one size through."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        if x.shape[0] != self.size:
            raise ValueError(f"the file takes {self.size} at a time, got {x.shape[0]}")
        return x

    def extra_repr(self) -> str:
        """The size."""
        return str(self.size)


class OnnxNetwork(nn.Module):
    """A network that came of an ONNX file. It is for inference: its batch norms keep what the file says.

    Called with its inputs in the file's order, or by name; gives its output, or a tuple of them in the file's order.

    Args:
        source: the file.
        ports: its inputs.
        outputs: names of its outputs.
        steps: in order.
        owners: path of every conv -> what it stands for in the file.
        modules: path -> module.
        half: whether some of it computes in half precision, which is float32 here.
    """

    def __init__(
        self,
        source: Source,
        ports: tuple[Port, ...],
        outputs: tuple[str, ...],
        steps: tuple[Step, ...],
        owners: dict[str, Owner],
        modules: dict[str, nn.Module],
        half: bool = False,
    ) -> None:
        super().__init__()
        self.source, self.ports, self.output_names = source, ports, outputs
        self.steps, self.owners, self.half_precision = steps, owners, half
        self.counted: nn.Module | None = None
        for path, module in modules.items():
            _put(self, path, module)

    def keep_batch(self, size: int) -> None:
        """From now on only batches of one size are taken."""
        self.counted = Counted(size)

    @property
    def input_names(self) -> tuple[str, ...]:
        """As in the file."""
        return tuple(port.name for port in self.ports)

    @property
    def sizes(self) -> dict[str, int]:
        """What the open dimensions are on the example, by name."""
        return {name: port.shape[axis] for port in self.ports for axis, name in port.open}

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: a file knows no other."""
        return super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs all steps."""
        names = iter(name for name in self.input_names if name not in kwargs)
        values = dict(zip(names, args, strict=True)) | kwargs
        if len(values) != len(self.ports):
            raise ValueError(f"inputs are {', '.join(self.input_names)}; got {', '.join(map(str, values)) or 'none'}")
        if isinstance(self.counted, Leaf):
            values[self.ports[0].name] = self.counted(values[self.ports[0].name])
        for step in self.steps:
            given = [values[name] for name in step.inputs]
            made = given[0] + given[1] if step.target == PLUS else self.get_submodule(step.target)(*given)
            if len(step.outputs) == 1:
                values[step.outputs[0]] = made
            else:
                values.update((name, made[place]) for place, name in enumerate(step.outputs))
            for name in step.drops:
                values.pop(name, None)
        found = [values[name] for name in self.output_names]
        return found[0] if len(found) == 1 else tuple(found)

    def extra_repr(self) -> str:
        """Its inputs and outputs."""
        return f"{', '.join(self.input_names)} -> {', '.join(self.output_names)}"


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    *folders, last = path.split(".")
    for name in folders:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        inner = root._modules[name]
        assert inner is not None
        root = inner
    root.add_module(last, module)
