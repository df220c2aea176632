"""Is anybody's network ruined in silence by calibration images that do not fit it?

Eleven wrong sets for each network, beside its own: without contrast, noise, one image, other numbers, another domain,
few, of one kind, in another order. The network is converted to a share of its MACs, and its user's metric is measured
on test images. A set is refused, warned of (which is the report's first sentence), or used; it ruins a network in
silence where the metric ends more than two points or a tenth below what the network's own images keep, without a word.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Generator, Tensor, nn

import convsurgeon as cs
from tests.benchmarks import popular
from tests.benchmarks.cases import add_networks
from tests.benchmarks.judge import measure_metric
from tests.benchmarks.runner import Row
from tests.benchmarks.subjects import SUBJECTS, Subject

IMAGES = 100
_POINTS, _SHARE = 2.0, 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the networks, the sets and the share."""
    add_networks(parser, list(SUBJECTS), ["digits", "lines u-net", "detector", "100 classes", "fsrcnn"])
    parser.add_argument("--sets", nargs="+", default=["own", *WRONG], choices=["own", *WRONG])
    parser.add_argument("--macs", type=float, default=0.4, help="share of the MACs that is left")
    parser.add_argument("--trusted", action="store_true", help="use the sets whatever they look like")


def run(options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for each network and set."""
    kept: dict[str, float] = {}
    for name, kind in itertools.product(options.networks, options.sets):
        subject = SUBJECTS[name]()
        row = _row(subject, kind, options)
        kept.setdefault(name, row["after"] if kind == "own" else row["before"])
        lost = kept[name] - row["after"]
        much = min(_POINTS, _SHARE * abs(row["before"])) if subject.metric.unit == "%" else 1.0
        silent = row["what"] == "used" and kind != "own" and lost > much
        yield {"network": name, "images": kind} | row | ({"what": "ruined in silence"} if silent else {})


def finish(_options: argparse.Namespace, rows: Sequence[Row]) -> int:
    """Print how many were ruined in silence; return 1 if any was."""
    ruined = [f"{row['network']} by {row['images']}" for row in rows if row["what"] == "ruined in silence"]
    print(f"{len(ruined)} of {len(rows)} ruined in silence{': ' if ruined else ''}{', '.join(ruined)}")
    return int(bool(ruined))


def _row(subject: Subject, kind: str, options: argparse.Namespace) -> Row:
    model, own, batches = subject.make(), subject.images(0)[:IMAGES], list(itertools.islice(subject.test(), 6))
    images = own if kind == "own" else WRONG[kind](model, own)
    before, started = measure_metric(subject, model, batches), time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = cs.convert(
                model,
                own[:1],
                calibration=cs.Images(images, trusted=options.trusted),
                goal=cs.Budget(macs=options.macs),
                progress=False,
            )
    except cs.errors.CalibrationError as error:
        seconds = round(time.process_time() - started, 1)
        return {"what": "refused", "before": before, "after": before, "processor s": seconds, "said": str(error)}
    after, said = measure_metric(subject, result.model.eval(), batches), result.report.warning
    seconds = round(time.process_time() - started, 1)
    what = "warned" if said else "used"
    return {"what": what, "before": before, "after": after, "processor s": seconds, "said": said}


def _domain(_model: nn.Module, own: Tensor) -> Tensor:
    """Return photographs with the mean and deviation of the network's own images."""
    photos = popular.crops(len(own), own.shape[-1], 3)
    photos = photos if own.shape[1] == 3 else photos.mean(1, keepdim=True).expand(-1, own.shape[1], -1, -1)
    scaled = (photos - photos.mean((0, 2, 3), keepdim=True)) / photos.std((0, 2, 3), keepdim=True)
    return scaled * own.std((0, 2, 3), keepdim=True) + own.mean((0, 2, 3), keepdim=True)


def _alike(model: nn.Module, own: Tensor) -> Tensor:
    """Return the fifth of the images whose outputs are nearest to the first one's."""
    with torch.no_grad():
        rows = model(own).float().flatten(1)
    return own[(rows - rows[:1]).square().sum(1).argsort()[: len(own) // 5]]


def _plain(function: Callable[[Tensor], Tensor], _model: nn.Module, own: Tensor) -> Tensor:
    return function(own).contiguous()


def _noise(own: Tensor) -> Tensor:
    return torch.randn(own.shape, generator=Generator().manual_seed(0))


WRONG: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "black": partial(_plain, torch.zeros_like),
    "one colour each": partial(_plain, lambda own: own.mean((2, 3), keepdim=True).expand_as(own)),
    "noise": partial(_plain, _noise),
    "one image": partial(_plain, lambda own: own[:1].expand_as(own)),
    "times 255": partial(_plain, lambda own: own * 255),
    "divided by 255": partial(_plain, lambda own: own / 255),
    "normalised again": partial(_plain, lambda own: (own - 0.45) / 0.225),
    "another domain": _domain,
    "four": partial(_plain, lambda own: own[:4]),
    "of one kind": _alike,
    "channels or rows turned": partial(_plain, lambda own: own.flip(1 if own.shape[1] == 3 else 2)),
}
