"""Policy strings against a second reading of them, damaged plans, and arguments of the command line."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import convsurgeon as cs
from convsurgeon import cli
from convsurgeon.calibration import synthetic
from convsurgeon.graph.capture import Capture
from tests import nets
from tests.fuzz.files import MEMORY

ROOT = Path(__file__).resolve().parents[2]
_JUNK = (
    "",
    "(",
    ")",
    "&",
    "|",
    "~",
    ",",
    "'",
    '"',
    "3x",
    "x3",
    "-1",
    "1e999",
    "nan",
    "9" * 5000,
    "é",
    "\n",
    "\0",
    "stem",
)


@functools.cache
def captured() -> Capture:
    """One small model that all texts are about."""
    torch.manual_seed(0)
    return cs.capture(nets.Shared().eval(), torch.randn(1, 3, 8, 8))


def policy(rng: random.Random) -> None:
    """What is written from a tree reads back to the same choice; what is damaged is refused in one line."""
    text, meaning = _tree(rng, 0)
    found = cs.select.parse(text)
    again = cs.select.parse(str(found))
    assert str(again) == str(found)
    for site in captured().sites:
        assert found(site) == again(site) == meaning(site), (text, site.name)
    damaged = _damage(rng, text)
    try:
        str(cs.select.parse(damaged))
    except cs.ConvSurgeonError as error:
        assert "Traceback" not in str(error)


Meaning = Callable[[cs.Site], bool]


def _tree(rng: random.Random, depth: int) -> tuple[str, Meaning]:
    """A policy in words, and what it means."""
    kind = rng.random()
    if depth < 4 and kind < 0.25:
        text, inner = _tree(rng, depth + 1)
        return f"~({text})", lambda site: not inner(site)
    if depth < 4 and kind < 0.65:
        (one, a), (two, b) = _tree(rng, depth + 1), _tree(rng, depth + 1)
        if rng.random() < 0.5:
            return f"({one}) & ({two})", lambda site: a(site) and b(site)
        return f"({one})|({two})", lambda site: a(site) or b(site)
    return _leaf(rng)


def _leaf(rng: random.Random) -> tuple[str, Meaning]:
    number = rng.choice((0, 1, 3, 5, 16, 17, 4608, 10**9))
    window = rng.choice((1, 3, 5))
    name = rng.choice(("stem", "body", "alias", "down", "other"))
    leaves: list[tuple[str, Meaning]] = [
        ("everything()", lambda _site: True),
        (f"kernel_size({window})", lambda site: set(site.geometry.kernel_size) == {window}),
        (f"kernel_size({window}x3)", lambda site: site.geometry.kernel_size == (window, 3)),
        (f"named({name})", lambda site: name in site.names),
        (f"named('{name[:2]}*')", lambda site: any(known.startswith(name[:2]) for known in site.names)),
        (f"min_params({number})", lambda site: site.params >= number),
        (f"min_macs({number})", lambda site: site.macs >= number),
        (f"min_share(0.{window})", lambda site: site.share >= float(f"0.{window}")),
        (f"stride({window})", lambda site: set(site.geometry.stride) == {window}),
    ]
    return rng.choice(leaves)


def _damage(rng: random.Random, text: str) -> str:
    """A text with pieces taken out, put in and doubled."""
    for _ in range(rng.randint(1, 4)):
        at, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        text = text[:at] + rng.choice((*_JUNK, text[at:end] * 2, chr(rng.randrange(1, 0x2FFF)))) + text[end:]
    return text


@functools.cache
def _plan() -> dict[str, Any]:
    forms = [cs.DepthwiseSeparable(rank=2), cs.CP(rank=cs.Share(0.5))]
    seen = captured()
    planned = [cs.plan(seen.model, seen.example, forms=[form], allow_growth=True).to_dict() for form in forms]
    layers = [plan["layers"][index % 3] for index, plan in enumerate(planned)]
    whole: dict[str, Any] = json.loads(json.dumps(planned[0] | {"layers": [*planned[0]["layers"], *layers[1:2]]}))
    whole["layers"] = whole["layers"][:3]
    return whole


def plan(rng: random.Random) -> None:
    """A damaged plan is refused in one line, or is one that prints, writes itself and rebuilds or is refused."""
    values: Any = copy.deepcopy(_plan())
    for _ in range(rng.randint(1, 3)):
        values = mutate(rng, values)
    try:
        read = cs.Plan.from_dict(json.loads(json.dumps(values)))
        assert cs.Plan.from_dict(json.loads(json.dumps(read.to_dict()))) == read
        str(read)
        rebuilt = cs.rebuild(captured().model, read)
    except cs.ConvSurgeonError:
        return
    with torch.no_grad():
        assert rebuilt(torch.zeros(1, 3, 8, 8)).shape == (1, 4)


def mutate(rng: random.Random, values: Any) -> Any:
    """The nest with one place changed."""
    places: list[tuple[Any, Any]] = []
    waiting = [values]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        places += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    if not places:
        return rng.choice((None, 1, [], {}))
    node, key = rng.choice(places)
    junk: list[Any] = [
        None,
        True,
        -1,
        0,
        1,
        2,
        3,
        9,
        10**30,
        0.5,
        "",
        "x",
        "zeros",
        [],
        {},
        [1, 1],
        [3, 3],
        {"energy": 2},
        float("nan"),
        -0.5,
        "1.0",
    ]
    if rng.random() < 0.3:
        del node[key]
    else:
        node[key] = rng.choice([*junk, rng.choice(places)[0], float("inf")]) if rng.random() < 0.9 else values
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(json.dumps(values))
        node[key] = None
    return values


_WORDS = (
    *("inspect", "plan", "convert", "sweep", "bench", "device", "--input", "1x3x8x8", "2x3x8x8", "0x3x8x8", "1x4x8x8"),
    *("--rank", "1", "2", "99", "-1", "0.9", "nan", "--of", "0.5", "--form", "separable", "blueprint"),
    *("--select", "kernel_size(3)", "~stem()", "named(body)", "named(nobody)", "--budget", "macs=0.5", "macs=", "x=1"),
    *("--json", "--better", "--int8", "--weights", "nothing.pt", "--within", "a=1", "--limit", "0"),
    *("--dynamic", "--threads", "99999", "--seed", str(10**30), "1x3x999999999x999999999", str(2**63)),
    *("--plan", "--out", "out", "--calibrate", "--shares", "--force", "--pairs", "0", "nothing.onnx", "--metric", "é"),
)


def arguments(rng: random.Random) -> None:
    """Any arguments end with code 0, 1 or 2; 1 says why in one line, and nothing is an internal error."""
    model = rng.choice(("nets.py:Plain", "nets.py:Plain", "nets.py:Nothing", "nets.py:X", "absent.py:Plain", ":"))
    given = [rng.choice(("inspect", "plan", "convert")), f"{ROOT / 'tests'}/{model}", "--input", "1x3x8x8"]
    for _ in range(rng.randint(0, 5)):
        given.insert(rng.randint(0, len(given)), rng.choice(_WORDS))
    if rng.random() < 0.5:
        given[rng.randrange(len(given))] = _damage(rng, rng.choice(given)).replace("\0", "")
    given = [word for word in given if not word.startswith("--h") and word != "-h"]
    out, err = io.StringIO(), io.StringIO()
    with (
        tempfile.TemporaryDirectory(dir=MEMORY) as folder,
        contextlib.chdir(folder),
        mock.patch.object(synthetic, "_MOST_IMAGES", 32),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code: object = cli.main(given)
        except SystemExit as stop:
            code = stop.code
    said = err.getvalue()
    assert code in (0, 1, 2), (given, code)
    assert "internal error" not in said, (given, said)
    assert "Traceback" not in said, (given, said)
    lines = [line for line in said.splitlines() if not line.startswith("convsurgeon: looking at ")]  # which is progress
    assert code != 1 or len(lines) == 1, (given, said)
