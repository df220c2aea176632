"""The README.md of a bundle: what lies there, how to feed it, how to run it."""

from __future__ import annotations

from collections.abc import Iterable

from convsurgeon.base.tables import in_markdown, printable
from convsurgeon.onnx.metadata import Signature, layout
from convsurgeon.onnxnet.measuring.engine import OPENVINO
from convsurgeon.report.bundle import CONVERTED, Bundle
from convsurgeon.report.running import running_code

_WHAT = {
    "model.onnx": "the converted network, float32",
    "original.onnx": "the network as it was, float32: what everything here is compared with",
    "model-int8.onnx": "the converted network, static int8",
    "model-mixed.onnx": "the same with the layers in float that int8 hurts most",
    "original-int8.onnx": "the original in int8, its convs as they were: the baseline to beat",
    "example_inputs.npz": "one input ...",
    "example_outputs.npz": "... and what the converted network gives for it in torch",
    "report.html": "before and after, layer by layer, with latency; one page, opens without a network",
    "report.md": "the same as text",
    "report.json": "the same for programs",
    "plan.json": "which layer became what; `convsurgeon.rebuild` reads it",
    "weights.safetensors": "the converted network's weights for torch",
    "SHA256SUMS": "check with `sha256sum -c SHA256SUMS`",
}

_TEMPLATE = """\
# {title}

{sentence}

## Run it

```python
import numpy as np
{opening}
inputs, wanted = dict(np.load("example_inputs.npz")), np.load("example_outputs.npz")
names = [output.name for output in session.get_outputs()]
for name, found in zip(names, session.run(names, inputs)):
    error, largest = np.abs(found - wanted[name]).max(initial=0), np.abs(wanted[name]).max(initial=0)
    print(f"{{name}} {{found.shape}}: largest difference {{error:.1e}}, largest value {{largest:.3g}}")
    assert error <= 1e-3 * largest
```

{inputs}

{which}{back}

## Files

{files}

Time them on your own device with `convsurgeon bench {bench}`.
"""


_IN_TORCH = """\
## Back in torch

Write for `build_model()` what makes your original network; its weights do not matter.

```python
import convsurgeon as cs
from safetensors.torch import load_file

model = cs.rebuild(build_model(), cs.Plan.load("plan.json"))
model.load_state_dict(load_file("weights.safetensors"))
```"""

_FROM_THE_FILE = """\
## Made again

`model.onnx` is `original.onnx` with other convs, and with PReLU written as ReLU and products; every other node, weight,
name and entry is byte for byte the same.

```python
import convsurgeon as cs

network = cs.rebuild("original.onnx", cs.Plan.load("plan.json"), "weights.safetensors")
cs.onnx.export(network, None, "again.onnx")
```"""

_OF_A_FILE = {
    "original.onnx": "the file as it was, byte for byte: what everything here is compared with",
    "model.onnx": "the file with lighter convs, and PReLU written as ReLU and products",
    "example_outputs.npz": "... and what the converted network gives for it, computed conv by conv in torch",
    "weights.safetensors": "the weights of the new convs",
    "model.onnx.data": "the weights of `model.onnx`",
}


_WHICH = """\
## Which file

`{best.name}`, opened like this: {best.speedup:.2f} times as fast as `original.onnx` where this folder was made.

```python
{code}```

"""


_PLAIN = """\
import onnxruntime as ort

session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
"""


_PICTURE = """\
A picture of your own, made into an input as those were that the network was fitted to:

```python
{code}```

"""


def make_readme(title: str, bundle: Bundle, files: Iterable[str], reading: str = "", of_file: bool = False) -> str:
    """Return the text; `reading` is code that reads a picture, `of_file` says that the original was an ONNX file."""
    there, best = set(files), bundle.recommended
    what = (_WHAT | _OF_A_FILE if of_file else _WHAT).items()
    rows = [f"| `{name}` | {words} |" for name, words in what if name in there]
    shipped = best is not None and best.name == CONVERTED and best.provider != OPENVINO
    which = "" if best is None or shipped else _WHICH.format(best=best, code=running_code(best))
    return _TEMPLATE.format(
        title=in_markdown(title),
        back=_FROM_THE_FILE if of_file else _IN_TORCH,
        sentence=in_markdown(bundle.sentence),
        opening=running_code(best) if best is not None and shipped else _PLAIN,
        which=f"{_PICTURE.format(code=reading) if reading else ''}{which}",
        inputs=_inputs(bundle),
        files="\n".join(["| file | what it is |", "|---|---|", *rows]),
        bench=" ".join(bundle.sizes),
    )


def _inputs(bundle: Bundle) -> str:
    """Return inputs, outputs and how pixels become inputs."""
    lines = [*_lines("Input", bundle.converted.inputs), *_lines("Output", bundle.converted.outputs)]
    preparation = bundle.preparation
    if preparation.mean or preparation.std:
        mean, std = list(preparation.mean or (0.0,)), list(preparation.std or (1.0,))
        lines.append(f"Images: `(pixels / 255 - mean) / std`, channel by channel, with mean {mean} and std {std}.")
    return "\n".join(f"- {line}" for line in lines)


def _lines(word: str, values: Signature) -> list[str]:
    found = []
    for name, shape in values:
        axes = layout(shape) if word == "Input" else ""
        shown, sizes = printable(name).replace("`", "'"), " x ".join(map(str, shape)) or "a number"
        found.append(f"{word} `{shown}`: {sizes}{f' ({axes})' if axes else ''}")
    return found
