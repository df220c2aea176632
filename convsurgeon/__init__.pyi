"""The public names and where they live; `__init__.py` loads each when it is first asked for."""

from . import onnx as onnx, timing as timing
from .base.errors import (
    BudgetError as BudgetError,
    CalibrationError as CalibrationError,
    CaptureError as CaptureError,
    ConvSurgeonError as ConvSurgeonError,
    ExportError as ExportError,
    FormError as FormError,
    LatencyError as LatencyError,
    LoadError as LoadError,
    ParityError as ParityError,
    PlanError as PlanError,
    PolicyError as PolicyError,
    RecoveryError as RecoveryError,
    WriteError as WriteError,
)
from .base.tables import Table as Table
from .bundle.export import export as export
from .bundle.mobile import mobile_check as mobile_check
from .calibration.images import Images as Images
from .calibration.synthetic import synthetic_images as synthetic_images
from .conversion import (
    Result as Result,
    convert as convert,
)
from .distill.augment import Augment as Augment
from .distill.recipe import Recipe as Recipe
from .distill.reconstruct import Reconstruction as Reconstruction
from .distill.record import Recovery as Recovery
from .fit.fidelity import Fidelity as Fidelity
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
    Capture as Capture,
    capture as capture,
)
from .graph.cost import Cost as Cost
from .graph.example import Example as Example
from .graph.site import (
    Call as Call,
    Site as Site,
)
from .int8.target import Target as Target
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
    operate as operate,
    rebuild as rebuild,
)
from .recovery import recover as recover
from .report.report import Report as Report
from .runtime.device_folder import write_device_folder as write_device_folder
from .runtime.runtime import Runtime as Runtime
from .runtime.table import LatencyTable as LatencyTable
from .search.goal import (
    Budget as Budget,
    Within as Within,
)
from .search.sweep import (
    Sweep as Sweep,
    sweep as sweep,
)

__version__: str
