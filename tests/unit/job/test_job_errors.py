"""Manifests that are wrong: every case names line, field, value, what is allowed, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megascale.errors import ManifestError, ManifestIssue
from megascale.job import from_mapping, load_job, parse_job

BASE = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata:
  name: job
spec:
  nodes: 2
  ranksPerNode: 1
  spareNodes: 1
  steps: 200
  runtime:
    megatron:
      model:
        preset: tiny
      parallelism:
        tensor: 1
      optimizer:
        lr: 0.002
      data:
        path: data/x
        prepareFrom: [python-stdlib]
        sequenceLength: 256
        microBatch: 4
        globalBatch: 16
  checkpoint:
    everySteps: 20
  faults:
    - kind: killRank
      rank: 1
      step: 90
"""


def issues(text: str) -> list[ManifestIssue]:
    with pytest.raises(ManifestError) as caught:
        parse_job(text, file="job.yaml")
    assert caught.value.exit_code == 2
    return caught.value.issues


def edit(old: str, new: str) -> str:
    assert BASE.count(old) == 1
    return BASE.replace(old, new)


def test_the_base_is_right() -> None:
    parse_job(BASE)


# what is replaced, by what, then line, path, and pieces of message and hint
NAMED_RULE = "{id: a, match: {class: gpu}, action: none}"
ONE_WRONG_FIELD = [
    # types and bounds
    (
        "steps: 200",
        'steps: "200"',
        9,
        "spec.steps",
        ['got "200"', "a whole number from 1 to"],
        "remove the quotes",
    ),
    ("steps: 200", "steps: two", 9, "spec.steps", ['got "two"', "a whole number from 1 to 1000000000"], None),
    ("steps: 200", "steps: 2.5", 9, "spec.steps", ["got 2.5", "a whole number"], None),
    ("steps: 200", "steps: 2e2", 9, "spec.steps", ["got 200.0", "a whole number"], "write 200"),
    ("steps: 200", "steps: -1", 9, "spec.steps", ["got -1", "from 1"], None),
    ("steps: 200", "steps:", 9, "spec.steps", ["is empty", "a whole number"], None),
    ("steps: 200", "steps: 99999999999999999999", 9, "spec.steps", ["got 99999999999999999999"], None),
    ("nodes: 2", "nodes: 0", 6, "spec.nodes", ["got 0", "from 1 to 100000"], None),
    ("nodes: 2", "nodes: true", 6, "spec.nodes", ["got true", "a whole number"], None),
    ("nodes: 2", "nodes: [2]", 6, "spec.nodes", ["got a list of 1", "a whole number"], None),
    ("nodes: 2", "nodes:", 6, "spec.nodes", ["is empty"], "leave it out for the default 1"),
    ("spareNodes: 1", "spareNodes: many", 8, "spec.spareNodes", ['got "many"', ">= 0, or auto"], None),
    ("spareNodes: 1", "spareNodes: -1", 8, "spec.spareNodes", ["got -1", ">= 0, or auto"], None),
    ("name: job", "name: My_Job", 4, "metadata.name", ['got "My_Job"', "lower-case"], None),
    ("name: job", "name: 12", 4, "metadata.name", ["got 12"], 'write "12" in quotes'),
    ("name: job", f"name: {'x' * 64}", 4, "metadata.name", ["1 to 49"], None),
    (
        "lr: 0.002",
        'lr: "3e-4"',
        17,
        "spec.runtime.megatron.optimizer.lr",
        ['got "3e-4"'],
        "remove the quotes",
    ),
    ("lr: 0.002", "lr: 0", 17, "spec.runtime.megatron.optimizer.lr", ["got 0", "> 0 and <= 100"], None),
    (
        "lr: 0.002",
        "beta2: 1.0",
        17,
        "spec.runtime.megatron.optimizer.beta2",
        ["got 1.0", ">= 0 and < 1"],
        None,
    ),
    (
        "lr: 0.002",
        "name: lmb",
        17,
        "spec.runtime.megatron.optimizer.name",
        ["one of lamb, adamw"],
        "mean lamb?",
    ),
    (
        "lr: 0.002",
        "schedule: []",
        17,
        "spec.runtime.megatron.optimizer.schedule",
        ["got []", "a section with"],
        None,
    ),
    (
        "preset: tiny",
        "preset: tinny",
        13,
        "spec.runtime.megatron.model.preset",
        ['"tinny"', "gpt-175b"],
        "mean tiny?",
    ),
    (
        "tensor: 1",
        "expert: 2",
        15,
        "spec.runtime.megatron.parallelism.expert",
        ["got 2", "cut over the tensor ranks"],
        None,
    ),
    (
        "prepareFrom: [python-stdlib]",
        "prepareFrom: python-stdlib",
        20,
        "spec.runtime.megatron.data.prepareFrom",
        ["expected a list"],
        "write [python-stdlib]",
    ),
    ("kind: killRank", "kind: killrank", 27, "spec.faults[0].kind", ["killRank, killNode"], "mean killRank?"),
    *(
        (
            "everySteps: 20",
            f'uri: "{uri}"',
            25,
            "spec.checkpoint.uri",
            [
                f'got "{uri}"',
                "a path or file:///path",
                "(not an object store such as s3://, gs:// or abfs://)",
            ],
            None,
        )
        for uri in ("s3://bucket/run", "gs://b/c", "abfs://c@a/b", "S3:b", "file://host/share", "claim:name")
    ),
    ("    everySteps: 20", "", 24, "spec.checkpoint", ["is empty"], "leave it out for the defaults"),
    # names
    ("nodes: 2", "nods: 2", 6, "spec.nods", ['unknown field "nods"'], "did you mean nodes?"),
    (
        "ranksPerNode: 1",
        "ranks_per_node: 1",
        7,
        "spec.ranks_per_node",
        ["unknown field"],
        "mean ranksPerNode?",
    ),
    ("nodes: 2", "lr: 1", 6, "spec.lr", ["unknown field"], "spec.runtime.megatron.optimizer.lr?"),
    ("nodes: 2", "num_layers: 1", 6, "spec.num_layers", ["unknown field"], "megatron.model.numLayers?"),
    ("nodes: 2", "qqqq: 1", 6, "spec.qqqq", ["unknown field"], "spec knows nodes, ranksPerNode"),
    # a typing error is one error, not an unknown and a missing field
    ("steps: 200", "step: 200", 9, "spec.step", ["unknown field"], "did you mean steps?"),
    (
        "microBatch",
        "microbatch",
        22,
        "spec.runtime.megatron.data.microbatch",
        ["unknown"],
        "mean microBatch?",
    ),
    # missing
    ("  steps: 200\n", "", 5, "spec.steps", ["is required", "a whole number"], "the job is complete after"),
    ("kind: TrainingJob\n", "", None, "kind", ["is required"], "add kind: TrainingJob"),
    # scalars with two readings
    ("nodes: 2", "suspend: yes", 6, "spec.suspend", ["yes can be read two ways", "YAML 1.1"], "write true"),
    ("name: job", "name: off", 4, "metadata.name", ["off can be read two ways"], 'write "off" in quotes'),
    ("steps: 200", "steps: 0200", 9, "spec.steps", ["0200 can be read", "octal"], "without a leading zero"),
    ("steps: 200", "steps: 1:30", 9, "spec.steps", ["1:30 can be read", "base 60"], "write a plain number"),
    ("steps: 200", "steps: 1_000", 9, "spec.steps", ["1_000 can be read"], "without underscores"),
    ("name: job", "name: 2024-01-01", 4, "metadata.name", ["a date"], 'write "2024-01-01" in quotes'),
    (
        "lr: 0.002",
        "lr: .inf",
        17,
        "spec.runtime.megatron.optimizer.lr",
        [".inf is not a finite"],
        "finite number",
    ),
    ("nodes: 2", "on: 2", 6, "spec.on", ["on can be read two ways"], 'write "on" in quotes'),
    ("nodes: 2", "<<: {a: 1}", 6, "spec.<<", ["can be read two ways"], "write the fields out"),
    ("nodes: 2", "template: {a: no}", 6, "spec.template.a", ["no can be read"], '"no" in quotes for text'),
    ("nodes: 2", "1: 2", 6, "spec.1", ["field name 1 is not text"], 'write "1" in quotes'),
    (
        "steps: 200",
        "steps: !!python/object:os.system 1",
        9,
        "spec.steps",
        ["tag", "not allowed"],
        "without a tag",
    ),
    (
        "steps: 200",
        "steps: 200\n  steps: 300",
        10,
        "spec.steps",
        ["given twice, first in line 9"],
        "remove one",
    ),
    # another kind of object
    ("kind: TrainingJob", "kind: Deployment", 2, "kind", ['got "Deployment"', "TrainingJob"], "not a job"),
    ("v1alpha1", "v1", 1, "apiVersion", ["megascale.io/v1alpha1"], "did you mean"),
    # rules between fields
    (
        "nodes: 2",
        "nodes: 3",
        23,
        "spec.runtime.megatron.data.globalBatch",
        ["16 is not a multiple of microBatch 4 x data-parallel size 3 = 12"],
        "use 12 or 24",
    ),
    (
        "tensor: 1",
        "tensor: 4",
        14,
        "spec.runtime.megatron.parallelism",
        [
            "nodes 2 x ranksPerNode 1 = 2 ranks",
            "tensor 4 x pipeline 1 x context 1 = 4",
            "2 is not a multiple of 4",
        ],
        "multiple of 4",
    ),
    (
        "preset: tiny",
        "preset: tiny\n        hiddenSize: 130",
        14,
        "spec.runtime.megatron.model.hiddenSize",
        ["130 is not a multiple of attentionHeads 4"],
        None,
    ),
    (
        "preset: tiny",
        "preset: tiny\n        hiddenSize: 12",
        14,
        "spec.runtime.megatron.model.hiddenSize",
        ["12 gives each of the 4 heads an odd width of 3"],
        "even",
    ),
    (
        "preset: tiny",
        "preset: tiny\n        kvHeads: 3",
        14,
        "spec.runtime.megatron.model.kvHeads",
        ["3 does not divide attentionHeads 4"],
        None,
    ),
    (
        "preset: tiny",
        "preset: tiny\n        vocabSize: 256",
        14,
        "spec.runtime.megatron.model.vocabSize",
        ["256 is less than the 257 token ids"],
        "use 257 or more",
    ),
    (
        "tensor: 1",
        "sequence: true",
        15,
        "spec.runtime.megatron.parallelism.sequence",
        ["tensor is 1"],
        "set tensor to 2",
    ),
    (
        "tensor: 1",
        "interleave: 2",
        15,
        "spec.runtime.megatron.parallelism.interleave",
        ["pipeline is 1"],
        "set pipeline to 2",
    ),
    ("nodes: 2", "nodes: 2\n  minNodes: 3", 7, "spec.minNodes", ["3 is more than nodes 2"], None),
    (
        "nodes: 2",
        "nodes: 4\n  minNodes: 3",
        7,
        "spec.minNodes",
        ["do not fit 3 x ranksPerNode 1"],
        "these fit: 4",
    ),
    (
        "lr: 0.002",
        "schedule: {warmupSteps: 201}",
        17,
        "spec.runtime.megatron.optimizer.schedule.warmupSteps",
        ["201 is more than spec.steps 200"],
        None,
    ),
    ("lr: 0.002", "minLr: 0.1", 17, "spec.runtime.megatron.optimizer.minLr", ["0.1 is above lr 0.002"], None),
    (
        "nodes: 2",
        "health: {silenceSeconds: 3}",
        6,
        "spec.health.silenceSeconds",
        ["3 is less than twice heartbeatSeconds 2"],
        None,
    ),
    (
        "nodes: 2",
        "detection: {hang: {steps: 0.5}}\n  nodes: 2",
        6,
        "spec.detection.hang.steps",
        ["got 0.5, expected a number from 1 to 1000"],
        None,
    ),
    (
        "nodes: 2",
        "detection: {blame: {halfLife: 60}}\n  nodes: 2",
        6,
        "spec.detection.blame.halfLife",
        ['unknown field "halfLife"'],
        "spec.detection.blame knows limit, halfLifeSeconds",
    ),
    (
        "nodes: 2",
        "detection: {shadow: [all, hang]}\n  nodes: 2",
        6,
        "spec.detection.shadow",
        ["has all beside others"],
        "write shadow: [all]",
    ),
    (
        "nodes: 2",
        "detection: {shadow: [hangs]}\n  nodes: 2",
        6,
        "spec.detection.shadow[0]",
        ['got "hangs", expected one of all, silence, hang'],
        "did you mean hang?",
    ),
    (
        "nodes: 2",
        "recovery: {budgets: {crsh: 1}}",
        6,
        "spec.recovery.budgets.crsh",
        ["no cause"],
        "mean crash?",
    ),
    (
        "nodes: 2",
        "recovery: {overrides: [{match: {cause: boom}, action: fail_job}]}",
        6,
        "spec.recovery.overrides[0].match.cause",
        ['got "boom"', "node_lost"],
        None,
    ),
    (
        "nodes: 2",
        "recovery: {overrides: [{match: {message: '(['}, action: fail_job}]}\n  nodes: 2",
        6,
        "spec.recovery.overrides[0].match.message",
        ["is not a regular expression"],
        None,
    ),
    (
        "nodes: 2",
        "recovery: {overrides: [{match: {}, action: fail_job}]}\n  nodes: 2",
        6,
        "spec.recovery.overrides[0].match",
        ["for every incident"],
        "at least one field",
    ),
    (
        "nodes: 2",
        "recovery: {overrides: [{match: {rule: xid-97}, action: fail_job}]}\n  nodes: 2",
        6,
        "spec.recovery.overrides[0].match.rule",
        ['"xid-97" is neither a built-in rule nor one of spec.logRules'],
        "did you mean xid-",
    ),
    (
        "nodes: 2",
        (
            "recovery: {overrides: [{match: {rule: pump}, action: fail_job}]}\n"
            "  logRules: [{id: pumps, match: {pattern: pump}, action: alert}]\n  nodes: 2"
        ),
        6,
        "spec.recovery.overrides[0].match.rule",
        ['"pump" is neither'],
        "did you mean pumps?",
    ),
    (
        "nodes: 2",
        (
            "recovery: {overrides: [{match: {rule: 'logRules[0]'}, action: fail_job}]}\n"
            "  logRules: [{match: {rule: xid-94}, action: alert}]\n  nodes: 2"
        ),
        6,
        "spec.recovery.overrides[0].match.rule",
        ['"logRules[0]" changes built-in rules'],
        "use xid-94",
    ),
    (
        "nodes: 2",
        (
            "recovery: {overrides: [{match: {rule: soft}, action: fail_job}]}\n"
            "  logRules: [{id: soft, match: {class: gpu}, action: alert}]\n  nodes: 2"
        ),
        6,
        "spec.recovery.overrides[0].match.rule",
        ['"soft" changes built-in rules'],
        "use class: gpu",
    ),
    ("rank: 1", "rank: 2", 28, "spec.faults[0].rank", ["2 does not exist"], "numbered 0 to 1"),
    (
        "nodes: 2",
        "recovery: {overrides: [{match: {message: '(a)\\1'}, action: fail_job}]}\n  nodes: 2",
        6,
        "spec.recovery.overrides[0].match.message",
        ["RE2 accepts: invalid escape sequence"],
        "no backreferences",
    ),
    (
        "nodes: 2",
        "logRules: [{match: {pattern: 'a(?!b)'}, action: alert}]\n  nodes: 2",
        6,
        "spec.logRules[0].match.pattern",
        ["RE2 accepts: invalid perl operator"],
        "no backreferences",
    ),
    (
        "nodes: 2",
        f"logRules: [{{match: {{pattern: {'a' * 513}}}, action: alert}}]\n  nodes: 2",
        6,
        "spec.logRules[0].match.pattern",
        ["a regular expression of 1 to 512 characters"],
        None,
    ),
    (
        "nodes: 2",
        f"logRules: [{', '.join(['{match: {class: gpu}, action: none}'] * 65)}]\n  nodes: 2",
        6,
        "spec.logRules",
        ["a list of at most 64 entries"],
        None,
    ),
    (
        "nodes: 2",
        "logRules: [{match: {rule: xid-97}, action: alert}]\n  nodes: 2",
        6,
        "spec.logRules[0].match.rule",
        ['"xid-97" is not a built-in rule'],
        "did you mean xid-",
    ),
    (
        "nodes: 2",
        f"logRules: [{NAMED_RULE}, {NAMED_RULE}]\n  nodes: 2",
        6,
        "spec.logRules[1].id",
        ["a is the name of another rule"],
        "another name",
    ),
    (
        "nodes: 2",
        "logRules: [{match: {rule: data-missing}, action: replace_node}]\n  nodes: 2",
        6,
        "spec.logRules[0].class",
        ["replace_node", "expected one of gpu, host, network, storage"],
        None,
    ),
    ("rank: 1", "", 27, "spec.faults[0].rank", ["is required for kind killRank"], "rank: 1"),
    (
        "kind: killRank",
        "kind: killDriver",
        28,
        "spec.faults[0].rank",
        ["no meaning for kind killDriver"],
        "remove",
    ),
    ("step: 90", "step: 201", 29, "spec.faults[0].step", ["201 is never reached"], "use 1 to 200"),
    (
        "step: 90",
        "step: 90\n      point: save",
        29,
        "spec.faults[0].step",
        ["no checkpoint is saved"],
        "20, 40...",
    ),
]


