"""Events of one fault are one incident."""

from __future__ import annotations

import pytest

from megascale.core.rules import BUILTIN, RuleMatch, RuleSet, classify_text, correlate

RULES = RuleSet(BUILTIN)
XID = "NVRM: Xid (PCI:0000:3b:00): {}, pid=1"


def match(at: float, node: str, line: str) -> RuleMatch:
    return RuleMatch.of(classify_text(line, RULES), at=at, node=node)


def test_fallen_gpu_with_pcie_and_link_is_one_incident() -> None:
    matches = [
        match(12.0, "a", "mlx5_core 0000:9a:00.0 ens7f0np0: Link down"),
        match(10.0, "a", "pcieport 0000:60:01.0: AER: Uncorrected (Fatal) error received: 0000:61:00.0"),
        match(10.5, "a", XID.format(79)),
        match(10.6, "a", XID.format(45)),
        match(500.0, "b", XID.format(79)),
    ]
    first, second = correlate(matches, 60.0)
    assert (first.nodes, first.action, first.category, len(first.matches)) == (
        ("a",),
        "replace_node",
        "gpu",
        3,
    )
    assert (first.start, first.end) == (10.0, 12.0)
    assert second.nodes == ("b",)


def test_switch_that_takes_many_nodes_is_one_incident() -> None:
    matches = [match(100.0 + i / 10, f"n{i}", "eth2: NIC Link is Down") for i in range(32)]
    (incident,) = correlate(matches, 30.0)
    assert (incident.kind, len(incident.nodes), incident.action) == ("fabric", 32, "alert")
    by_switch = {f"n{i}": f"leaf-{i % 16}" for i in range(32)}
    assert {i.kind for i in correlate(matches, 30.0, switch_of=by_switch)} == {"node"}


@pytest.mark.parametrize(
    ("codes", "action"),
    [
        ((43,), None),
        ((45,), None),
        ((63,), None),
        ((92,), None),
        ((48, 63), "replace_node"),
        ((74,), "restart"),
        ((74, 74), "replace_node"),
        ((119, 119), "replace_node"),
        ((94,), "restart"),
    ],
)
def test_codes_together(codes: tuple[int, ...], action: str | None) -> None:
    incidents = correlate([match(float(i), "a", XID.format(code)) for i, code in enumerate(codes)], 60.0)
    assert [incident.action for incident in incidents] == ([action] if action else [])


def test_same_application_fault_on_many_nodes_is_the_code() -> None:
    incidents = correlate([match(1.0, f"n{i}", XID.format(31)) for i in range(5)], 60.0)
    assert [(i.kind, i.category) for i in incidents] == [("code", "user_code")]


def test_consequences_make_no_incident() -> None:
    line = "[rank1]: torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"
    assert correlate([match(1.0, "a", line)], 60.0) == []
