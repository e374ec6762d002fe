"""Draws which rooms of the package import which, as a Mermaid graph, into docs/development.md.

    .venv/bin/python tools/draw_imports.py     # after a change of the imports between rooms; a test compares

An arrow that others imply is left out: a room that imports `training` may import all that lies below that.
"""

import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/development.md"
BEGIN, END = "```mermaid\n", "```\n"


def drawing() -> str:
    """The graph: one line an arrow, from the importing room to the imported one."""
    sys.path.insert(0, str(ROOT / "egs/librispeech/twopass_kd"))
    graph = grimp.build_graph("twopass_kd", cache_dir=None)
    rooms = sorted(graph.find_children("twopass_kd"))

    def imports(a: str, b: str) -> bool:
        return a != b and graph.direct_import_exists(importer=a, imported=b, as_packages=True)

    def implied(a: str, b: str) -> bool:
        return any(imports(a, c) and graph.chain_exists(c, b, as_packages=True) for c in rooms if c not in (a, b))

    arrows = [(a, b) for a in rooms for b in rooms if imports(a, b) and not implied(a, b)]
    names = [tuple(room.partition(".")[2] for room in arrow) for arrow in arrows]
    return "graph TD\n" + "".join(f"  {a} --> {b}\n" for a, b in names)


def page() -> str:
    """The page with the graph in its place."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + drawing() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
