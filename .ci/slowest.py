"""Print the tests that took longest, from the JUnit files that pytest wrote: seconds of set-up, call and tear-down.

python .ci/slowest.py NUMBER FILE...
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET


def main(number: int, paths: list[str]) -> None:
    """Print one line a test, the slowest first."""
    took = [
        (float(case.get("time", "0")), f"{case.get('classname')}::{case.get('name')}")
        for path in paths
        for case in ET.parse(path).iter("testcase")
    ]
    for seconds, name in sorted(took, reverse=True)[:number]:
        print(f"{seconds:8.1f} s  {name}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
