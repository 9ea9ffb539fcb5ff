"""Draw docs/rooms.svg, which room of the code imports which, from the imports themselves: `make rooms`.

A room is a package (headstart/images/, tasks/, flows/) or a module at the top of headstart/. Arrows that follow from others are
left out: where A imports B and C, and B imports C, the arrow from A to C is not drawn.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from headstart.core.code_digest import CODE_ROOT, FIRST_PARTY, executed

PICTURE = CODE_ROOT / "docs" / "rooms.svg"
WIDTH, ROW, BOX, HEIGHT, MARGIN = 1080, 92, 128, 40, 20
INK, LINE, PACKAGE, MODULE = "#1f2933", "#9aa5b1", "#d9ecf5", "#f5f7fa"
Graph = Mapping[str, frozenset[str]]


def room_of(name: str) -> str:
    """The room of a module: "images" for "headstart.images.decode", "seeds" for "headstart.seeds", "tasks" for a task."""
    parts = name.split(".")
    return parts[1] if parts[0] == "headstart" and len(parts) > 1 else parts[0]


def imports() -> Graph:
    """For each room the rooms that it imports."""
    found: dict[str, set[str]] = {}
    for package in FIRST_PARTY:
        for path in sorted((CODE_ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(CODE_ROOT).with_suffix("").parts).removesuffix(".__init__")
            used = found.setdefault(room_of(name), set())
            for node in executed(ast.parse(path.read_bytes())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    continue
                used |= {room_of(name) for name in names if name.split(".")[0] in FIRST_PARTY}
    found.pop("headstart")  # its __init__ alone
    return {room: frozenset(used & found.keys() - {room}) for room, used in sorted(found.items())}


def reachable(graph: Graph, room: str) -> set[str]:
    """All rooms that a room needs, directly or through others."""
    seen: set[str] = set()
    waiting = list(graph[room])
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += graph[one]
    return seen


def reduced(graph: Graph) -> Graph:
    """The graph without the arrows that follow from others. It must have no cycle."""
    circular = [room for room in graph if room in reachable(graph, room)]
    if circular:
        raise SystemExit(f"rooms import each other in a circle: {', '.join(circular)}")
    return {
        room: frozenset(one for one in used if not any(one in reachable(graph, other) for other in used - {one}))
        for room, used in graph.items()
    }


def levels(graph: Graph) -> list[list[str]]:
    """Rooms by level, the top first; a room is above all that it imports, and near what imports it."""
    height: dict[str, int] = {}

    def of(room: str) -> int:
        if room not in height:
            height[room] = 1 + max((of(one) for one in graph[room]), default=-1)
        return height[room]

    top = max(map(of, graph))
    rows = [[room for room in graph if height[room] == level] for level in range(top, -1, -1)]
    users = {room: [other for other in graph if room in graph[other]] for room in graph}
    place: dict[str, float] = {}
    for row in rows:
        row.sort(key=lambda room: (sum(place[one] for one in users[room]) / max(len(users[room]), 1), room))
        place |= {room: (i + 0.5) / len(row) for i, room in enumerate(row)}
    return rows


def draw(graph: Graph) -> str:
    """The picture as SVG."""
    slim = reduced(graph)
    rows = levels(slim)
    at = {
        room: (MARGIN + (WIDTH - 2 * MARGIN) * (i + 0.5) / len(row), MARGIN + ROW * y + HEIGHT / 2)
        for y, row in enumerate(rows)
        for i, room in enumerate(row)
    }
    height = 2 * MARGIN + ROW * (len(rows) - 1) + HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="15">',
        "<title>The rooms of the code and what each imports</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker></defs>',
    ]
    for room, used in slim.items():
        for one in sorted(used):
            (x, y), (to_x, to_y) = at[room], at[one]
            y, to_y = y + HEIGHT / 2, to_y - HEIGHT / 2
            bend = f"C{x:.0f} {y + ROW / 2:.0f} {to_x:.0f} {to_y - ROW / 2:.0f} {to_x:.0f} {to_y - 1:.0f}"
            lines.append(
                f'<path d="M{x:.0f} {y:.0f}{bend}" fill="none" stroke="{LINE}" stroke-width="1.4" marker-end="url(#tip)"/>'
            )
    for room, (x, y) in at.items():
        package = (CODE_ROOT / "headstart" / room).is_dir() or room in FIRST_PARTY
        lines.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{BOX}" height="{HEIGHT}" rx="6"'
            f' fill="{PACKAGE if package else MODULE}" stroke="{INK}"/>'
        )
        text = f"{room}/" if package else f"{room}.py"
        lines.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle" fill="{INK}">{escape(text)}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(imports()))
