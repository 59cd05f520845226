"""Public API for programs that run drivers in another environment, such as the Kubernetes operator.

Such a program takes over a job with `Driver.take_over`, supplies its own ports (record, fleet, listener,
event log) and background services, and reads the driver's status.
"""

from megascale.driver.driver import Driver
from megascale.driver.listener import bind
from megascale.driver.ports import (
    BackgroundService,
    DriverPorts,
    EventSink,
    Listener,
    NotAdmittedError,
)
from megascale.driver.record import RECORD_VERSION, Claim, RecordStore, check_core, checked_record
from megascale.driver.running import RunningDriver
from megascale.driver.status import incident_document, incidents_of
from megascale.driver.store_log import StoreLog
from megascale.driver.wire import shutdown_order
from megascale.fleet.base import Fleet, FleetRefusedError, Health, SlotEvent
from megascale.observe.logs import LogContext, configure_logs
from megascale.observe.rundir import RunDir

__all__ = [
    "RECORD_VERSION",
    "BackgroundService",
    "Claim",
    "Driver",
    "DriverPorts",
    "EventSink",
    "Fleet",
    "FleetRefusedError",
    "Health",
    "Listener",
    "LogContext",
    "NotAdmittedError",
    "RecordStore",
    "RunDir",
    "RunningDriver",
    "SlotEvent",
    "StoreLog",
    "bind",
    "check_core",
    "checked_record",
    "configure_logs",
    "incident_document",
    "incidents_of",
    "shutdown_order",
]
