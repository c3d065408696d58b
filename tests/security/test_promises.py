"""What docs/security.md promises is shown by tests that are there."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent


def test_every_test_that_the_page_names_is_there() -> None:
    page = (HERE.parents[1] / "docs/security.md").read_text()
    named = {name.removesuffix(".py") for name in re.findall(r"`(test_\w+(?:\.py)?)`", page)}
    there = {path.stem for path in HERE.glob("test_*.py")}
    for path in HERE.glob("test_*.py"):
        tree = ast.parse(path.read_text())
        there |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert len(named) > 25
    assert named <= there
