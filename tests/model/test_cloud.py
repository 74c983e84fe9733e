"""The protocol holds, whoever is paused, killed or overtaken, and whatever data is lost.

``HYPOTHESIS_PROFILE=explore`` looks for half an hour where others have not looked.
"""

from __future__ import annotations

import os

from cloudmodel.machine import CloudMachine, DataLossMachine, GangDataLossMachine
from hypothesis import HealthCheck, settings

IS_EXPLORING = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
PROFILE = settings(
    max_examples=20_000 if IS_EXPLORING else 120,
    stateful_step_count=60,
    deadline=None,
    derandomize=not IS_EXPLORING,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

TestCloud = CloudMachine.TestCase
TestCloud.settings = PROFILE
TestDataLoss = DataLossMachine.TestCase
TestDataLoss.settings = PROFILE
TestGangDataLoss = GangDataLossMachine.TestCase
TestGangDataLoss.settings = PROFILE
