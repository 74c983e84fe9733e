"""The protocol holds, whoever is paused, killed or overtaken, and whatever data is lost."""

from __future__ import annotations

from cloudmodel.machine import CloudMachine, DataLossMachine
from hypothesis import HealthCheck, settings

PROFILE = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

TestCloud = CloudMachine.TestCase
TestCloud.settings = PROFILE
TestDataLoss = DataLossMachine.TestCase
TestDataLoss.settings = PROFILE
