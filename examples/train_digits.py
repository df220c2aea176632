"""Train `DigitNet` on scikit-learn's digits and write the three data files beside this script.

    python examples/train_digits.py

Needs scikit-learn and tqdm, one CPU thread and a few minutes. The seed fixes split, augmentation and weights, so a
second run on the same machine and versions gives the same files. Nothing is chosen by looking at the test images:
the weights are those of the last epoch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from digits import DigitNet, accuracy, as_input, digit_net
from safetensors.torch import save
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
SEED = 0
BATCH = 64
CALIBRATION_IMAGES = 128


def main() -> None:
    """Split, train, save, and print the accuracy on the test images."""
    options = _options()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    train_images, train_labels = split_and_save()
    model = digit_net()
    train(model, as_input(train_images), torch.from_numpy(train_labels), options)
    (HERE / "digits.safetensors").write_bytes(save(model.state_dict()))
    print(f"{accuracy(model):.2f} % of the test images")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train DigitNet on scikit-learn's digits.")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rate", type=float, default=0.2, help="highest learning rate")
    parser.add_argument("--decay", type=float, default=5e-3, help="weight decay")
    return parser.parse_args()


def split_and_save() -> tuple[np.ndarray, np.ndarray]:
    """Write the test and the calibration images; return the training images, (N, 8, 8), and their labels."""
    images, labels = load_digits(return_X_y=True)
    images, labels = images.reshape(-1, 8, 8).astype(np.uint8), labels.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.3, random_state=SEED, stratify=labels
    )
    np.savez_compressed(HERE / "digits_test.npz", images=test_images, labels=test_labels.astype(np.uint8))
    np.save(HERE / "digits_calibration.npy", as_input(train_images[:CALIBRATION_IMAGES]).numpy())
    return train_images, train_labels


def train(model: DigitNet, images: Tensor, labels: Tensor, options: argparse.Namespace) -> None:
    """Train by SGD with momentum under a one-cycle learning rate; leave the model in eval mode."""
    steps = options.epochs * (len(images) // BATCH)
    optimiser = torch.optim.SGD(model.parameters(), options.rate, 0.9, weight_decay=options.decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.rate, total_steps=steps)
    model.train()
    for _ in tqdm(range(options.epochs), desc="epochs"):
        for batch, answers in _batches(images, labels):
            optimiser.zero_grad()
            F.cross_entropy(model(distort(batch)), answers, label_smoothing=0.1).backward()
            optimiser.step()
            schedule.step()
    model.eval()


def _batches(images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch in random order; the few images that do not fill a batch wait for another epoch."""
    order = torch.randperm(len(images))
    for chosen in order.split(BATCH)[: len(images) // BATCH]:
        yield images[chosen], labels[chosen]


def distort(images: Tensor) -> Tensor:
    """Turn by up to 12 degrees, scale by up to 10 % and shift by up to 3 of 32 pixels, each image its own way."""
    angle, scale, right, down = torch.empty(4, len(images)).uniform_(-1, 1)
    angle, scale = angle * torch.pi / 15, 1 + 0.1 * scale
    cos, sin = scale * angle.cos(), scale * angle.sin()
    shift = 3 / 16
    rows = [torch.stack([cos, -sin, shift * right], 1), torch.stack([sin, cos, shift * down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


if __name__ == "__main__":
    main()
