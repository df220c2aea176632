"""The file as one module: its convs, what stands between them in torch, and subgraphs that onnxruntime runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn

from convsurgeon.onnxnet.modules import FileInput, Operator
from convsurgeon.onnxnet.padding import Padding

if TYPE_CHECKING:  # which loads onnx
    from convsurgeon.onnxnet.source_file import SourceFile

PLUS = "+"
"""Target of a call that adds two values, which fits find as an addition in a trace."""


@dataclass(frozen=True)
class ModuleCall:
    """One call: a module by its path, the values that go in, those that come out, and those not needed after it."""

    target: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    drops: tuple[str, ...] = ()


@dataclass(frozen=True)
class FileConv:
    """What a conv module stands for in the file.

    `sizes` are, by the first output of each of its nodes, the spatial sizes of what the node reads on the example.
    `dtype` is that of its weight there, in numpy's words, and `fingerprint` of its weights as they were read. `padding`
    is what the module has not: other amounts at either end, or amounts that follow from the size.
    """

    sizes: dict[str, tuple[int, ...]]
    dtype: str
    fingerprint: str
    padding: Padding | None = None


def weight_digest(module: nn.Module) -> str:
    """Return a digest of a module's parameters."""
    digest = hashlib.sha256()
    for name, tensor in module.named_parameters():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class OnnxNetwork(nn.Module):
    """A network from an ONNX file. It is for inference: its batch norms keep what the file says.

    Called with its inputs in the file's order, or by name; gives its output, or a tuple of them in the file's order.
    `convs` says what each conv, by its path, stands for in the file; `half` whether some of the file computes in half
    precision, which is float32 here.
    """

    def __init__(
        self,
        source: SourceFile,
        *,
        inputs: tuple[FileInput, ...],
        outputs: tuple[str, ...],
        calls: tuple[ModuleCall, ...],
        convs: dict[str, FileConv],
        modules: dict[str, nn.Module],
        half: bool = False,
    ) -> None:
        super().__init__()
        self.source, self.file_inputs, self.output_names = source, inputs, outputs
        self.calls, self.file_convs, self.half_precision = calls, convs, half
        self.fixed_batch: nn.Module | None = None
        for path, module in modules.items():
            _add_module(self, path, module)

    def keep_batch(self, size: int) -> None:
        """Refuse batches of other sizes from now on."""
        self.fixed_batch = Operator(_check_batch, {"size": size})

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the file's order."""
        return tuple(one.name for one in self.file_inputs)

    @property
    def sizes(self) -> dict[str, int]:
        """What the open dimensions are on the example, by name."""
        return {name: one.shape[axis] for one in self.file_inputs for axis, name in one.open}

    def file_conv(self, site: str) -> FileConv:
        """Return what a site stands for in the file: a conv, or the conv in the place of a transposed one."""
        return self.file_convs.get(site) or self.file_convs[site.removesuffix(".conv")]

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: a file has no other."""
        return super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs."""
        names = iter(name for name in self.input_names if name not in kwargs)
        values = dict(zip(names, args, strict=True)) | kwargs
        if len(values) != len(self.file_inputs):
            raise ValueError(f"inputs are {', '.join(self.input_names)}; got {', '.join(map(str, values)) or 'none'}")
        if self.fixed_batch is not None:
            values[self.input_names[0]] = self.fixed_batch(values[self.input_names[0]])
        for call in self.calls:
            given = [values[name] for name in call.inputs]
            made = given[0] + given[1] if call.target == PLUS else self.get_submodule(call.target)(*given)
            if len(call.outputs) == 1:
                values[call.outputs[0]] = made
            else:
                values.update((name, made[place]) for place, name in enumerate(call.outputs))
            for name in call.drops:
                values.pop(name, None)
        found = [values[name] for name in self.output_names]
        return found[0] if len(found) == 1 else tuple(found)

    def extra_repr(self) -> str:
        """Return the names of inputs and outputs."""
        return f"{', '.join(self.input_names)} -> {', '.join(self.output_names)}"


def _check_batch(x: Tensor, *, size: int) -> Tensor:
    if x.shape[0] != size:
        raise ValueError(f"the file takes {size} at a time, got {x.shape[0]}")
    return x


def _add_module(root: nn.Module, path: str, module: nn.Module) -> None:
    *folders, last = path.split(".")
    for name in folders:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)


RESERVED = (
    frozenset(dir(OnnxNetwork))
    | frozenset(vars(nn.Module()))
    | {*("source", "file_inputs", "output_names", "calls", "file_convs", "half_precision", "fixed_batch")}
)
"""Attributes of a network, which no module in it may hide."""
