"""A folder to take to a device: candidate networks and one script that times them there.

    write_device_folder(model, example, forms, "pi4/")     # on the desktop
    python measure.py                                      # on the device, which needs numpy and onnxruntime only
    LatencyTable.load("device.json")                       # on the desktop again

Every network is there twice, in float and in int8, so that one journey does for plans of both. They carry noise in
place of large weights, so nobody learns the model from the folder; times are not changed by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convsurgeon.base.errors import FormError
from convsurgeon.base.files import new_folder
from convsurgeon.base.precision import PRECISIONS
from convsurgeon.forms.form import Form
from convsurgeon.graph.capture import capture
from convsurgeon.graph.model_files import Model
from convsurgeon.onnx import standalone
from convsurgeon.planning.select import Predicate
from convsurgeon.runtime.candidate_folder import FILES, FILES_OF, WEIGHTS
from convsurgeon.runtime.candidates import distinct, fitting
from convsurgeon.runtime.measure import write_candidates

SCRIPT = "measure.py"
DEVICE_FOLDER = frozenset(
    (*(name for names in FILES_OF.values() for name in names), WEIGHTS, standalone.MANIFEST, SCRIPT)
)
"""What such a folder may hold and be replaced with it; `device.json`, the result, is not among it on purpose."""


def write_device_folder(
    model: Model,
    example: object,
    forms: Sequence[Form],
    folder: str | Path,
    policy: Predicate | None = None,
    *,
    overwrite: bool = False,
) -> int:
    """Writes the networks to be timed, and the script that does it.

    Args:
        model: any module that runs on the example, or the path of an ONNX file.
        example: a tensor, a tuple of arguments, a dict of keyword arguments, or an `Example`; None will do for a file.
        forms: candidates for every site.
        folder: where to write.
        policy: which sites may be touched; the default leaves the stem alone.
        overwrite: whether an older folder may be replaced, if it holds nothing else and no result.

    Returns:
        The number of candidate networks, in both precisions.

    Raises:
        CaptureError: the model does not run on the example.
        ExportError: the model has no ONNX form.
        FormError: no conv takes any of the forms, or there are too many of them.
        LatencyError: a form that cannot be timed.
        WriteError: the folder exists or cannot be written.
    """
    with new_folder(folder, overwrite, DEVICE_FOLDER) as draft:
        seen = capture(model, example)
        candidates = distinct(one for precision in PRECISIONS for one in fitting(seen, forms, policy, precision))
        if not candidates:
            raise FormError("forms: no conv takes any of them and gets cheaper; pass other forms, or lower ranks")
        each = len(candidates) // len(PRECISIONS)
        if each >= len(FILES):
            raise FormError(f"forms: {each} networks to time; pass fewer than {len(FILES)}")
        write_candidates(draft, seen, candidates)
        source = Path(standalone.__file__).read_text(encoding="utf-8")
        (draft / SCRIPT).write_text(source, encoding="utf-8")
    return len(candidates)
