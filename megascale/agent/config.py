"""The configuration of an agent: its files, its address, and how it finds and authenticates its driver."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from megascale.checkpoint.snapshot_folders import SHARED_MEMORY
from megascale.errors import InputError
from megascale.observe.rundir import RunDir
from megascale.rpc.connect import Trust, loopback_host

KERNEL_LOG: Final = Path("/dev/kmsg")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Where one agent runs, in a local run or in a pod.

    Attributes:
        run: the folder to which the agent and its ranks write.
        driver_file: file with the driver's address.
        token_file: file with the token that authenticates the agent.
        host: IP address at which other nodes reach this one.
        trust: how to verify the driver's certificate; None for an unencrypted channel on this machine.
        pod: name of the pod, "" outside of one. In a pod the cluster restarts the driver and this agent.
        snapshot_root: folder in memory (tmpfs) for snapshots.
        kernel_log: kernel log to read hardware events from; None to read none.
        grace_s: seconds after SIGTERM within which the ranks may save.
    """

    run: RunDir
    node: str
    job_file: Path
    driver_file: Path
    token_file: Path
    host: str = "127.0.0.1"
    trust: Trust | None = None
    pod: str = ""
    snapshot_root: Path = SHARED_MEMORY
    kernel_log: Path | None = None
    grace_s: float = 100.0

    @classmethod
    def local(cls, root: Path, node: str) -> AgentConfig:
        """Return the configuration of a node of a local run with the run folder `root`."""
        run = RunDir(root)
        token_file = run.agent_token_file(node)
        return cls(run, node, run.job_file, run.driver_file, token_file, host=loopback_host())

    @property
    def interface(self) -> str:
        """Name of the network interface that has the address `host`, or else whose network contains it.

        Raises:
            InputError: there is no such interface.
        """
        host = ipaddress.ip_address(self.host)
        found: list[tuple[int, str]] = []
        for name, addresses in psutil.net_if_addrs().items():
            for address in addresses:
                network = _network(address.address, address.netmask)
                if network is not None and network.version == host.version and host in network:
                    found.append((network.prefixlen, name))
        if not found:
            raise InputError(f"--host {self.host}: no network interface of this node has that address")
        return max(found)[1]


def _network(address: str, netmask: str | None) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Return the network of an interface's address; None for hardware addresses."""
    plain = address.partition("%")[0]
    try:
        if netmask and ":" in netmask:
            netmask = str(bin(int(ipaddress.IPv6Address(netmask))).count("1"))
        return ipaddress.ip_network(f"{plain}/{netmask}" if netmask else plain, strict=False)
    except ValueError:
        return None
