"""What becomes of every conv, as plain data, and the pass that carries it out on a copy of the model.

`inspection` and `energy` tell what any plan could keep; they need sites and forms, and no data.
"""

from convsurgeon.planning import select as select
