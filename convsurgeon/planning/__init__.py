"""Plans: what becomes of every conv, as plain data, and how a plan is carried out on a copy of the model."""

from convsurgeon.planning import select as select
