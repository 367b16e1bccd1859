"""Every trap of the docs' list is held by a test that exists."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
ROW = re.compile(r"^\| (?!what you write|---)(.*) \| (`test_\w+`|the same) \|$", re.MULTILINE)


def test_every_trap_is_held_by_a_test():
    rows = ROW.findall((TESTS.parent / "docs" / "pyro-traps.md").read_text())
    written = {
        name
        for path in TESTS.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    named = {test.strip("`") for _, test in rows} - {"the same"}
    assert named - written == set()
    assert rows[0][1] != "the same"
    assert len(rows) > 25
