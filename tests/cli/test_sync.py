"""`tats sync`."""

from __future__ import annotations

from tats_core.store.journal import Spool
from tats_core.store.run import RunRecord


def test_a_damaged_file_is_to_be_mended_and_not_waited_for(tats, tmp_path):
    home, run = tmp_path / ".tats", "demo-20260102-100000000-aaaa"
    RunRecord(run, "demo", "", "demo.yaml", str(home), "finished", 0.0, {}).save()
    spool = Spool(home, run)
    spool.begin()
    spool.append({"kind": "run_end", "status": "finished"})
    (spool.folder / "sent.json").write_text("{")
    ended = tats("sync")
    assert ended.code == 1
    assert ended.out.startswith(f"{run}: {spool.folder / 'sent.json'}: is not how far a run was sent")
    assert ended.err == "tats: 1 run is not sent yet; mend that, and try again\n"
