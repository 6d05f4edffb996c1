"""How many examples a property test tries: few by default, always the same ones, and at night more and other ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

__all__ = ["examples"]

FACTOR = "COVID_FASTAI_EXAMPLES"  # times as many as by default
TIMES = int(os.environ.get(FACTOR, "1"))

# Whether a change passes must depend neither on how busy the machine is nor on chance.
settings.register_profile(
    "covid_fastai", deadline=None, derandomize=TIMES == 1, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("covid_fastai")


def examples(number: int) -> settings:
    """Return the settings of a property test with `number` examples by default."""
    return settings(max_examples=number * TIMES)