BREAK_SEVERAL_RULES = {"kind: killDriver"}
Case = tuple[str, str, int | None, str, list[str], str | None]
each_wrong_field = pytest.mark.parametrize(
    "case", ONE_WRONG_FIELD, ids=[f"{case[3]}={case[1][:30]}" for case in ONE_WRONG_FIELD]
)


@each_wrong_field
def test_one_wrong_field(case: Case) -> None:
    old, new, line, path, message, hint = case
    found = [issue for issue in issues(edit(old, new)) if issue.path == path]
    assert len(found) == 1, f"no single issue at {path}"
    assert found[0].file == "job.yaml"
    assert found[0].line == line
    for piece in message:
        assert piece in found[0].message
    assert (hint or "") in (found[0].hint or "")


@each_wrong_field
def test_a_single_mistake_is_a_single_issue(case: Case) -> None:
    found = issues(edit(case[0], case[1]))
    assert len(found) == 1 or case[1] in BREAK_SEVERAL_RULES, "\n".join(map(str, found))


def test_all_wrong_fields_are_reported_at_once_in_the_order_of_the_file() -> None:
    text = (
        BASE.replace("name: job", "name: J")
        .replace("nodes: 2", "nodes: 0")
        .replace("steps: 200", "steps: yes")
    )
    text = text.replace("lr: 0.002", "lr: x").replace("everySteps", "everyStep")
    assert [issue.line for issue in issues(text)] == [4, 6, 9, 17, 25]


