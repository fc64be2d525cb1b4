from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tats_core.machine import available_cpus, keep_freed_memory

COUNT_FAULTS = """
import resource, torch
from tats_core.machine import keep_freed_memory
{call}
def work():
    for _ in range(5):
        torch.empty(16 << 20).fill_(1.0)  # 64 MiB, used and freed
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_there_is_at_least_one_cpu() -> None:
    assert available_cpus() >= 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such settings")
def test_memory_that_is_kept_is_not_faulted_in_again() -> None:
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", COUNT_FAULTS.format(call=call)], stdout=subprocess.PIPE, check=True
            ).stdout
        )
        for call in ("", "assert keep_freed_memory()")
    ]
    # Five times 64 MiB are 81920 pages, huge pages fewer; what is kept costs next to none.
    assert faults[1] < 200
    assert faults[1] < faults[0]


def test_where_the_allocator_cannot_be_told_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
