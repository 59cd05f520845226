"""Deletion: immediate, after finalizers, or after the kubelet has confirmed that the pod has ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from apiserver import errors, pods
from apiserver.errors import Json
from apiserver.store import Store, Stored
from apiserver.target import Options, Target
from apiserver.typed import copy


def delete(store: Store, target: Target, body: Json, options: Options) -> tuple[Stored, bool]:
    """Delete an object or begin its deletion; return it, and whether it is gone. `body`: DeleteOptions."""
    live = store.get(target.key, target.namespace, target.name)
    if live is None:
        raise target.not_found()
    wanted = body.get("preconditions") or {}
    target.check_preconditions(live.obj, wanted)
    policy = body.get("propagationPolicy") or ("Orphan" if body.get("orphanDependents") else "Background")
    if policy == "Foreground":
        raise errors.not_implemented("foreground deletion")
    grace = _grace_s(target, live.obj, body)
    if options.dry_run:
        return live, False
    obj: Json = copy(live.obj)
    meta = obj["metadata"]
    if policy == "Orphan" and "orphan" not in meta.get("finalizers", ()):
        meta["finalizers"] = [*meta.get("finalizers", ()), "orphan"]
    if not meta.get("finalizers") and not grace:
        return store.remove(target.key, target.namespace, target.name) or live, True
    before = meta.get("deletionGracePeriodSeconds")
    if meta.get("deletionTimestamp") and (before is None or before <= grace) and policy != "Orphan":
        return live, False
    meta["deletionTimestamp"] = (datetime.now(UTC) + timedelta(seconds=grace)).strftime("%Y-%m-%dT%H:%M:%SZ")
    meta["deletionGracePeriodSeconds"] = grace
    if "generation" in meta:
        meta["generation"] += 1
    return store.put(target.key, obj), False


def _grace_s(target: Target, obj: Json, body: Json) -> int:
    """Return the grace period: that of a pod on a node, 0 for everything else."""
    if target.resource.plural != "pods" or not obj["spec"].get("nodeName") or pods.is_over(obj):
        return 0
    given = body.get("gracePeriodSeconds")
    own = obj["spec"].get("terminationGracePeriodSeconds", 30)
    return int(own if given is None else max(0, given))
