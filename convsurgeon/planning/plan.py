"""A plan: for every conv the form it takes or the reason it stays. Plain data; prints itself, saves as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import msgspec

from convsurgeon.base.errors import FormError, PlanError, reason
from convsurgeon.base.files import new_file, read_text
from convsurgeon.base.tables import Table
from convsurgeon.forms.catalogue import Kinds, form_from_dict
from convsurgeon.forms.form import Form
from convsurgeon.graph.cost import Cost
from convsurgeon.graph.site import Site

VERSION = 2

T = TypeVar("T")


@dataclass(frozen=True)
class Change:
    """A conv and the form it takes.

    `lost` is the share of the kernel's energy dropped; None where none is kept, or where no weights are at hand.
    """

    site: Site
    form: Form
    lost: float | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """The dotted name of the conv."""
        return self.site.name

    @cached_property
    def params_after(self) -> int:
        """Parameters of the form."""
        return self.form.params(self.site.geometry)

    @cached_property
    def macs_after(self) -> int:
        """MACs of all calls of the form on the example."""
        return self.site.macs_as(self.form)

    @property
    def rank(self) -> int:
        """Number of branches, or of channels inside the only one."""
        return int(getattr(self.form, "rank", 1))


@dataclass(frozen=True)
class Skip:
    """A conv that is left as it is, and why."""

    site: Site
    reason: str

    @property
    def name(self) -> str:
        """The dotted name of the conv."""
        return self.site.name


@dataclass(frozen=True)
class Plan:
    """What becomes of every conv of one model.

    Args:
        steps: one change or skip per conv, in the order of the model.
        cost: of the model as it was, on the example.
        example: shapes of the example's tensors, in words.
    """

    steps: tuple[Change | Skip, ...]
    cost: Cost
    example: str

    @property
    def changes(self) -> dict[str, Change]:
        """The convs that are changed, by name."""
        return {step.name: step for step in self.steps if isinstance(step, Change)}

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """The convs that stay."""
        return tuple(step for step in self.steps if isinstance(step, Skip))

    @property
    def params_after(self) -> int:
        """Parameters of the model once the plan is carried out."""
        return self.cost.params - sum(step.site.params - step.params_after for step in self.changes.values())

    @property
    def macs_after(self) -> int:
        """MACs of the model on the example once the plan is carried out."""
        return self.cost.macs - sum(step.site.macs - step.macs_after for step in self.changes.values())

    def without(self, reasons: Mapping[str, str]) -> Plan:
        """Return the plan with some changes turned into skips, by name."""
        steps = (
            Skip(step.site, reasons[step.name]) if isinstance(step, Change) and step.name in reasons else step
            for step in self.steps
        )
        return dataclasses.replace(self, steps=tuple(steps))

    def __str__(self) -> str:
        changes = self.changes
        head = f"{len(changes)} of {len(self.steps)} convs are rewritten, for an input of {self.example}"
        before, after = self.cost, (self.params_after, self.macs_after)
        totals = [("parameters", before.params, after[0]), ("MACs", before.macs, after[1])]
        lines = [f"{name}: {was:,} -> {now:,} ({now / was:.3f})" for name, was, now in totals if was]
        return "\n".join([layer_table(self.steps, head).text(), *lines])

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        layers = [_step_to_dict(step) for step in self.steps]
        return {"convsurgeon_plan": VERSION, "example": self.example, "cost": vars(self.cost), "layers": layers}

    @staticmethod
    def from_dict(values: object, forms: Kinds = ()) -> Plan:
        """Read what `to_dict` wrote. Figures are computed anew, so forms may be edited by hand.

        Args:
            values: the plan as JSON.
            forms: kinds of form that may be in it beside those that ship.

        Raises:
            PlanError: it is not a plan, or one of another version, or damaged; names the place.
        """
        version = _typed(values, _Header, "plan").convsurgeon_plan
        if version != VERSION:
            raise PlanError(f"plan: of version {version}, and this convsurgeon reads {VERSION}; make the plan again")
        file = _typed(values, _File, "plan")
        steps = tuple(_read_step(layer, f"plan: layers[{index}]", forms) for index, layer in enumerate(file.layers))
        seen: dict[str, int] = {}
        for index, step in enumerate(steps):
            for name in step.site.names:
                if seen.setdefault(name, index) != index:
                    raise PlanError(f"plan: layers[{seen[name]}] and layers[{index}] are both {name}; remove one")
        return Plan(steps, file.cost, file.example)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the plan as JSON, a line per conv, whole or not at all.

        Raises:
            WriteError: the file exists and `overwrite` is false, or cannot be written.
        """
        values = self.to_dict()
        layers = ",\n  ".join(map(json.dumps, values.pop("layers")))
        with new_file(path, overwrite) as temporary:
            text = json.dumps(values, indent=1).removesuffix("\n}")
            temporary.write_text(f'{text},\n "layers": [\n  {layers}\n ]\n}}\n', encoding="utf-8")

    @staticmethod
    def load(path: str | os.PathLike[str], forms: Kinds = ()) -> Plan:
        """Read a saved plan.

        Args:
            path: of the file.
            forms: kinds of form that may be in it beside those that ship.

        Raises:
            PlanError: the file is missing, not JSON, or not a plan.
        """
        try:
            return Plan.from_dict(json.loads(read_text(path)), forms)
        except OSError as error:
            raise PlanError(f"{path}: cannot be read ({reason(error)}); pass a file written by Plan.save") from None
        except (ValueError, RecursionError) as error:
            raise PlanError(f"{path}: is not JSON ({error}); pass a file written by Plan.save") from None
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None


