"""The soak's choice of faults; `make test-soak` causes them."""

from __future__ import annotations

from tests.faults import soak
from tests.faults.test_faults import GONE_THROUGH, a_commit_is_interrupted


def test_a_seed_has_the_same_faults_each_time_and_what_ends_a_run_ends_a_round():
    rounds = [soak.of_round(0, number) for number in range(50)]
    assert rounds == [soak.of_round(0, number) for number in range(50)]
    assert rounds != [soak.of_round(1, number) for number in range(50)]
    last = {*GONE_THROUGH, a_commit_is_interrupted}
    assert all(fault in last for *_, fault in rounds)
    assert not any(fault in last for *earlier, _ in rounds for fault in earlier)
