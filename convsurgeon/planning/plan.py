"""A plan: for every conv the form it takes or the reason it is left alone. Plain data; prints itself, saves as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from convsurgeon.base.errors import FormError, PlanError, reason
from convsurgeon.base.files import new_file, read_text
from convsurgeon.base.tables import Table
from convsurgeon.forms.catalogue import Kinds, form_from_dict
from convsurgeon.forms.form import Form
from convsurgeon.forms.geometry import Geometry
from convsurgeon.graph.cost import Cost
from convsurgeon.graph.site import Call, Site
from convsurgeon.planning.figures import check_change, check_sums

VERSION = 1


@dataclass(frozen=True)
class Change:
    """A conv and the form it takes. `lost` is the share of the kernel's energy dropped, None where none is kept."""

    site: Site
    form: Form
    lost: float | None
    params_after: int
    macs_after: int

    @property
    def name(self) -> str:
        """Dotted name of the conv."""
        return self.site.name

    @property
    def rank(self) -> int:
        """Number of branches, or of channels inside the only one."""
        return int(getattr(self.form, "rank", 1))

    @property
    def params_before(self) -> int:
        """Parameters of the dense conv."""
        return self.site.params

    @property
    def macs_before(self) -> int:
        """MACs of all calls of the dense conv on the example."""
        return self.site.macs


