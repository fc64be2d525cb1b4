import os, signal
from .harness import STEP, same

def test_worker(lab, reference):
    kill = lab.fault(STEP, "kill", 8, rank=1)
    code, said = lab.run(faults=[kill])
    print(said)
    assert code == 0
    same(lab, reference)

def test_driver(lab, reference):
    with lab.held(STEP, 8, rank=0) as run:
        for pid, line in run.processes().items(): print(pid, line[:150])
        os.kill(run.process.pid, signal.SIGKILL)
        import time
        t = time.monotonic()
        for i in range(60):
            left = run.processes()
            print(round(time.monotonic()-t, 2), len(left), [l[:60] for l in left.values()])
            if not left: break
            time.sleep(.5)
    print(run.wait())
    code, said = lab.run()
    print(said)
    assert code == 0
    same(lab, reference)
