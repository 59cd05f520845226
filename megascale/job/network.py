"""`spec.network`: timeouts of the communication between ranks (MegaScale, sections 3.6 and 4.4)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megascale.job.base import Natural, Problem, Seconds, Section, refuse


class Network(Section):
    """Network settings of the ranks, written into their environment when they are launched."""

    profile: Literal["tolerant", "node"] = "tolerant"
    """tolerant: set the values below, with which links may flap for seconds without an error; node: set
    nothing and keep the environment of the node."""
    nccl_timeout_seconds: Seconds = 600
    """A rank whose collective takes longer than this ends with an error; must be longer than the transport
    waits."""
    ib_timeout: Annotated[int, Field(ge=1, le=31)] = 22
    """Exponent t of the transport's timeout: 4.096 us x 2^t per try (NCCL_IB_TIMEOUT)."""
    ib_retry_count: Annotated[int, Field(ge=1, le=7)] = 7
    """Tries before the transport reports a broken connection (NCCL_IB_RETRY_CNT)."""
    flight_recorder: Natural = 2000
    """Number of collectives that each rank records for the analysis of hangs; 0 = none."""
    ranks_per_root: Annotated[int, Field(ge=1, le=100_000)] = 128
    """Ranks that connect to one root when a communicator is created; a smaller number uses more roots."""

    @property
    def transport_seconds(self) -> float:
        """How long a silent link is waited for before NCCL reports an error."""
        return 4.096e-6 * 2.0**self.ib_timeout * self.ib_retry_count

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.profile == "tolerant" and self.transport_seconds >= self.nccl_timeout_seconds:
            waits = f"4.096 us x 2^{self.ib_timeout} x {self.ib_retry_count} = {self.transport_seconds:.0f} s"
            message = f"{self.nccl_timeout_seconds} is no longer than the transport waits: {waits}"
            hint = "raise it, or lower ibTimeout: else the cause of every link fault is hidden"
            refuse([Problem(("ncclTimeoutSeconds",), message, hint)])
        return self
