"""Cut a body in two at a layer group's boundary: the frozen front, and the tail that trains on the front's activation maps.

torch.fx traces only into modules with parameters on both sides of the boundary. All other modules stay whole, so that
their batch norm, dropout and control flow do not change.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from headstart.core.errors import InputError


def cut_body(body: nn.Module, groups: Mapping[str, tuple[str, ...]], after: str) -> tuple[nn.Module, nn.Module]:
    """Return two modules that share the body's own parameters and buffers, with tail(front(x)) = body(x).

    Args:
        body: images [n, 3, s, s] to activations [n, d].
        groups: the body's parameter names by layer group, earliest first.
        after: the last group of the front.

    Returns:
        Front: images to the activation at the boundary, [n, ...]. Tail: from there to [n, d].

    Raises:
        InputError: there is no such group, or the network cannot be cut there (more than one tensor crosses, or it
            cannot be traced).
    """
    if after not in groups:
        raise InputError(f"precompute.cache_map_after: {after!r}", wanted=f"none, {', '.join(groups)}")
    names = list(groups)
    front = {name for group in names[: names.index(after) + 1] for name in groups[group]}
    own = dict(body.named_parameters())
    early = {id(own[name]) for name in front}
    late = {id(value) for name, value in own.items() if name not in front}
    try:
        graph = _Tracer(early, late).trace(body)
        sides = [_sides(node, body, early, late) for node in graph.nodes]
        crossing = _crossing(graph, sides)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, AssertionError, ValueError) as error:
        raise _cannot(after, str(error).splitlines()[0]) from None
    if crossing is None:
        raise _cannot(after, "more than one tensor crosses the boundary")
    return _front(body, graph, crossing), _tail(body, graph, crossing)


class _Tracer(fx.Tracer):
    """A tracer that goes only into modules with parameters on both sides of the boundary."""

    def __init__(self, early: set[int], late: set[int]) -> None:
        super().__init__()
        self.early, self.late = early, late

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inside = {id(parameter) for parameter in m.parameters()}
        return not (inside & self.early and inside & self.late)


def _sides(node: fx.Node, body: nn.Module, early: set[int], late: set[int]) -> tuple[bool, bool]:
    """Return whether a node uses parameters before the boundary, and whether it uses parameters after it."""
    if node.op == "call_module":
        inside = {id(parameter) for parameter in body.get_submodule(str(node.target)).parameters()}
        return bool(inside & early), bool(inside & late)
    if node.op == "get_attr":
        owner, _, leaf = str(node.target).rpartition(".")
        value = getattr(body.get_submodule(owner), leaf)
        return id(value) in early, id(value) in late
    return False, False


def _crossing(graph: fx.Graph, sides: list[tuple[bool, bool]]) -> fx.Node | None:
    """Return the node whose value is the only one that passes from the front to the tail; None if there is none."""
    nodes = list(graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    start = max(i for i, (early, _) in enumerate(sides) if early)
    end = next((i for i, (_, late) in enumerate(sides) if late), len(nodes) - 1)
    for last in range(start, end):
        crossing = [node for node in nodes[: last + 1] if any(position[user] > last for user in node.users)]
        if len(crossing) == 1:
            return crossing[0]
    return None


def _front(body: nn.Module, graph: fx.Graph, crossing: fx.Node) -> nn.Module:
    front = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        copies[node] = front.node_copy(node, lambda old: copies[old])
        if node is crossing:
            break
    front.output(copies[crossing])
    return fx.GraphModule(body, front).eval()


def _tail(body: nn.Module, graph: fx.Graph, crossing: fx.Node) -> nn.Module:
    tail = fx.Graph()
    copies = {crossing: tail.placeholder("x")}
    needed = False
    for node in graph.nodes:
        if needed:
            copies[node] = tail.node_copy(node, lambda old: copies[old])
        needed = needed or node is crossing
    return fx.GraphModule(body, tail).eval()


def _cannot(after: str, why: str) -> InputError:
    return InputError(
        f"precompute.cache_map_after: {after}: this backbone cannot be cut there: {why[:200]}",
        fix="--set precompute.cache_map_after=none",
    )


def output_shape(module: nn.Module, image_size: int) -> tuple[int, ...]:
    """Return the shape of a module's output for one image."""
    with torch.no_grad():
        output: torch.Tensor = module(torch.zeros(1, 3, image_size, image_size))
    return tuple(output.shape[1:])
