"""Little nets that break rewriters, each with one trick."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Plain(nn.Module):
    """Stem, two dense convs, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.body(F.relu(self.stem(x)))), inplace=True)
        return self.head(F.relu(self.down(x)).mean((2, 3)))


class Shared(Plain):
    """One conv called twice, at two sizes, and known under a second name."""

    def __init__(self) -> None:
        super().__init__()
        self.alias = self.body

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.stem(x)))
        x = self.alias(F.max_pool2d(F.relu(x), 2))
        return self.head(F.relu(self.down(x)).mean((2, 3)))


class Listed(Plain):
    """Convs in a plain Python list: no parameters, no names, yet they run."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = [nn.Conv2d(16, 16, 3, padding=1)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.extra[0](F.relu(self.stem(x)))
        return self.head(F.relu(self.down(self.body(x))).mean((2, 3)))


class RunsFromList(Plain):
    """A registered conv that the forward reaches through a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.order = [self.stem, self.body]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = F.relu(layer(x))
        return self.head(F.relu(self.down(x)).mean((2, 3)))


class Branching(Plain):
    """Control flow that depends on data: torch.fx cannot trace it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > -1e9:
            x = self.body(F.relu(self.stem(x)))
        return self.head(F.relu(self.down(x)).mean((2, 3)))


class Gate(nn.Module):
    """Data-dependent part of a net that is otherwise traceable."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if float(x.detach().mean()) < 1e9 else x


class PartlyBranching(Plain):
    """Two submodules that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Sequential(Gate(), Gate())

    def forward(self, x: Tensor) -> Tensor:
        x = self.gates(F.relu(self.stem(x)))
        return self.head(F.relu(self.down(self.body(x))).mean((2, 3)))


class Functional(Plain):
    """A kernel of its own, called as a function, and another conv's weight read from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(16, 16, 3, 3) / 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.relu(self.stem(x)), self.kernel, padding=1)
        x = F.conv2d(x, self.body.weight, padding=1) + self.body(x)
        return self.head(F.relu(self.down(x)).mean((2, 3)))


class Standardised(nn.Conv2d):
    """A subclass that standardises its weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Tagged(nn.Conv2d):
    """A subclass that computes what its parent computes."""

    def tag(self) -> str:
        return "tagged"


class Subclassed(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.body = Standardised(16, 16, 3, padding=1)
        self.down = Tagged(16, 32, 3, stride=2, padding=1)


class Parametrised(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.body = parametrizations.weight_norm(self.body)
        self.down = parametrizations.spectral_norm(self.down)


class Hooked(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.body.register_forward_hook(lambda _module, _args, output: output * 2)


class Tied(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.twin.weight = self.body.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.down(self.twin(self.body(self.stem(x))))).mean((2, 3)))


class Attribute(Plain):
    """Reads more of a conv than its output."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.stem(x)).to(self.body.weight.dtype))
        return self.head(F.relu(self.down(x)).mean((2, 3)))


class Unreached(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Conv2d(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out + self.auxiliary(self.stem(x)).mean() if self.training else out


class OtherConvs(nn.Module):
    """Every kind of conv that is no dense 2-d one."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(8, 8, 3, padding=1)
        self.cube = nn.Conv3d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.point = nn.Conv2d(8, 8, 1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.group = nn.Conv2d(8, 16, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group(self.depth(self.point(self.up(x))))
        y = self.cube(x[:, :8, None])[:, :, 0]
        return self.line(y.flatten(2)).mean(2)


class KeywordInputs(Plain):
    """Needs a keyword argument, has one with a default."""

    def forward(self, x: Tensor, *, scale: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        out = super().forward(x * scale)
        return out if mask is None else out * mask


class DictInput(Plain):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["image"])


@dataclass
class Answer:
    logits: Tensor
    extras: dict[str, Tensor]


class StructuredOutput(Plain):
    def forward(self, x: Tensor) -> Answer:  # type: ignore[override]
        logits = super().forward(x)
        return Answer(logits, {"softmax": logits.softmax(1)})


class Remembers(Plain):
    """Stores activations and counts calls on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Any = None
        self.history: list[Any] = []
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.stem(x)
        self.history.append(self.last)
        self.calls += 1
        return super().forward(x)


class Cyclic(Plain):
    """A child that holds its parent."""

    def __init__(self) -> None:
        super().__init__()
        child = nn.Sequential(OrderedDict(conv=nn.Conv2d(16, 16, 3, padding=1)))
        self.child = child
        child.parent = self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.down(self.child.conv(self.stem(x)))).mean((2, 3)))


class Keyword(Plain):
    """A child whose name is a word of Python, which generated code cannot say."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("lambda", nn.Conv2d(16, 16, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        x = getattr(self, "lambda")(F.relu(self.stem(x)))
        return self.head(F.relu(self.down(F.relu(self.norm(self.body(x))))).mean((2, 3)))


class Forgiving(Plain):
    """An except clause that swallows what tracing raises, and then does what no graph can replay."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        try:
            x = x * (1.0 if float(x.detach().mean()) < 1e9 else 0.5)
        except TypeError:
            return x.no_such_method()
        return self.head(F.relu(self.down(F.relu(self.norm(self.body(x))))).mean((2, 3)))


class Gradient(Plain):
    """Differentiates inside its own forward."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.relu(self.stem(x)).square().sum(), x)
        x = self.norm(self.body(self.stem(x.detach() - 0.01 * slope)))
        return self.head(F.relu(self.down(x)).mean((2, 3)))


CONVERTIBLE: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        Plain,
        Shared,
        Listed,
        RunsFromList,
        Branching,
        PartlyBranching,
        Functional,
        Subclassed,
        Parametrised,
        Hooked,
        Tied,
        Attribute,
        Unreached,
        StructuredOutput,
        Remembers,
        Keyword,
        Forgiving,
    )
}
"""Nets that take one 2x3x12x12 tensor."""
