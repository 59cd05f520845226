"""Where an agent lives: its files, its address, and how it finds and trusts its driver."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from megascale.checkpoint.snapshot_folders import SHARED_MEMORY
from megascale.errors import InputError
from megascale.observe.rundir import RunDir
from megascale.rpc.connect import Trust

KERNEL_LOG: Final = Path("/dev/kmsg")


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """An agent of a local run, or of a pod.

    Attributes:
        host: address at which other nodes reach this one.
        trust: None = the driver is on this machine and the channel is not encrypted.
        pod: name of the pod, "" outside of one; in a pod the cluster looks after the driver and this agent.
        snapshot_root: a folder in memory.
        kernel_log: what tells of the node's hardware, None = do not look.
        grace_s: after SIGTERM the agent has this long to have its ranks save.
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
        """A node of a run on this machine."""
        run = RunDir(root)
        return cls(run, node, run.job_file, run.driver_file, run.token_file)

    @property
    def interface(self) -> str:
        """The network interface through which `host` is this node's: its address, or else its network.

        Raises:
            InputError: there is none.
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
    """The network of an interface's address; None for hardware addresses."""
    plain = address.partition("%")[0]
    try:
        if netmask and ":" in netmask:
            netmask = str(bin(int(ipaddress.IPv6Address(netmask))).count("1"))
        return ipaddress.ip_network(f"{plain}/{netmask}" if netmask else plain, strict=False)
    except ValueError:
        return None
