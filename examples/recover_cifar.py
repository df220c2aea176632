"""Convert a pretrained CIFAR ResNet-20 to 0.3 of its MACs, then let it learn from the original, without labels.

    python examples/recover_cifar.py --weights resnet20.safetensors --data cifar10.npz [--run run/ --resume]

The weights are those of github.com/akamaster/pytorch_resnet_cifar10 as safetensors. The data are an `.npz` with
`x_train`, `x_test` (uint8, NHWC) and `y_test`; only the evaluation reads labels. Under `torchrun --nproc-per-node 2`
two processes share the work of `recover`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import convsurgeon as cs
from convsurgeon.base import processes

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


class Block(nn.Module):
    """Two 3x3 convs around a shortcut without weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1 if inputs == outputs else 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.margin = 0 if inputs == outputs else outputs // 4

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut; where the shape changes it takes every second pixel and pads the channels."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.margin:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.margin, self.margin))
        return F.relu(out + x)


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2, shortcuts of option A."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, 32, 32) to logits (N, 10)."""
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def images(array: np.ndarray) -> Tensor:
    """Turn uint8 NHWC into what the network takes."""
    return (torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


def main() -> None:
    """Convert, recover, and print the top-1 of all three networks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--macs", type=float, default=0.3)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--run")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    with np.load(options.data) as file:
        train, test, labels = images(file["x_train"]), images(file["x_test"]), torch.from_numpy(file["y_test"])
    model = ResNet20()
    model.load_state_dict(load_file(options.weights), strict=False)  # the file has no num_batches_tracked
    model.eval()

    @torch.no_grad()
    def top1(network: nn.Module) -> float:
        return 100 * float((network(test).argmax(1) == labels).double().mean())

    with processes.joined():
        result = cs.convert(model, train[:1], goal=cs.Budget(macs=options.macs), calibration=train[:1024])
        recipe = cs.Recipe(epochs=options.epochs, transform=cs.Augment(flip=True, shift=4))
        better = cs.recover(result, train, recipe=recipe, run=options.run, resume=options.resume)
        if processes.rank() == 0:
            print(better.report.recovered)
            for name, network in (("original", model), ("converted", result.model), ("recovered", better.model)):
                print(f"{name:10} {top1(network.eval()):.2f} %")


if __name__ == "__main__":
    main()
