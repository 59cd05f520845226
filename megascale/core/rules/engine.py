"""Applies log rules to lines and records. The result depends on the text and the rules alone."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from megascale.core.contract.policy import PYTHON_EXCEPTION
from megascale.core.rules.line import LogLine, clean, parse_line
from megascale.core.rules.model import EXCEPTION, LEVELS, UNEXPLAINED, Action, Level, LogRule, Verdict
from megascale.core.rules.places import find_node, find_peer

_MAX_STREAMS: Final = 4096
_MAX_SHAPES: Final = 8192
_DIGITS: Final = re.compile(r"\d+")
_MAX_LINE: Final = 4096  # characters looked at; what identifies a line stands in front
# Daemons that take no part in a job: their broken connections and failed logins are not faults of the job.
_BYSTANDERS: Final = re.compile(
    r"sshd(?:-session)?|login|su|sudo|cron|crond|anacron|v?ftpd|xinetd|telnetd|klogind|rlogind|rshd|named"
    r"|systemd-(?:logind|udevd|networkd|resolved|timesyncd)|postfix/\w+|sendmail|dovecot|snmpd|httpd"
    r"|nginx|apache2|squid|cupsd"
    r"|avahi-daemon|dhclient|dhcpd|NetworkManager|polkitd|logrotate|smbd|nmbd|winbindd|sssd|nscd|gdm|rsyslogd"
    r"|auditd"
)
_STATES_ERROR: Final = re.compile(r"[EF]\d{4} \d\d:")  # glog writes the level as a letter
_TRACEBACK = "Traceback (most recent call last)"
_FRAME = re.compile(r'^\s*(?:\|\s*)*File ".*", line \d+')
_CHAIN = re.compile(r"(?:During handling of the above exception|The above exception was the direct cause)")
_EXCEPTION = re.compile(r"^(?:\w+\.)*[A-Za-z_]\w*(?:: |:?$)")
_ACTION_ORDER: Final[dict[Action, int]] = {
    "none": 0,
    "alert": 1,
    "restart": 2,
    "fail_job": 3,
    "replace_node": 4,
}


class RuleSet:
    """Log rules in the order in which they are tried; the first that matches a line counts."""

    def __init__(self, rules: Iterable[LogRule]) -> None:
        self.rules: tuple[LogRule, ...] = tuple(rules)
        by_word: dict[str, list[int]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._always: tuple[int, ...] = tuple(i for i, rule in enumerate(self.rules) if not rule.words)
        for index, rule in enumerate(self.rules):
            for word in rule.words:
                by_word.setdefault(word, []).append(index)
        words = [(word, tuple(indices)) for word, indices in by_word.items()]
        self._with_digits = [item for item in words if _DIGITS.search(item[0])]
        self._without_digits = [item for item in words if not _DIGITS.search(item[0])]

    def named(self, identifier: str) -> LogRule | None:
        """The rule of that name, or None."""
        return next((rule for rule in self.rules if rule.id == identifier), None)

    def candidates(self, text: str) -> list[int]:
        """Indices of the rules that may match, in order, by a cheap test that excludes most lines.

        Logs repeat lines that differ in numbers only, so the answer for all words without digits is
        remembered by the line's shape.
        """
        lowered = f"{text.lower()} "  # a word that ends with a blank is found at the end too
        shape = _DIGITS.sub("0", lowered)
        known = self._shapes.get(shape)
        if known is None:
            if len(self._shapes) >= _MAX_SHAPES:
                self._shapes.clear()
            known = tuple(i for word, indices in self._without_digits if word in shape for i in indices)
            self._shapes[shape] = known
        found = {*self._always, *known}
        for word, indices in self._with_digits:
            if word in lowered:
                found.update(indices)
        return sorted(found)

    def match(self, line: LogLine, candidates: Sequence[int]) -> LogRule | None:
        """The first rule that applies to the line, or None."""
        for index in candidates:
            rule = self.rules[index]
            if line.level is not None and not _covers(rule, line.level):
                continue
            if rule.program is not None and not rule.program.fullmatch(line.program):
                continue
            if rule.pattern.search(line.body) and not (rule.unless and rule.unless.search(line.body)):
                return rule
        return None


def _covers(rule: LogRule, level: Level) -> bool:
    return LEVELS.index(rule.min_level) <= LEVELS.index(level) <= LEVELS.index(rule.max_level)


class LineClassifier:
    """Classifies a stream of lines, remembering per writer whether a Python traceback is open.

    Frames and source lines of a traceback are not classified; its last line is.
    """

    def __init__(self, rules: RuleSet, *, node: str | None = None) -> None:
        self._rules = rules
        self._node = node
        self._tracebacks: OrderedDict[str, None] = OrderedDict()
        self._after_frame = False

    @property
    def in_context(self) -> bool:
        """Whether what the next line means depends on lines before it: a traceback is open."""
        return bool(self._tracebacks) or self._after_frame

    def feed(self, raw: str) -> Verdict:
        """Classify one line."""
        text = clean(raw[:_MAX_LINE])
        candidates = self._rules.candidates(text)
        plain = not candidates and not self._tracebacks and not self._after_frame
        if plain and "Traceback" not in text and 'File "' not in text and not _STATES_ERROR.match(text):
            return Verdict(node=self._node)
        line = parse_line(text)
        in_traceback = self._in_traceback(line)
        if self._is_source(line, in_traceback=in_traceback):
            return self._verdict(None, line)
        if _BYSTANDERS.fullmatch(line.program):
            return self._verdict(None, line)
        if in_traceback:
            self._tracebacks.pop(line.stream, None)
        rule = self._rules.match(line, candidates)
        unexplained = rule is None or rule.category == "unknown"
        if unexplained and in_traceback and _EXCEPTION.match(line.body):
            return self._verdict(None, line, unknown_exception=True)
        if rule is None and line.level == "error":
            return self._unexplained(line)
        return self._verdict(rule, line)

    def _unexplained(self, line: LogLine) -> Verdict:
        """A line that states the level of an error and that no rule explains."""
        node = line.node or find_node(line.body) or self._node
        return Verdict(
            "unknown",
            "none",
            "unknown-error",
            weight=UNEXPLAINED,
            node=node,
            rank=line.rank,
            line=line.text,
        )

    def _in_traceback(self, line: LogLine) -> bool:
        if _TRACEBACK in line.body or line.stream in self._tracebacks:
            self._tracebacks[line.stream] = None
            self._tracebacks.move_to_end(line.stream)
            if len(self._tracebacks) > _MAX_STREAMS:
                self._tracebacks.popitem(last=False)
            return True
        return False

    def _is_source(self, line: LogLine, *, in_traceback: bool) -> bool:
        """Lines inside a traceback that are not its outcome, and source lines under a lone frame."""
        body = line.body
        after_frame, self._after_frame = self._after_frame, bool(_FRAME.match(body))
        if self._after_frame or (after_frame and body[:1].isspace()):
            return True
        if not in_traceback:
            return False
        return not body.strip() or body[:1].isspace() or _TRACEBACK in body or bool(_CHAIN.match(body))

    def _verdict(self, rule: LogRule | None, line: LogLine, *, unknown_exception: bool = False) -> Verdict:
        node = line.node or find_node(line.body) or self._node
        if unknown_exception:
            return Verdict(
                "user_code",
                "restart",
                PYTHON_EXCEPTION,
                weight=EXCEPTION - 10,
                node=node,
                rank=line.rank,
                line=line.text,
            )
        if rule is None:
            return Verdict(node=node, rank=line.rank)
        return Verdict(
            category=rule.category,
            action=rule.action,
            rule=rule.id,
            scope=rule.scope,
            weight=rule.weight,
            node=node,
            peer=find_peer(line.body) if rule.category in ("network", "storage") else None,
            rank=line.rank,
            line=line.text,
        )


def outweighs(new: Verdict, old: Verdict) -> bool:
    """Whether `new` counts for a record rather than the earlier `old`.

    Hardware before exceptions before peers before symptoms; of two exceptions the later one, since it
    ends the process; else the one with the stronger action, then the earlier one.
    """
    if (new.category == "benign") != (old.category == "benign"):
        return old.category == "benign"
    if new.weight != old.weight:
        return new.weight > old.weight
    if new.weight == EXCEPTION:
        return True
    return _ACTION_ORDER[new.action] > _ACTION_ORDER[old.action]


def classify_text(text: str, rules: RuleSet, *, node: str | None = None) -> Verdict:
    """Classify a record of one or several lines.

    Args:
        node: where the record comes from, if known; a node that a line names takes precedence.
    """
    classifier = LineClassifier(rules, node=node)
    best: Verdict | None = None
    named: str | None = None
    for raw in text.splitlines() or [""]:
        verdict = classifier.feed(raw)
        named = named or verdict.node or find_node(clean(raw[:_MAX_LINE]))
        if best is None or outweighs(verdict, best):
            best = verdict
    if best is None:
        return Verdict(node=node)
    if best.node is None and named is not None:
        return Verdict(
            best.category,
            best.action,
            best.rule,
            best.scope,
            best.weight,
            named,
            best.peer,
            best.rank,
            best.line,
        )
    return best
