"""What an order to an agent says, field by field."""

from __future__ import annotations

from megascale.core.contract import effects as fx
from megascale.core.contract.lineage import Commit
from megascale.driver import wire
from megascale.rpc import megascale_pb2 as pb


def test_a_launch_goes_to_every_node_with_its_place() -> None:
    effect = fx.Launch(
        "e-7",
        "why",
        4,
        ("n5", "n2"),
        Commit(20, 3),
        lineage={1: None, 3: Commit(10, 1)},
        tier="memory",
        revision="r1",
        save_every_steps=9,
    )
    lineage = [
        pb.LineageEntry(attempt=1),
        pb.LineageEntry(attempt=3, resumed_from=pb.Commit(step=10, attempt=1)),
    ]
    assert wire.launch_orders(6, effect, "10.0.0.1", 2900) == [
        pb.DriverMessage(
            term=6,
            command_id="e-7",
            launch=pb.Launch(
                attempt=4,
                node_rank=node_rank,
                nodes=2,
                store_host="10.0.0.1",
                store_port=2900,
                resume=pb.Commit(step=20, attempt=3),
                lineage=lineage,
                tier="memory",
                revision="r1",
                save_every_steps=9,
            ),
        )
        for node_rank in (0, 1)
    ]


def test_a_first_launch_resumes_nothing_and_may_name_no_revision() -> None:
    (message,) = wire.launch_orders(6, fx.Launch("e-7", "why", 1, ("n0",), None), "h", 1)
    assert not message.launch.HasField("resume")
    assert message.launch.revision == ""


def test_other_orders_say_what_their_effect_says() -> None:
    fence = {"term": 6, "command_id": "e-7"}
    launch = fx.Launch("e-7", "why", 4, ("n0",), None)
    stores = pb.DriverMessage(term=6, command_id="e-7/store", host_store=pb.HostStore(attempt=4))
    assert wire.host_store_order(6, launch) == stores
    kill = fx.Kill("e-7", "why", 4, ("n0",), 2.5)
    assert wire.kill_order(6, kill) == pb.DriverMessage(**fence, kill=pb.Kill(attempt=4, deadline_s=2.5))
    save = fx.SaveNow("e-7", "why", 4, then_stop=True, deadline_s=5.0)
    assert wire.save_order(6, save) == pb.DriverMessage(**fence, save=pb.Save(attempt=4, then_stop=True))
    stacks = fx.CollectEvidence("e-7", "why", 4, ("n0",), 5.0)
    asked = pb.CollectEvidence(attempt=4)
    assert wire.evidence_order(6, stacks) == pb.DriverMessage(**fence, collect_evidence=asked)
    check = fx.CheckNodes("e-7", "why", ("n0",), 30.0)
    numbers = pb.CheckNumbers(deadline_s=30.0)
    assert wire.check_order(6, check) == pb.DriverMessage(**fence, check_numbers=numbers)
