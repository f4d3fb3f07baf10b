"""The select expressions of the SimpleDB store: quoting, and what each search looks for.

SimpleDB compares text and sorts by one attribute only. So what a list is sorted by is one text that holds all of it, its
numbers padded (`place`, `sweep_text`, `webhook_text`), and a page is a range of that text. What comes before the key in
such a text has a fixed width or cannot hold the separator.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from nommerd.job import Job, Key, Sweep
from nommerd.store.base import JobQuery
from nommerd.store.cursor import Cursor, microseconds

Where = str  # what follows `where`, with its `order by`
NEVER = "~"  # after every number, so no range finds it
COMPARISONS_MAX = 20  # in one expression
TEXT_BYTES = 1000  # of a value that is compared; SimpleDB takes 1,024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OFFSET = 10**18  # makes every time a number of 19 digits, those before 1970 too
_AFTER_SLASH = "0"  # the character behind "/"

PLACE, STATE, STATE_IN, PRESET, CODE, RECIPE = "place", "state", "state_in", "preset", "code", "recipe"
FINISHED, ENDED, SWEEP, WEBHOOK, LABEL = "finished", "ended", "sweep", "webhook", "label:"


def quoted(value: str) -> str:
    """A value, as it stands in an expression."""
    return "'" + value.replace("'", "''") + "'"


def quoted_name(name: str) -> str:
    """The name of an attribute or domain, as it stands in an expression."""
    return "`" + name.replace("`", "``") + "`"


def compared(name: str, operator: str, value: str) -> str:
    """One comparison."""
    return f"{quoted_name(name)} {operator} {quoted(value)}"


def within(name: str, low: str, high: str, *, behind: str | None = None, order: str = "asc") -> Where:
    """Items whose attribute is at or after `low` (after `behind`, where that is given) and before `high`, in its order."""
    lower = compared(name, ">=", low) if behind is None else compared(name, ">", behind)
    return f"{lower} and {compared(name, '<', high)} order by {quoted_name(name)} {order}"


def padded(number: int) -> str:
    """A whole number of microseconds, negative ones too, as text that sorts as the number does."""
    return f"{min(max(number + _OFFSET, 0), 10 * _OFFSET - 1):019d}"


def seconds_padded(at: float) -> str:
    """Seconds since the epoch, likewise."""
    return padded(round(at * 1_000_000))


def named(text: str | None) -> str:
    """A text that may be missing or empty, as a value that is neither."""
    return NEVER if text is None else f"={text}"


def place(project: str, created: int, id: str = "") -> str:
    """Where a job stands in its project's list; `created` in microseconds since the epoch."""
    return f"{_escaped(project)}/{padded(created)}/{id}"


def state_in(project: str, state: str) -> str:
    """A project's jobs in a state share this value."""
    return f"{state}/{project}"


def sweep_text(kind: Sweep | None, at: float | None, key: Key) -> str:
    """When and in what order the sweeper looks at a job; NEVER for one it need not look at."""
    return NEVER if kind is None or at is None else f"{kind.value}/{seconds_padded(at)}/{_in_order(key)}"


def webhook_text(at: float | None, key: Key) -> str:
    """When and in what order the job's next event is due; NEVER without one."""
    return NEVER if at is None else f"{seconds_padded(at)}/{_in_order(key)}"


def due_for_sweep(kind: Sweep, now: float, after: Job | None) -> Where:
    """Jobs of this kind whose time has come, the longest overdue first."""
    behind = None if after is None else sweep_text(kind, after.sweep_at, after.key)
    return within(SWEEP, f"{kind.value}/", f"{kind.value}/{seconds_padded(now)}{_AFTER_SLASH}", behind=behind)


def webhooks_due(now: float, after: Job | None) -> Where:
    """Jobs whose next event is due, the longest overdue first."""
    behind = None if after is None else webhook_text(after.webhook_at, after.key)
    return within(WEBHOOK, "", f"{seconds_padded(now)}{_AFTER_SLASH}", behind=behind)


def finals(finished_before: datetime) -> Where:
    """Jobs that ended before then, oldest first."""
    return within(FINISHED, "", padded(microseconds(finished_before)))


def ended_text(project: str, finished: datetime | None) -> str:
    """Where a job stands among its project's finals; NEVER for one that is none."""
    return NEVER if finished is None else f"{_escaped(project)}/{padded(microseconds(finished))}"


def ended_at(text: str) -> datetime:
    """When a job ended, of its `ended_text`."""
    return _EPOCH + timedelta(microseconds=int(text.rpartition("/")[2]) - _OFFSET)


def ended(project: str, since: datetime) -> Where:
    """A project's jobs that ended at or after then, newest first."""
    return within(ENDED, ended_text(project, since), f"{_escaped(project)}{_AFTER_SLASH}", order="desc")


def oldest(project: str, state: str) -> Where:
    """A project's jobs in a state, oldest first."""
    found = within(PLACE, f"{_escaped(project)}/", f"{_escaped(project)}{_AFTER_SLASH}")
    return f"{compared(STATE_IN, '=', state_in(project, state))} and {found}"


def one_of(name: str, values: Iterable[str]) -> Where:
    """Items whose attribute is one of these; each value counts as a comparison."""
    return f"{quoted_name(name)} in ({', '.join(map(quoted, values))})"


def listed(query: JobQuery) -> Where:
    """A page of the list, newest first. Of many labels only as many as an expression takes: look at the others yourself.

    Raises InputError for a cursor that was never given out.
    """
    project = f"{_escaped(query.project)}"
    low = f"{project}/" if query.since is None else f"{project}/{padded(microseconds(query.since))}"
    high = f"{project}{_AFTER_SLASH}"
    if query.cursor is not None:
        cursor = Cursor.decode(query.cursor)
        high = place(query.project, cursor.created, clipped(cursor.id))
    filters = [one_of(STATE, sorted(query.states))] if query.states else []
    filters += [compared(name, "=", named(value)) for name, value in ((PRESET, query.preset), (CODE, query.error_code))
                if value is not None]
    room = COMPARISONS_MAX - 4 - len(query.states)
    filters += [compared(LABEL + name, "=", named(value)) for name, value in sorted(query.labels.items())[:room]]
    return " and ".join([*filters, within(PLACE, low, high, order="desc")])


def unsearchable(query: JobQuery) -> bool:
    """Whether it names something so long that no job can have it."""
    texts = (query.project, query.preset or "", query.error_code or "", *query.labels, *query.labels.values())
    return any(len(text.encode()) > TEXT_BYTES for text in texts)


def clipped(text: str) -> str:
    """The text, cut to what can be compared."""
    return text.encode()[:TEXT_BYTES // 2].decode(errors="ignore")


def _escaped(text: str) -> str:
    return quote(text, safe="")


def _in_order(key: Key) -> str:
    """Sorts as the key does: a space comes before all that a project's name may hold."""
    return f"{key.project} {key.id}"

