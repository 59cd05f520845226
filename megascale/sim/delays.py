"""How long things take: distributions by name, drawn from a seeded generator."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_Z99: Final = 2.326


@dataclass(frozen=True, slots=True)
class Distribution:
    """A duration in seconds.

    Attributes:
        kind: constant(a), uniform(a..b), exponential(mean a) or lognormal(median a, 99th percentile b).
    """

    kind: str
    a: float
    b: float = 0.0

    def sample(self, rng: random.Random) -> float:
        if self.kind == "constant":
            return self.a
        if self.kind == "uniform":
            return rng.uniform(self.a, self.b)
        if self.kind == "exponential":
            return rng.expovariate(1.0 / self.a) if self.a else 0.0
        sigma = math.log(self.b / self.a) / _Z99
        return rng.lognormvariate(math.log(self.a), sigma)


def constant(seconds: float) -> Distribution:
    return Distribution("constant", seconds)


def uniform(low: float, high: float) -> Distribution:
    return Distribution("uniform", low, high)


@dataclass(slots=True)
class Delays:
    """Named durations. A name that is not listed takes no time.

    Attributes:
        stretch: every sample is multiplied by this, for sensitivity studies.
    """

    rng: random.Random
    durations: Mapping[str, Distribution] = field(default_factory=dict)
    stretch: float = 1.0

    def sample(self, stage: str) -> float:
        distribution = self.durations.get(stage)
        return distribution.sample(self.rng) * self.stretch if distribution else 0.0
