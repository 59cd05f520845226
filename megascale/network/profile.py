"""The manifest's network profile as environment variables of the ranks, and as sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from megascale.job.network import Network

FLIGHT_RECORDS: Final = "flight"
_FLAP_S: Final = 10.0


def environment(network: Network, run_dir: Path) -> dict[str, str]:
    """Variables for NCCL and torch; empty for the profile `node`.

    Args:
        run_dir: flight records of a collective that timed out are written to its folder flight/.
    """
    if network.profile == "node":
        return {}
    found = {
        "NCCL_IB_TIMEOUT": str(network.ib_timeout),
        "NCCL_IB_RETRY_CNT": str(network.ib_retry_count),
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(network.nccl_timeout_seconds),
        "TORCH_NCCL_RANKS_PER_ROOT": str(network.ranks_per_root),
        "TORCH_FR_BUFFER_SIZE": str(network.flight_recorder),
    }
    if network.flight_recorder:
        found["TORCH_NCCL_DUMP_ON_TIMEOUT"] = "1"
        found["TORCH_FR_DUMP_TEMP_FILE"] = str(run_dir.absolute() / FLIGHT_RECORDS / "rank-")
    return found


def explain(network: Network) -> list[str]:
    """What the settings mean for a link that flaps, one line each."""
    if network.profile == "node":
        return ["network: profile node: NCCL and torch take what the node's environment says"]
    waits = network.transport_seconds
    verdict = (
        f"flaps of up to {_FLAP_S:g} s are ridden out"
        if waits > _FLAP_S
        else f"flaps of {_FLAP_S:g} s break the connection: raise network.ibTimeout"
    )
    recorder = (
        f"the last {network.flight_recorder} collectives of each rank are written to flight/ on a timeout"
        if network.flight_recorder
        else "off: a hang leaves no record of collectives"
    )
    formula = f"4.096 us x 2^{network.ib_timeout} x {network.ib_retry_count} = {waits:.1f} s of silence"
    variables = f"NCCL_IB_TIMEOUT={network.ib_timeout} NCCL_IB_RETRY_CNT={network.ib_retry_count}"
    return [
        f"network: {variables}: {formula} before an error; {verdict}",
        f"network: collectives end after {network.nccl_timeout_seconds} s; hangs are found earlier",
        f"network: flight recorder: {recorder}",
        f"network: communicators are made by {network.ranks_per_root} ranks per root",
    ]