def test_all_broken_rules_are_reported_at_once() -> None:
    text = (
        BASE.replace("tensor: 1", "tensor: 3").replace("rank: 1", "rank: 9").replace("step: 90", "step: 900")
    )
    paths = {issue.path for issue in issues(text)}
    assert {"spec.runtime.megatron.parallelism", "spec.faults[0].rank", "spec.faults[0].step"} <= paths
    assert "spec.runtime.megatron.model.attentionHeads" in paths


def refused_on_eight_nodes(runtime: dict[str, Any]) -> dict[str, str]:
    """What is wrong with `runtime` by field."""
    with pytest.raises(ManifestError) as caught:
        from_mapping(
            {
                "apiVersion": "megascale.io/v1alpha1",
                "kind": "TrainingJob",
                "metadata": {"name": "x"},
                "spec": {"steps": 1, "nodes": 8, "runtime": runtime},
            }
        )
    return {issue.path: issue.message for issue in caught.value.issues}


@pytest.mark.parametrize(
    ("layout", "path", "message"),
    [
        ({"pipeline": 8}, "model.numLayers", "4 is not a multiple of pipeline 8"),
        (
            {"pipeline": 2, "interleave": 4},
            "model.numLayers",
            "4 is not a multiple of pipeline 2 x interleave 4 = 8",
        ),
        ({"tensor": 8}, "model.attentionHeads", "4 is not a multiple of tensor 8"),
        ({"context": 2}, "parallelism.context", "context is 2, expected 1: windowed attention"),
        ({"tensor": 8, "sequence": True}, "data.sequenceLength", "4 is not a multiple of tensor 8"),
        ({"pipeline": 4, "tensor": 3}, "parallelism", "8 is not a multiple of 12"),
        ({"pipeline": 4, "interleave": 2}, "data.globalBatch", "gives 1 micro-batches per step and rank"),
    ],
)
def test_layouts_that_do_not_divide(layout: dict[str, int], path: str, message: str) -> None:
    data = {"path": "x", "sequenceLength": 4, "microBatch": 1, "globalBatch": 2}
    runtime = {"megatron": {"model": {"preset": "tiny"}, "parallelism": layout, "data": data}}
    found = refused_on_eight_nodes(runtime)
    assert message in found[f"spec.runtime.megatron.{path}"]


