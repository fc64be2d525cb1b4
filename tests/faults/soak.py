"""A soak: round after round of random faults, each compared with a run that was never disturbed.

python -m tests.faults.soak FOLDER [FAULTS [SEED]]     60 faults, from seed 0

A round harms one project folder three times; the last time, the run goes through or is finished afterwards,
and has to end with the same bits and the same curves. FOLDER holds what is done: the same command resumes
with the round that was interrupted. What a failed round left stays there until the next call repeats it.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import test_faults as faults
from tests.faults.harness import Lab, copy, same

_ROUND = 3
# After these, nothing of the pre-training is left to be disturbed.
_LAST = [*faults.GONE_THROUGH, faults.a_commit_is_interrupted]
_EARLIER = [fault for fault in faults.CUT_OFF if fault not in _LAST]


def of_round(seed: int, number: int) -> list[faults.Fault]:
    """Return the faults of a round, always the same for a seed."""
    draw = random.Random(f"{seed}/{number}")
    possible = [fault for fault in _EARLIER if faults.MOUNTS or fault not in faults.NEED_MOUNTS]
    return [*(draw.choice(possible) for _ in range(_ROUND - 1)), draw.choice(_LAST)]


def soak(folder: Path, count: int, seed: int) -> None:
    """Cause `count` faults, a round at a time, and compare each round with an undisturbed run."""
    folder.mkdir(parents=True, exist_ok=True)
    done_file = folder / f"done-{seed}.json"
    done: list[list[str]] = json.loads(done_file.read_text()) if done_file.exists() else []
    ray = Path(tempfile.mkdtemp(prefix="tats-", dir="/tmp"))  # the path of a socket has at most 107 letters
    lab = reference = Lab(folder / "reference", ray)
    try:
        if not (reference.folder / "finished").exists():
            shutil.rmtree(reference.folder, ignore_errors=True)
            reference.folder.mkdir()
            code, said = reference.run()
            assert code == 0, said
            (reference.folder / "finished").touch()
        while len(done) * _ROUND < count:
            began, chosen = time.monotonic(), of_round(seed, len(done))
            shutil.rmtree(folder / "round", ignore_errors=True)
            lab = copy(reference, folder / "round", ray, "data")
            for fault in chosen:
                fault(lab)
            code, said = lab.run()
            assert code == 0, said
            same(lab, reference, values=faults.a_storm_of_nans not in chosen)
            done.append([fault.__name__ for fault in chosen])
            done_file.write_text(json.dumps(done, indent=1))
            took = time.monotonic() - began
            sys.stdout.write(f"{len(done) * _ROUND} faults, {took:.0f} s: {', '.join(done[-1])}\n")
            sys.stdout.flush()
    finally:
        lab.end()
        shutil.rmtree(ray, ignore_errors=True)


def main() -> None:
    """Run from the command line."""
    if len(sys.argv) not in (2, 3, 4):
        sys.exit(__doc__)
    count, seed = (int(word) for word in (*sys.argv[2:], *("60", "0")[len(sys.argv) - 2 :]))
    soak(Path(sys.argv[1]).absolute(), count, seed)


if __name__ == "__main__":
    main()
