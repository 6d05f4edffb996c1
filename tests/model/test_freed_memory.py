"""Tests of the memory that is kept between the batches of a model on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Fills and frees blocks of 64 MiB, and prints the page faults of the last ones.
PROGRAM = """
import resource
import torch
from covid_fastai.model.freed_memory import keep_freed_memory

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

with keep_freed_memory():
    with keep_freed_memory():
        faults(12)  # until glibc has joined what was freed
    inner = faults(4)
    kept = resident()
print(inner, kept - resident(), faults(4))
"""

needs_glibc = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()),
    reason="only glibc returns the memory that is freed",
)


def run(**environment: str) -> list[int]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=inherited | environment
    )
    return [int(word) for word in done.stdout.split()]


@needs_glibc
def test_freed_blocks_are_used_again_until_the_outermost_block_ends():
    inside, returned, after = run()
    assert inside < after / 4
    assert returned > 32 << 20


@pytest.mark.slow
@needs_glibc
@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_the_environments_choice_is_left_alone(name):
    inside, _, after = run(**{name: "1" if name.startswith("MALLOC") else "glibc.malloc.arena_max=1"})
    assert inside > after / 2
