"""What `calibration=` may be, as calibration data: images that are given, images that are made up, or none at all."""

from __future__ import annotations

from convsurgeon.base.errors import CalibrationError
from convsurgeon.calibration.batching import fed
from convsurgeon.calibration.dataset import Calibration, images_in, read
from convsurgeon.calibration.sanity_checks import suspicions
from convsurgeon.calibration.synthetic import made_up
from convsurgeon.graph.capture import Capture
from convsurgeon.graph.outputs import check_output_sizes


def gather(seen: Capture, calibration: object, images: int, seed: int, progress: bool) -> Calibration | None:
    """Calibration data for a captured network; None where it is to do without.

    Args:
        seen: the network.
        calibration: images; a `Calibration`, which is taken as it is; None to have images made up; False for none.
        images: most of them to use.
        seed: of what is made up.
        progress: whether to show a bar.

    Raises:
        CalibrationError: images that the network cannot take, inputs that cannot be made up, or a network whose output
            has a size that depends on values, by which nothing can be judged.
    """
    if calibration is False:
        return None
    if calibration is True:
        raise CalibrationError("calibration: True is no images; pass some, or nothing to have them made up")
    on_meta = any(parameter.is_meta for parameter in seen.model.parameters())
    if calibration is None and (on_meta or all(site.obstacle for site in seen.sites)):
        return None  # no values to fit, or nothing that may be rewritten
    if not on_meta:
        check_output_sizes(seen.model, seen.example)
    if isinstance(calibration, Calibration):
        return calibration
    if calibration is not None:
        return suspicions(seen, fed(seen.model, read(calibration, seen.example, images), images_in(seen.example)))
    return made_up(seen, images, seed, progress=progress)
