"""Splits a raw log line into its prefixes (time, host, rank, level) and its message."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from megascale.core.rules.model import Level

_MAX_PREFIXES: Final = 14
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

_LEVEL = r"DEBUG|TRACE|INFO|NOTICE|WARNING|WARN|ERROR|ERR|CRITICAL|CRIT|FATAL|ALERT|EMERG"
_HOST = r"[A-Za-z0-9][A-Za-z0-9_.\-]*"
# How clusters name machines: what stands alone before a colon is as often a device or a module.
_NODE_WORD = (
    r"node|host|worker|master|head-|trainer|compute|server-|slurm|pod-|dgx|hgx|ip-|vm-|trn|nid|cn-?\d"
    r"|[gc]pu[-_]|rack|[a-z]{1,3}\d+-[a-z]*\d|[\w.\-]+-(?:worker|master|launcher|trainer|node)-"
)
_CLOCK = r"\d{2}:\d{2}:\d{2}(?:[.,]\d+)?"
_ISO = rf"\d{{4}}[-/]\d{{2}}[-/]\d{{2}}[T ]{_CLOCK}(?:\s?(?:Z|UTC|[+-]\d{{2}}:?\d{{2}}))?"
_LEVEL_PREFIX = (
    rf"\s*[\[(<|]?(?P<level>{_LEVEL})(?![\w=/]| (?:reported|log|rate|handler))[\])>|]?"
    r"(?::[\w.\-]+(?=:)|\s*\[[\w.\-]+(?::\d+)?\])?\s{0,8}[:|\-]?\s?"
)

# One alternative per kind of prefix; each eats one following blank, so that indentation survives.
_PREFIX = re.compile(
    "|".join(
        (
            r"^[^|\[\]{}]{0,80}?\d{1,3}%\|[^|]{0,300}\| ?[\d.,]+[kMGT]?/[\d.,?]+[kMGT]? \[[^\]]{0,200}\]:? ?",
            r"^(?:[>#]{1,3} +)+",
            r"(?P<iphost>\d{1,3}(?:\.\d{1,3}){3}) (?=\[\d+\] )",
            r"^trainer/\d+ \[(?P<rank4>\d+)\]:",
            r"^libfabric:\d+:(?:\d+:)?[\w;:]+\(\):\d+<(?P<fabric>warn|info|debug|trace)> ?",
            rf"\[{_ISO} (?P<ray>[IWEFC]) \d+ \d+\] (?:\(\w+\) )?[\w./\-]+:\d+: ?",
            r"(?P<xla>[IWEF]) [\w./\-]+\.(?:cc|h):\d+\] ?",
            r"\[?(?P<letter>[EWN])\]? (?=\[MSGID)|\[(?P<gpfs>[EWNI])\] (?=\S)",
            r"(?<=: )(?P<lowlevel>debug\d?|verbose|info|notice|warning): +",
            r"<\d{1,3}>(?:1 )?",
            r"^\[\d+,(?P<mpirank>\d+)\](?:<std(?:out|err)>)?: ?",
            r"^ {0,5}(?P<srunrank>\d{1,5}): (?=\S)",
            r"^\d{6} \d{6} \d+ ",
            rf"^\[pod/(?P<podnode>{_HOST})/[\w.\-]+\] ",
            rf"^(?P<pdsh>(?=[\w.\-]*\d)(?!slurmstepd)(?:{_NODE_WORD})[\w.\-]*): (?=\S)",
            r"\d+,\d+,\d+,[-c](?:,[^;]*)?;",
            rf"\[?{_ISO}\]?(?: (?P<isohost>{_HOST})(?= (?:kernel|[\w.\-/()@]+\[\d+\]):))?[:,]? ?",
            rf"(?:[A-Z][a-z]{{2}} +\d{{1,2}} {_CLOCK})(?: (?P<host>{_HOST})(?= ))? ?",
            rf"\[(?:[A-Z][a-z]{{2}} )?[A-Z][a-z]{{2}} +\d{{1,2}} {_CLOCK}(?: \d{{4}})?\] ?",
            rf"\[ *\d+\.\d+\] ?|\[?{_CLOCK}\]? ?",
            r"(?:stdout|stderr)(?: [FP] |: ?)",
            r"(?:kern|user|daemon|syslog) *: *(?:emerg|alert|crit|err|warn|notice|info|debug) *: ?",
            rf"\[{_ISO}(?: [A-Z]{{2,3}}\d+)+\] ?",
            rf"\[(?:(?P<ranknode>{_HOST})[:/])?(?:rank|default)?[ _:]?(?P<rank>\d+)\]:? ?",
            r"\[(?P<bracketnode>(?:node|host|gpu|worker|dgx|ip)[\w.\-]*\d[\w.\-]*)\]:? ?",
            rf"(?i:rank)[ _:=]?(?P<rank2>\d+) (?:on|@) (?:host |node )?(?P<rankhost>{_HOST}?) ?[:|\]] ?",
            r"(?:rank|Rank|RANK)[ _]?(?P<rank3>\d+) ?[:|] ?",
            (
                r"\([\w.\- ]+ pid=\d+(?:, ip=(?P<rayip>[\d.]+))?\) ?|\((?:raylet|gcs_server)(?:, "
                r"ip=(?P<raylet>[\d.]+))?\) ?"
            ),
            rf"(?P<glog>[IWEF])\d{{4}} {_CLOCK} +\d+ [\w./\-]+:\d+\] ?",
            rf"\[(?P<torch>[IWEF])(?:\d{{3,4}} {_CLOCK})? [\w./\-]+:\d+\] ?",
            _LEVEL_PREFIX,
            rf"(?=[\w.]*[-_\d])(?P<compose>{_HOST}) {{0,12}}\| ",
            r"[\w.]+:[\w<>]+:\d+ - ",
            r"(?:time|ts)=\"?[^\s\"]+\"? (?=\S)",
            r"level=\"?(?P<kvlevel>[a-z]+)\"? ",
            r"(?:msg|message)=\"?",
            rf"(?P<kernelhost>{_HOST}) (?=kernel: )",
            (
                r"(?:kernel|(?P<program>[a-z][\w.\-/()@]*)\[\d+\]|(?P<daemon>slurm(?!stepd)\w*d|kubelet"
                r"|dockerd|containerd"
                r"|mmfsd?|nv-hostengine)): ?"
            ),
            r"(?<=.)[-|] (?=\S)",
            rf"[\w.\-]+(?: \d+)? - (?={_LEVEL})",
            r"(?P<launcher>srun|slurmstepd|sbatch)(?:-[\w\-]+)?: (?P<slurmerror>(?:error|fatal): )?",
            rf"\[[\w.\-/]+(?::\d+)?\] ?(?=\S*(?:{_LEVEL})\b|\[)",
        )
    )
)
_LETTER_LEVEL: Final[dict[str, Level]] = {
    "I": "info",
    "N": "info",
    "W": "warning",
    "E": "error",
    "F": "error",
    "C": "error",
}
_WORD_LEVEL: Final[dict[str, Level]] = {
    "debug": "debug",
    "trace": "debug",
    "verbose": "debug",
    "info": "info",
    "notice": "info",
    "warn": "warning",
    "warning": "warning",
}


@dataclass(frozen=True, slots=True)
class LogLine:
    """A log line without its prefixes, and what the prefixes say.

    Attributes:
        text: the line without colour codes; body: what is left after the prefixes, indentation kept.
        level: the level that the line states, None if it states none.
        node, rank: from the prefixes.
        stream: tells apart interleaved writers ("" = unknown).
        program: the daemon that wrote it, as syslog says.
    """

    text: str
    body: str
    level: Level | None = None
    node: str | None = None
    rank: int | None = None
    stream: str = ""
    program: str = ""


def clean(raw: str) -> str:
    """The line without colour codes and control characters; of a redrawn progress bar the last state."""
    text = raw.rstrip("\r\n")
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    if "\r" in text:
        text = text[text.rindex("\r") + 1 :]
    return _CONTROL.sub("", text)


def parse_level(word: str) -> Level:
    """The level that `word` names; `error` for unknown words."""
    return _WORD_LEVEL.get(word.lower(), "error")


def parse_line(text: str) -> LogLine:
    """Cuts the prefixes off a cleaned line."""
    position = 0
    level: Level | None = None
    found: dict[str, str] = {}
    for _ in range(_MAX_PREFIXES):
        match = _PREFIX.match(text, position)
        if match is None or match.end() == position:
            break
        groups = {name: value for name, value in match.groupdict().items() if value}
        if "level" in groups and _is_kernel_info(text, match.end()):
            break
        found.update(groups)
        level = _level_of(groups) or level
        position = match.end()
    rank = next((found[name] for name in _RANK_GROUPS if name in found), None)
    node = next((found[name] for name in _NODE_GROUPS if name in found), None)
    return LogLine(
        text=text,
        body=text[position:],
        level=level,
        node=node,
        rank=int(rank) if rank else None,
        stream=f"{node or ''}/{rank or ''}",
        program=next((found[name] for name in _PROGRAM_GROUPS if name in found), "").partition("(")[0],
    )


_NODE_GROUPS: Final = (
    "host",
    "isohost",
    "rankhost",
    "ranknode",
    "bracketnode",
    "rayip",
    "iphost",
    "raylet",
    "compose",
    "kernelhost",
    "podnode",
    "pdsh",
)
_RANK_GROUPS: Final = ("rank", "rank2", "rank3", "rank4", "mpirank", "srunrank")
_PROGRAM_GROUPS: Final = ("launcher", "program", "daemon")
_LETTER_GROUPS: Final = ("glog", "torch", "ray", "xla", "letter", "gpfs")
_LEVEL_GROUPS: Final = ("level", "kvlevel", "lowlevel", "fabric")


def _is_kernel_info(text: str, position: int) -> bool:
    """Whether this INFO begins a report of the kernel (hung tasks, RCU stalls), whose level is higher."""
    return text.startswith(("task ", "rcu"), position)


def _level_of(groups: dict[str, str]) -> Level | None:
    if "launcher" in groups:
        return "error" if "slurmerror" in groups else "info"
    letter = next((groups[name] for name in _LETTER_GROUPS if name in groups), None)
    if letter:
        return _LETTER_LEVEL[letter]
    word = next((groups[name] for name in _LEVEL_GROUPS if name in groups), None)
    return parse_level(word.rstrip("0123456789")) if word else None
