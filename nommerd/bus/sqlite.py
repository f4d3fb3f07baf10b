"""The embedded bus: two queues as rows of one table. A receipt is a random handle in the row, checked by every change."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from nommerd import logs
from nommerd.bus.base import (
    MAX_RECEIVES,
    RECEIVE_VISIBILITY_SECONDS,
    Bus,
    BusUnavailable,
    Delivery,
    Depth,
    Queue,
    rank,
)
from nommerd.job import new_id
from nommerd.messages import Message, UndecodableMessage, decode, encode
from nommerd.sqlite import Database, DatabaseUnavailable

T = TypeVar("T")
ALIVE, EXHAUSTED, UNDECODABLE = 0, 1, 2  # the column `dead`
_INSERT = "INSERT INTO messages (queue, id, priority, body, visible_at) VALUES (?, ?, ?, ?, ?)"
_NEXT = "SELECT min(visible_at) FROM messages WHERE queue = ? AND dead = ?"
_VISIBLE = """SELECT priority, count(*) FROM messages INDEXED BY messages_by_turn
              WHERE queue = ? AND dead = ? AND visible_at <= ? GROUP BY priority"""
_TAKE = """UPDATE messages SET visible_at = ?, received = received + ?, receipt = ? WHERE seq IN (
               SELECT seq FROM messages WHERE queue = ? AND dead = ? AND visible_at <= ? ORDER BY priority, seq LIMIT ?)
           RETURNING priority, seq, id, body, received"""
_BURY = "UPDATE messages SET dead = ?, received = received - 1, receipt = NULL, visible_at = 0 WHERE seq = ?"
_SHOW = "UPDATE messages SET visible_at = ?, receipt = ? WHERE seq = ? AND receipt = ?"
_DELETE = "DELETE FROM messages WHERE seq = ? AND receipt = ?"


class SqliteDelivery(Delivery):
    """A receipt of one row."""

    def __init__(self, queue: SqliteQueue, row: tuple[Any, ...], receipt: str, message: Message) -> None:
        self.message = message
        _, self._seq, self.message_id, _, self.receive_count = row
        self._queue = queue
        self._receipt = receipt

    def ack(self) -> bool:
        return self._queue._change(_DELETE, (self._seq, self._receipt))

    def release(self, delay_seconds: float = 0.0) -> bool:
        return self._queue._change(_SHOW, (time.time() + delay_seconds, None, self._seq, self._receipt), wake=True)

    def extend(self, seconds: float) -> bool:
        return self._queue._change(_SHOW, (time.time() + seconds, self._receipt, self._seq, self._receipt))


class SqliteQueue(Queue):
    """One queue of the file. Times are the machine's wall clock: it is one machine, and they only time redelivery."""

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._name = name
        self._interrupts = 0

    def send(self, message: Message, delay_seconds: float = 0.0) -> str:
        return self._put(encode(message), rank(message), delay_seconds)

    def _put(self, text: str, rank: int, delay_seconds: float = 0.0) -> str:
        id = new_id()
        row = (self._name, id, rank, text, time.time() + delay_seconds)
        self._change(_INSERT, row, wake=True)
        return id

    def receive(self, limit: int, wait_seconds: float) -> Sequence[Delivery]:
        deadline = time.monotonic() + wait_seconds
        interrupts = self._interrupts
        with self._database.listen(self._name) as news:
            while True:
                news.clear()
                next_in = self._next_in()
                found = self._take(limit, ALIVE) if next_in <= 0 < limit else []
                left = deadline - time.monotonic()
                if found or left <= 0 or limit < 1 or interrupts != self._interrupts:
                    return found
                if next_in > 0:
                    news.wait(min(left, next_in))

    def _next_in(self) -> float:
        """Seconds until a message is visible: a cheap look first, so that an empty queue costs no transaction."""
        at = self._read(lambda db: db.execute(_NEXT, (self._name, ALIVE)).fetchone()[0])
        return float("inf") if at is None else float(at) - time.time()

    def _take(self, limit: int, dead: int) -> list[Delivery]:
        receipt = new_id()
        buried: list[tuple[str, int]] = []

        def run(db: sqlite3.Connection) -> list[tuple[tuple[Any, ...], Message]]:
            taken: list[tuple[tuple[Any, ...], Message]] = []
            while len(taken) < limit:
                now = time.time()
                rows = db.execute(_TAKE, (now + RECEIVE_VISIBILITY_SECONDS, int(dead == ALIVE), receipt, self._name, dead, now,
                                          limit - len(taken))).fetchall()
                if not rows:
                    break
                taken.extend((row, message) for row in rows if (message := _sound(db, row, buried)) is not None)
            return sorted(taken, key=lambda one: one[0][:2])

        taken = self._write(run)
        for message_id, why in buried:
            logs.get().warning("dead_letter", queue=self._name, message=message_id, undecodable=why == UNDECODABLE)
        return [SqliteDelivery(self, row, receipt, message) for row, message in taken]

    def interrupt(self) -> None:
        self._interrupts += 1
        self._database.poke(self._name)

    def dead_letters(self, limit: int) -> Sequence[Delivery]:
        next_at = self._read(lambda db: db.execute(_NEXT, (self._name, EXHAUSTED)).fetchone()[0])
        return self._take(limit, EXHAUSTED) if next_at is not None and next_at <= time.time() else []

    def depth(self) -> Depth:
        now = time.time()

        def run(db: sqlite3.Connection) -> Depth:
            count = "SELECT count(*) FROM messages WHERE queue = ? AND dead"
            visible = dict(db.execute(_VISIBLE, (self._name, ALIVE, now)).fetchall())
            in_flight, = db.execute(f"{count} = 0 AND visible_at > ? AND receipt IS NOT NULL", (self._name, now)).fetchone()
            delayed, = db.execute(f"{count} = 0 AND visible_at > ? AND receipt IS NULL", (self._name, now)).fetchone()
            dead, = db.execute(f"{count} > 0", (self._name,)).fetchone()
            return Depth.of(visible, in_flight, delayed, dead)

        return self._read(run)

    def purge(self) -> None:
        self._change("DELETE FROM messages WHERE queue = ?", (self._name,))

    def _change(self, sql: str, arguments: tuple[Any, ...], wake: bool = False) -> bool:
        return self._write(lambda db: db.execute(sql, arguments).rowcount > 0, wake)

    def _write(self, run: Callable[[sqlite3.Connection], T], wake: bool = False) -> T:
        try:
            return self._database.write(run, self._name if wake else None)
        except DatabaseUnavailable as error:
            raise BusUnavailable(str(error)) from None

    def _read(self, run: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._database.read(run)
        except DatabaseUnavailable as error:
            raise BusUnavailable(str(error)) from None


class SqliteBus(Bus):
    """Both queues in one SQLite file. What shares the file's `Database` shares its transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._closed = False
        self.jobs = SqliteQueue(database, "jobs")
        self.changes = SqliteQueue(database, "changes")

    def close(self) -> None:
        """Receivers that wait end now."""
        if not self._closed:
            self._closed = True
            self.jobs.interrupt()
            self.changes.interrupt()
            self._database.close()


def _sound(db: sqlite3.Connection, row: tuple[Any, ...], buried: list[tuple[str, int]]) -> Message | None:
    """The message of a row just taken; None where it became a dead letter instead, which `buried` then tells."""
    _, seq, message_id, body, received = row
    why = EXHAUSTED
    try:
        message = decode(body)
        if received <= MAX_RECEIVES:
            return message
    except UndecodableMessage:
        why = UNDECODABLE
    db.execute(_BURY, (why, seq))
    buried.append((message_id, why))
    return None