@pytest.mark.parametrize(
    ("ramp", "field", "message"),
    [
        ({"start": 8, "increment": 4}, "increment", "4 is not a multiple of 8"),
        ({"start": 8, "increment": 16}, "start", "8 does not reach globalBatch 32"),
        ({"start": 48, "increment": 16}, "start", "48 is more than globalBatch 32"),
    ],
)
def test_ramps_that_do_not_fit(ramp: dict[str, int], field: str, message: str) -> None:
    data = {"path": "x", "sequenceLength": 4, "microBatch": 1, "globalBatch": 32}
    runtime = {
        "megatron": {"model": {"preset": "tiny"}, "data": data | {"batchRamp": ramp | {"everySteps": 5}}}
    }
    found = refused_on_eight_nodes(runtime)
    assert message in found[f"spec.runtime.megatron.data.batchRamp.{field}"]


def test_without_preset_the_shape_is_required() -> None:
    found = issues(edit("preset: tiny", "norm: rmsnorm"))
    assert [issue.path.rpartition(".")[2] for issue in found] == ["numLayers", "hiddenSize", "attentionHeads"]
    assert all(issue.line == 12 and "preset: tiny" in (issue.hint or "") for issue in found)


def test_exactly_one_runtime() -> None:
    both = edit("  checkpoint:", "    command: {args: [x]}\n  checkpoint:")
    assert "both megatron and command" in issues(both)[0].message
    neither = BASE[: BASE.index("    megatron:")] + "    {}\n" + BASE[BASE.index("  checkpoint:") :]
    assert "neither megatron nor command" in issues(neither)[0].message


