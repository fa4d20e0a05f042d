"""Equal subexpressions of a compiled graph computed once: torch does this for training graphs only.

So layers that scale the same activations to fp8 (queries, keys and values of a self attention) share one scaling and
know nothing of each other.
"""

import operator

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node


class SharedSubexpressions(CustomGraphPass):
    """A pass over inductor's graph, which is functional: two nodes with the same arguments have the same value."""

    def __call__(self, graph: Graph) -> None:
        if any(_writes(node) for node in graph.nodes):
            return  # what is read before and after a write is not the same
        first: dict[str, Node] = {}
        for node in list(graph.nodes):
            if not _is_function_of_arguments(node):
                continue
            # As text, in which 1, 1.0 and True differ and nodes have names of their own.
            same = first.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
            if same is not node:
                node.replace_all_uses_with(same)
                graph.erase_node(node)

    def uuid(self) -> bytes:
        return get_hash_for_files((__file__,))


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_function_of_arguments(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return torch.Tag.nondeterministic_seeded not in node.target.tags
    return getattr(node.target, "__module__", None) == operator.add.__module__  # arithmetic of sizes
