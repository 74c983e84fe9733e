from __future__ import annotations

import pytest

from ecompute.cluster.errors import OutOfDate
from ecompute.cluster.freshness import FRESH_S, Reading
from ecompute.cluster.upkeep.lead import LEASE_TTL_S


def test_a_reading_is_a_reason_for_as_long_as_it_is_fresh() -> None:
    now_s = [1000.0]
    reading = Reading(lambda: now_s[0])
    now_s[0] += FRESH_S - 0.1
    reading.check()
    now_s[0] += 0.1
    assert reading.is_old
    with pytest.raises(OutOfDate):
        reading.check()


def test_a_tool_has_no_longer_for_it_than_a_lead() -> None:
    assert FRESH_S <= LEASE_TTL_S, "that putting etcd back takes longer is taken for granted once"
