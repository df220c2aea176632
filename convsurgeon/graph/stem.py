"""Which convs read the network's input: nothing that any other conv has made reaches them."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx, nn

_CONVS = nn.modules.conv._ConvNd


def readers_of_input(graph: fx.GraphModule, run: Collection[nn.Module], functions: Collection[object]) -> set[int]:
    """The ids of the conv modules that read the input.

    Args:
        graph: of the network.
        run: the conv modules in the order in which they run; where the graph shows no reader, the first stands for it.
        functions: convs that are called as functions.
    """
    made: dict[fx.Node, bool] = {}  # whether a conv had a part in a node's value
    found: set[int] = set()
    for node in graph.graph.nodes:
        late = any(made[other] for other in node.all_input_nodes)
        module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, _CONVS) and not late:
            found.add(id(module))
        inside = module is not None and any(isinstance(part, _CONVS) for part in module.modules())
        made[node] = late or inside or (node.op == "call_function" and node.target in functions)
    return found or {id(module) for module in list(run)[:1]}
