"""The public names and where they live; `__init__.py` loads each when it is first asked for."""

from . import onnx as onnx, timing as timing
from .base import errors as errors
from .base.errors import (
    ConvSurgeonError as ConvSurgeonError,
)
from .bundle.export import export as export
from .calibration.images import Images as Images
from .conversion import convert as convert
from .distill.recipe import Augment as Augment, Recipe as Recipe
from .forms.blueprint import Blueprint as Blueprint
from .forms.cp import CP as CP
from .forms.form import Form as Form
from .forms.geometry import Geometry as Geometry
from .forms.keras import (
    from_keras_kernels as from_keras_kernels,
    to_keras_kernels as to_keras_kernels,
)
from .forms.lowrank import LowRank as LowRank
from .forms.ranks import (
    Energy as Energy,
    Share as Share,
)
from .forms.separable import DepthwiseSeparable as DepthwiseSeparable
from .forms.subspace import BlueprintSubspace as BlueprintSubspace
from .graph.capture import (
    capture as capture,
)
from .graph.example import Example as Example
from .graph.site import (
    Site as Site,
)
from .planning import select as select
from .planning.candidates import plan as plan
from .planning.inspection import inspect as inspect
from .planning.linear import linear_as_conv as linear_as_conv
from .planning.plan import (
    Change as Change,
    Plan as Plan,
    Skip as Skip,
)
from .planning.surgery import (
    rebuild as rebuild,
)
from .recovery import recover as recover
from .report.report import Report as Report
from .result import Result as Result
from .runtime.device_folder import write_device_folder as write_device_folder
from .runtime.runtime import Runtime as Runtime
from .search.goal import (
    Budget as Budget,
    Within as Within,
)
from .search.sweep import (
    Sweep as Sweep,
    sweep as sweep,
)

__version__: str