def layer_table(steps: Iterable[Change | Skip], title: str = "Layers") -> Table:
    """One row per conv: what it is, what becomes of it, what that costs, or why it is left alone.

    `weights_lost` is the share of the kernel's energy that the form cannot hold; a fit to images makes up for most.
    """
    columns = (
        ("layer", "text"),
        ("conv", "text"),
        ("output", "text"),
        ("becomes", "text"),
        ("weights_lost", "share"),
        ("params", "count"),
        ("params_after", "count"),
        ("macs", "count"),
        ("macs_after", "count"),
        ("reason", "text"),
    )
    return Table(title, columns, tuple(map(_layer_row, steps)))


def _layer_row(step: Change | Skip) -> tuple[Any, ...]:
    site = step.site
    size = "x".join(map(str, site.calls[0].output_shape[1:])) if site.calls else None
    calls = f" ({len(site.calls)} calls)" if len(site.calls) > 1 else ""
    start = (site.name, str(site.geometry), f"{size}{calls}" if size else None)
    if isinstance(step, Skip):
        return (*start, "-", None, site.params, None, site.macs, None, step.reason)
    change = (step.form.label, step.lost, site.params, step.params_after, site.macs, step.macs_after)
    return (*start, *change, "")


class _Header(msgspec.Struct):
    convsurgeon_plan: int | None = None


class _Layer(msgspec.Struct):
    """One line of a plan's file: a form, or the reason for none."""

    name: str
    site: dict[str, Any]
    form: dict[str, Any] | None = None
    skip: str = ""


class _File(msgspec.Struct):
    cost: Cost
    layers: list[_Layer]
    example: str = ""


def _typed(values: object, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(values, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise PlanError(f"{where}: {error}; correct it, or make the plan again") from None


def _step_to_dict(step: Change | Skip) -> dict[str, Any]:
    site = dataclasses.asdict(step.site)
    values: dict[str, Any] = {"name": site.pop("name")}
    if isinstance(step, Skip):
        values |= {"skip": step.reason}
    else:
        values |= {"form": step.form.to_dict(), "params_after": step.params_after, "macs_after": step.macs_after}
    return values | {"site": site}


def _read_step(layer: _Layer, where: str, forms: Kinds) -> Change | Skip:
    site = _typed({**layer.site, "name": layer.name}, Site, f"{where}.site")
    where = f"{where}: {site.name}"
    if not 0 <= site.share <= 1:
        raise PlanError(f"{where}: share is {site.share}, not between 0 and 1; make the plan again")
    if layer.form is None:
        return Skip(site, layer.skip)
    try:
        form = form_from_dict(layer.form, forms)
        if reason := form.check(site.geometry) or form.exceeds(site.geometry):
            raise PlanError(f"{where}: {reason}")
        change = Change(site, form)
        _ = change.params_after, change.macs_after
    except (FormError, TypeError, ValueError, ArithmeticError) as error:
        raise PlanError(f"{where}: {error}; correct the form, or make the plan again") from None
    return change
