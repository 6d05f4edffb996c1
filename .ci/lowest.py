"""Print the lowest versions that settings.ini allows, as a constraints file: `python .ci/lowest.py > lowest.txt`."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

INSTALLED = ("web", "dicom", "tables", "batch", "distributed", "dev")  # what .[dev] brings

settings = ConfigParser(delimiters=("=",), comment_prefixes=("#",), interpolation=None)
settings.read(Path(__file__).parents[1] / "settings.ini", encoding="utf-8")
texts = [settings["DEFAULT"]["requirements"]]
texts += [text for name, text in settings["extras"].items() if name in INSTALLED]
for line in "\n".join(texts).splitlines():
    floor = re.match(r"([\w.-]+)(\[.*\])?\s*>=\s*([\w.]+)", line.strip())
    if floor:
        exact = floor[3].count(".") >= 2  # of 2.3 any 2.3.x: the first of them may have been withdrawn
        print(f"{floor[1]}=={floor[3]}" + ("" if exact else ".*"))
