"""Names of modules from the names in a file: dotted paths, so that `named("layer4.*")` means what it means in torch."""

from __future__ import annotations

import re

from onnx import NodeProto
from torch import nn

_WRITTEN = re.compile(r"[^0-9A-Za-z_.-]+")


def path_of(name: str) -> str:
    """`layer1.0.conv1` from `/layer1/layer1.0/conv1/Conv`: a part that goes on with the one before replaces it."""
    path: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    return ".".join(path)


def conv_name(node: NodeProto, shared: bool) -> str:
    """What a conv is called: after the module that its weight or its node says it was, else after itself.

    `layer1.0.conv1.weight` was `layer1.0.conv1`; so was a node `/layer1/layer1.0/conv1/Conv`.

    Args:
        node: the conv.
        shared: whether its weight is that of another conv too, and so says nothing.
    """
    weight = str(node.input[1])
    if weight.endswith(".weight") and not shared:
        return weight.removesuffix(".weight")
    if node.name.startswith("/") and path_of(node.name):
        return path_of(node.name)
    return str(node.name) or weight


class Names:
    """Paths in a tree of modules, each of which is one module's alone."""

    def __init__(self, root: type[nn.Module]) -> None:
        self._root, self._taken, self._folders = root, set[str](), set[str]()

    def claim(self, wanted: str) -> str:
        """The name as a path that is free, with a number where it is not."""
        parts = [_part(part, self._root) for part in _WRITTEN.sub("_", wanted.replace("/", ".")).split(".") if part]
        base = ".".join(parts) or "node"
        for above in _above(base):  # a module in whose place this one would need a folder
            if above in self._taken:
                base = f"{above}_{base[len(above) + 1 :]}"
        name, number = base, 0
        while not self._free(name):
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        self._folders.update(_above(name))
        return name

    def _free(self, name: str) -> bool:
        return name not in self._taken and name not in self._folders and self._taken.isdisjoint(_above(name))


def _above(name: str) -> list[str]:
    return [name[:index] for index, letter in enumerate(name) if letter == "."]


def _part(part: str, root: type[nn.Module]) -> str:
    """A part that hides no attribute of a module."""
    return f"{part}_" if hasattr(root, part) or hasattr(nn.Module, part) or part in _OWN else part


_OWN = frozenset(vars(nn.Module())) | {
    *("source", "ports", "output_names", "steps", "owners", "half_precision", "counted")
}
"""Attributes of a module, and of an `OnnxNetwork`."""
