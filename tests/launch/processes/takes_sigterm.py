"""Starts Ray as a stage does, in a thread, while the run handles signals; then gets SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading

from tats_core.pipeline import runner


def main() -> None:
    from tats_core.launch import ray_train

    stop = threading.Event()
    with runner._signals(stop) as renew:
        stage = threading.Thread(target=ray_train.connect)
        stage.start()
        stage.join()
        renew()
        os.kill(os.getpid(), signal.SIGTERM)
        sys.stdout.write("stopped" if stop.wait(60) else "not stopped")


if __name__ == "__main__":
    main()