def test_command_arguments_and_environment_are_text() -> None:
    start, end = BASE.index("    megatron:"), BASE.index("  checkpoint:")
    found = issues(f"{BASE[:start]}    command: {{args: python x.py, env: {{A: 1, B: true}}}}\n{BASE[end:]}")
    hints = {issue.path: issue.hint for issue in found}
    assert hints == {
        "spec.runtime.command.args": "write [python, x.py]",
        "spec.runtime.command.env.A": 'write "1" in quotes',
        "spec.runtime.command.env.B": 'write "true" in quotes',
    }


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "is empty"),
        ("# only a comment\n", None, "is empty"),
        ("just words", None, 'got "just words", expected a mapping'),
        ("- a\n- b\n", 1, "got a list of 2"),
        (f"{BASE}---\n{BASE}", 31, "holds 2 documents"),
        (BASE.replace("  nodes", "\tnodes"), 6, "YAML syntax"),
        (BASE.replace("name: job", "name: a: b"), 4, "mapping values are not allowed here"),
        (BASE.replace("[python-stdlib]", "[python-stdlib"), 21, "that starts in line 20"),
        (BASE.replace("rank: 1", "rank: *one"), 28, "undefined alias"),
        (BASE.replace("name: job", "name: \x07"), 4, "character U+0007"),
        ("a: &x\n  b: *x\n", 1, "contains itself"),
        ("a:\n" + "[" * 800, 2, "nested more than 64 levels deep"),
        ("a: " + "x" * 2_000_000, None, "expected at most"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_files_that_cannot_be_read(text: str, line: int | None, message: str) -> None:
    (issue,) = issues(text)
    assert issue.line == line
    assert message in issue.message


def test_aliases_that_multiply_are_bounded() -> None:
    layers = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    layers += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "holds more than" in issues("\n".join(layers))[0].message


def test_aliases_work() -> None:
    text = edit("nodes: 2", "template: {spec: {affinity: {a: &x [1], b: *x}}}\n  nodes: 2")
    assert parse_job(text).spec.template.spec.affinity == {"a": [1], "b": [1]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "No such file"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.write_bytes(b"a: 1\nb: \xff\n"), "byte 0xff is not UTF-8"),
    ],
)
def test_unreadable_paths(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "job.yaml"
    make(path)
    with pytest.raises(ManifestError, match=message) as caught:
        load_job(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("section", "given", "path", "message"),
    [
        ("model", {"experts": 2, "expertsPerToken": 3}, "model.expertsPerToken", "3 is more than experts 2"),
        ("parallelism", {"tensor": 2}, "parallelism.sequence", "need sequence parallelism"),
        ("model", {"windowPattern": "SX"}, "model.windowPattern", "expected letters S"),
    ],
)
def test_choices_that_do_not_go_together(
    section: str, given: dict[str, Any], path: str, message: str
) -> None:
    data = {"path": "x", "sequenceLength": 4, "microBatch": 1, "globalBatch": 2}
    runtime: dict[str, Any] = {"model": {"preset": "tiny"}, "data": data}
    if section == "parallelism":
        runtime["model"] |= {"experts": 2}
    runtime[section] = runtime.get(section, {}) | given
    with pytest.raises(ManifestError) as caught:
        from_mapping(
            {
                "apiVersion": "megascale.io/v1alpha1",
                "kind": "TrainingJob",
                "metadata": {"name": "x"},
                "spec": {"steps": 1, "nodes": 2, "runtime": {"megatron": runtime}},
            }
        )
    found = {issue.path: issue.message for issue in caught.value.issues}
    assert message in found[f"spec.runtime.megatron.{path}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{" + ",".join(f"a{n}: 1" for n in range(90_000)) + "}", "holds more than 10000 values"),
        ("[" + "1," * 199_000 + "1]", "holds more than 10000 values"),
        ("---\na: 1\n" * 50_000, "holds more than 10000 values"),
    ],
    ids=["fields", "items", "documents"],
)
@pytest.mark.timeout(30)
def test_files_with_many_values_are_refused_early(text: str, message: str) -> None:
    (issue,) = issues(text)
    assert message in issue.message
    assert issue.line is not None


@pytest.mark.timeout(30)
def test_of_many_wrong_fields_the_first_hundred_are_named() -> None:
    found = issues(BASE + "".join(f"  wrong{n}: 1\n" for n in range(4000)))
    assert len(found) == 101
    assert found[-1].message == "3900 more fields are wrong; correct those above first"
