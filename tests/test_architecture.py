"""The shape of the code: which room may import which, and how long its parts are."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "heft_pipeline"
#: From the ground up: a room may import those before it, and itself.
FLOORS = [
    "errors",
    "command_line",
    "files",
    "declare_settings",
    "devices",
    "evidence",
    "data",
    "models",
    "adapters",
    "scoring",
    "training",
    "settings",
    "plan",
    "store",
    "stage",
    "storekeeping",
    "tracking",
    "report",
    "use",
    "dashboard",
    "launch",
    "heft_launchers",
    "view",
    "subcommands",
    "__main__",
    "notebook",
]
#: Files of one name that stand for the same thing in each folder.
SHARED_NAMES = {"__init__", "__main__", "settings", "adapter"}


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """The project's modules with the room that each is in."""
    for path in sorted([*PACKAGE.rglob("*.py"), *(ROOT / "launch").rglob("*.py"),
                        *(ROOT / "hydra_plugins").rglob("*.py")]):  # fmt: skip
        inside = path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT)
        if path.is_relative_to(PACKAGE):
            room = inside.parts[0] if len(inside.parts) > 1 else inside.stem
            if inside.parts == ("store", "__main__.py"):  # the storekeepers' door, called for short
                room = "storekeeping"
        else:
            room = "launch" if inside.parts[0] == "launch" else inside.stem
        yield room, path, ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    """The rooms that a module imports, wherever in it."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "heft_pipeline":
                names = [f"heft_pipeline.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("heft_pipeline."):
                yield name.split(".")[1]
            elif name.split(".")[0] == "launch":
                yield "launch"


def test_imports_run_downward() -> None:
    up = [
        f"{path.relative_to(ROOT)} imports {other}"
        for room, path, tree in modules()
        if room not in ("__init__", "reference")
        for other in imported(tree)
        if FLOORS.index(other) > FLOORS.index(room)
    ]
    assert not up, "\n".join(up)


def test_the_reference_imports_nothing_of_the_project_and_is_short() -> None:
    (tree,) = [tree for room, _, tree in modules() if room == "reference"]
    assert not list(imported(tree))
    assert len((PACKAGE / "reference.py").read_text().splitlines()) < 200


def test_functions_and_files_are_short() -> None:
    long = []
    for _, path, tree in modules():
        lines = len(path.read_text().splitlines())
        if lines > 400:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 60:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {length}")
    assert not long, "\n".join(long)


def test_few_modules_lie_loose_and_names_are_not_used_twice() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8
    places = defaultdict(list)
    for _, path, _ in modules():
        if path.stem not in SHARED_NAMES:
            places[path.stem].append(str(path.relative_to(ROOT)))
    assert not [files for files in places.values() if len(files) > 1]


def test_a_kind_of_adapter_is_a_small_folder() -> None:
    lines = sum(len(p.read_text().splitlines()) for p in (PACKAGE / "adapters/red").glob("*.py"))
    assert lines < 150
    assert not re.search(r"\bred\b", (PACKAGE / "adapters/kind.py").read_text())


@pytest.mark.parametrize(
    "name",
    [
        "heft_pipeline.settings.checks",
        "heft_pipeline.plan.graph",
        "heft_pipeline.store.sweep_folders",
        "heft_pipeline.report.write",
        "heft_pipeline.tracking.follow",
        "heft_pipeline.view.web_server",
        "launch.run_sweep",
        "launch.status",
        "hydra_plugins.heft_launchers",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(name: str) -> None:
    code = f"import sys, {name}; print({{'torch', 'transformers', 'peft'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
