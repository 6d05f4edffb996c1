"""Compare the commit of each action in the workflows with its tag: `python .ci/pins.py`. Needs the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

WORKFLOWS = Path(__file__).parents[1] / ".github" / "workflows"
USE = re.compile(r"uses:\s*([\w.-]+/[\w.-]+)@([0-9a-f]{40})\s+#\s*(v[\w.]+)\s*$", re.MULTILINE)


def commit_of(action: str, tag: str) -> str:
    """Return the commit that a tag of an action's repository points to; "" if there is no such tag."""
    server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
    command = ["git", "ls-remote", f"{server}/{action}", f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return lines[-1].split()[0] if lines else ""  # of an annotated tag, the commit is the second line


def main() -> int:
    """Print the pins that differ from their tags; the exit status is their number."""
    pins = {use for file in WORKFLOWS.glob("*.yml") for use in USE.findall(file.read_text(encoding="utf-8"))}
    wrong = [
        f"{action}: {tag} is {found}, not {pin}"
        for action, pin, tag in sorted(pins)
        if (found := commit_of(action, tag)) != pin
    ]
    print("\n".join(wrong) or f"{len(pins)} actions are the commits of their tags.")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