@dataclass(frozen=True)
class Skip:
    """A conv that is left as it is, and why."""

    site: Site
    reason: str

    @property
    def name(self) -> str:
        """Dotted name of the conv."""
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
        """The convs that are rewritten, by name."""
        return {step.name: step for step in self.steps if isinstance(step, Change)}

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """The convs that are not."""
        return tuple(step for step in self.steps if isinstance(step, Skip))

    @property
    def params_after(self) -> int:
        """Parameters of the model once the plan is carried out."""
        return self.cost.params - sum(step.params_before - step.params_after for step in self.changes.values())

    @property
    def macs_after(self) -> int:
        """MACs of the model on the example once the plan is carried out."""
        return self.cost.macs - sum(step.macs_before - step.macs_after for step in self.changes.values())

    def without(self, reasons: Mapping[str, str]) -> Plan:
        """The plan with some changes turned into skips, by name."""
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
        """The plan as JSON."""
        layers = [_step_to_dict(step) for step in self.steps]
        return {"convsurgeon_plan": VERSION, "example": self.example, "cost": vars(self.cost), "layers": layers}

    @staticmethod
    def from_dict(values: object, forms: Kinds = ()) -> Plan:
        """Reads what `to_dict` wrote.

        Args:
            values: the plan as JSON.
            forms: kinds of form that may be in it beside those that ship.

        Raises:
            PlanError: it is no plan, or one of another version, or damaged; names the place.
        """
        fields = _mapping(values, "plan")
        version = fields.get("convsurgeon_plan")
        if version is None:
            raise PlanError("plan: no convsurgeon plan (no convsurgeon_plan field); make one with plan(...).save(path)")
        if version != VERSION:
            raise PlanError(f"plan: version {version!r}, this convsurgeon reads {VERSION}; make the plan again")
        cost = Cost(**{item.name: _int(fields, "cost", item.name) for item in dataclasses.fields(Cost)})
        layers = fields.get("layers")
        if not isinstance(layers, list):
            raise PlanError("plan: layers is not a list; make the plan again")
        steps = tuple(_step_from_dict(layer, f"plan: layer {index}", forms) for index, layer in enumerate(layers))
        check_sums((step.site for step in steps), cost)
        return Plan(steps, cost, str(fields.get("example", "")))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Writes the plan as JSON, whole or not at all.

        Raises:
            WriteError: the file exists and `overwrite` is false, or cannot be written.
        """
        with new_file(path, overwrite) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: str | os.PathLike[str], forms: Kinds = ()) -> Plan:
        """Reads a saved plan.

        Args:
            path: of the file.
            forms: kinds of form that may be in it beside those that ship.

        Raises:
            PlanError: the file is missing, no JSON, or no plan.
        """
        try:
            return Plan.from_dict(json.loads(read_text(path)), forms)
        except OSError as error:
            raise PlanError(f"{path}: cannot be read ({reason(error)}); pass a file written by Plan.save") from error
        except (ValueError, RecursionError) as error:
            raise PlanError(f"{path}: is no JSON ({error}); pass a file written by Plan.save") from error
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error


def layer_table(steps: Iterable[Change | Skip], title: str = "Layers") -> Table:
    """One row per conv: what it is, what becomes of it, what that costs, or why it is left alone."""
    columns = (
        ("layer", "text"),
        ("conv", "text"),
        ("output", "text"),
        ("becomes", "text"),
        ("lost", "share"),
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


def _step_to_dict(step: Change | Skip) -> dict[str, Any]:
    site = step.site
    values: dict[str, Any] = {
        "name": site.name,
        "aliases": site.aliases,
        "kind": site.kind,
        "geometry": vars(site.geometry),
        "calls": [[call.input_shape, call.output_shape] for call in site.calls],
        "params": site.params,
        "macs": site.macs,
        "share": site.share,
        "obstacle": site.obstacle,
    }
    if isinstance(step, Skip):
        return values | {"skip": step.reason}
    after = {"params_after": step.params_after, "macs_after": step.macs_after}
    return values | {"form": step.form.to_dict(), "lost": step.lost, **after}


def _step_from_dict(values: object, where: str, forms: Kinds) -> Change | Skip:
    try:
        layer = _mapping(values, where)
        site = Site(
            name=_text(layer["name"]),
            aliases=tuple(map(_text, layer["aliases"])),
            kind=_text(layer["kind"]),
            geometry=_geometry(_mapping(layer["geometry"], where)),
            calls=tuple(Call(_ints(before), _ints(after)) for before, after in layer["calls"]),
            params=_ints([layer["params"]])[0],
            macs=_ints([layer["macs"]])[0],
            share=float(layer["share"]),
            obstacle=_text(layer["obstacle"]),
        )
        if "skip" in layer:
            return Skip(site, _text(layer["skip"]))
        form = form_from_dict(_mapping(layer["form"], where), forms)
        if reason := form.check(site.geometry) or form.exceeds(site.geometry):
            raise PlanError(f"{where}: {site.name}: {reason}")
        lost = None if layer["lost"] is None else _share(layer["lost"], "lost")
        after = _ints([layer["params_after"], layer["macs_after"]])
        check_change(site, form, after)
        return Change(site, form, lost, *after)
    except KeyError as error:
        raise PlanError(f"{where}: no field {error}; make the plan again") from error
    except (TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError, FormError) as error:
        raise PlanError(f"{where}: {error}; make the plan again") from error


def _geometry(values: Mapping[str, Any]) -> Geometry:
    """A geometry with every field of its type."""
    tuples = {name: _ints(values[name]) for name in ("kernel_size", "stride", "dilation")}
    if {len(value) for value in tuples.values()} not in ({1}, {2}, {3}) or min(map(min, tuples.values())) < 1:
        raise ValueError("kernel_size, stride and dilation do not fit together")
    padding = values["padding"] if isinstance(values["padding"], str) else _ints(values["padding"])
    counts = _ints([values[name] for name in ("in_channels", "out_channels", "groups")])
    if min(counts) < 1 or counts[0] % counts[2] or counts[1] % counts[2]:
        raise ValueError("in_channels, out_channels and groups do not fit together")
    return Geometry(
        in_channels=counts[0],
        out_channels=counts[1],
        groups=counts[2],
        padding=padding,
        padding_mode=_text(values["padding_mode"]),
        bias=values["bias"] is True,
        transposed=values["transposed"] is True,
        **tuples,
    )


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise PlanError(f"{where}: expected an object, found {type(value).__name__}; make the plan again")
    return value


def _int(fields: Mapping[str, Any], group: str, name: str) -> int:
    try:
        return _ints([fields[group][name]])[0]
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"plan: {group}.{name} is missing or no whole number; make the plan again") from error


def _ints(values: object) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"expected whole numbers, found {values!r}")
    return tuple(values)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {value!r}")
    return value


def _share(value: Any, name: str) -> float:
    """A share of energy; rounding may take one a hair below 0."""
    if type(value) not in (int, float) or not -0.01 <= value <= 1.01:
        raise ValueError(f"{name} is {value}, no share")
    return float(value)
