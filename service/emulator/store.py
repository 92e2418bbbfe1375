"""What the emulated platform remembers: jobs, their tasks and calibrations, in one sqlite3 database.

A database in a file outlives a killed process: everything is written before it is answered.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any

from service.emulator.sampling import Measurement, Sample
from service.errors import StartupError

SCHEMA_VERSION = 1

_SCHEMA = f"""
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT, protocol TEXT NOT NULL, client_ref TEXT UNIQUE, name TEXT,
    physical INTEGER NOT NULL, target_qubits TEXT NOT NULL, submitted_at REAL NOT NULL,
    replays INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE tasks (
    job INTEGER NOT NULL REFERENCES jobs (number), seq INTEGER NOT NULL, name TEXT, qasm TEXT NOT NULL,
    sha256 TEXT NOT NULL, shots INTEGER NOT NULL, doomed INTEGER NOT NULL, status TEXT NOT NULL,
    calibration TEXT, started_at REAL, finished_at REAL, sample TEXT, error TEXT, PRIMARY KEY (job, seq)
);
CREATE INDEX unfinished ON tasks (job, seq) WHERE status IN ('Queued', 'Running');
CREATE TABLE calibrations (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, calibrated_at REAL NOT NULL,
    payload TEXT NOT NULL
);
PRAGMA user_version = {SCHEMA_VERSION};
"""


class Protocol(StrEnum):
    """How a job came in."""

    QUAFU = "quafu"
    SQC = "sqc"


class Status(StrEnum):
    """How far a task or job is, in the platform's words."""

    QUEUED = "Queued"
    RUNNING = "Running"
    FINISHED = "Finished"
    PARTIALLY_FINISHED = "PartiallyFinished"
    """Of a job alone: some tasks finished, the others did not."""
    FAILED = "Failed"
    CANCELLED = "Cancelled"


@dataclass(frozen=True)
class Order:
    """One circuit of a submission.

    Attributes:
        doomed: Whether it is to fail.
    """

    qasm: str
    shots: int
    name: str | None = None
    doomed: bool = False


@dataclass(frozen=True)
class Job:
    """A submission; times are seconds since the epoch."""

    number: int
    protocol: Protocol
    client_ref: str | None
    name: str | None
    physical: bool
    target_qubits: tuple[int, ...]
    submitted_at: float
    replays: int


@dataclass(frozen=True)
class Task:
    """One circuit of a job; times are seconds since the epoch."""

    job: int
    seq: int
    name: str | None
    qasm: str
    sha256: str
    shots: int
    doomed: bool
    status: Status
    calibration: str | None
    started_at: float | None
    finished_at: float | None
    sample: Sample | None
    error: Mapping[str, Any] | None


class Store:
    """The database; used by one thread at a time, and one process.

    Args:
        path: Made if it is not there; None keeps the database in memory.

    Raises:
        StartupError: If the file cannot be used or holds something else.
    """

    def __init__(self, path: Path | None) -> None:
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            # Made in one thread and used in another where a test runs its server in one.
            self._database = sqlite3.connect(path or ":memory:", 1.0, isolation_level=None, check_same_thread=False)
            self._database.row_factory = sqlite3.Row
            # Two emulators on one file would run its tasks twice.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode = WAL")
            # A write must outlive this process, not the machine, so it waits for no disk.
            self._database.execute("PRAGMA synchronous = OFF")
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._database.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        except (OSError, sqlite3.Error) as exc:
            raise StartupError(f"the emulator cannot keep its state in {path}: {exc}") from exc
        if version not in (0, SCHEMA_VERSION):
            raise StartupError(f"{path} has the schema version {version}, expected {SCHEMA_VERSION}")

    def close(self) -> None:
        self._database.close()

    def add_job(
        self,
        protocol: Protocol,
        orders: Sequence[Order],
        *,
        submitted_at: float,
        client_ref: str | None = None,
        name: str | None = None,
        physical: bool = False,
        target_qubits: Sequence[int] = (),
    ) -> Job:
        """Write a job and its tasks, all or nothing."""
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            number = self._database.execute(
                "INSERT INTO jobs (protocol, client_ref, name, physical, target_qubits, submitted_at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (protocol, client_ref, name, physical, json.dumps(list(target_qubits)), submitted_at),
            ).lastrowid
            self._database.executemany(
                "INSERT INTO tasks (job, seq, name, qasm, sha256, shots, doomed, status) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, 'Queued')",
                [
                    (number, seq, order.name, order.qasm, digest(order.qasm), order.shots, order.doomed)
                    for seq, order in enumerate(orders)
                ],
            )
        assert number is not None
        job = self.job(number)
        assert job is not None
        return job

    def job(self, number: int) -> Job | None:
        return self._job("number = ?", number)

    def job_of(self, client_ref: str) -> Job | None:
        return self._job("client_ref = ?", client_ref)

    def jobs(self) -> list[Job]:
        """Every job, in the order of submission."""
        return [_job(row) for row in self._database.execute("SELECT * FROM jobs ORDER BY number")]

    def count_replay(self, number: int) -> None:
        self._database.execute("UPDATE jobs SET replays = replays + 1 WHERE number = ?", (number,))

    def tasks(self, job: int) -> list[Task]:
        return [_task(row) for row in self._database.execute("SELECT * FROM tasks WHERE job = ? ORDER BY seq", (job,))]

    def statuses(self, job: int) -> list[Status]:
        rows = self._database.execute("SELECT status FROM tasks WHERE job = ? ORDER BY seq", (job,))
        return [Status(row["status"]) for row in rows]

    def next_task(self) -> Task | None:
        """The first task that has not ended: one that was running when an earlier process died runs again."""
        row = self._database.execute(
            "SELECT * FROM tasks WHERE status IN ('Queued', 'Running') ORDER BY job, seq LIMIT 1"
        ).fetchone()
        return None if row is None else _task(row)

    def queue_length(self) -> int:
        """How many tasks have not ended."""
        return self._count("SELECT COUNT(*) FROM tasks WHERE status IN ('Queued', 'Running')")

    def submitted_since(self, moment: float) -> int:
        """How many tasks the quota counts: those cancelled before they started are given back."""
        return self._count(
            "SELECT COUNT(*) FROM tasks JOIN jobs ON job = number WHERE submitted_at >= ? "
            "AND NOT (status = 'Cancelled' AND started_at IS NULL)",
            moment,
        )

    def totals(self) -> dict[str, int]:
        """How many jobs, tasks and shots there ever were."""
        return {
            "jobs": self._count("SELECT COUNT(*) FROM jobs"),
            "tasks": self._count("SELECT COUNT(*) FROM tasks"),
            "shots": self._count("SELECT COALESCE(SUM(shots), 0) FROM tasks"),
        }

    def begin(self, task: Task, calibration: str, moment: float) -> None:
        self._database.execute(
            "UPDATE tasks SET status = 'Running', calibration = ?, started_at = ? WHERE job = ? AND seq = ?",
            (calibration, moment, task.job, task.seq),
        )

    def finish(self, task: Task, sample: Sample, moment: float) -> None:
        """Record what a task gave; one that was cancelled meanwhile stays so."""
        self._end(task, Status.FINISHED, moment, sample=json.dumps(asdict(sample)))

    def fail(self, task: Task, error: Mapping[str, Any], moment: float) -> None:
        """Record why a task failed; one that was cancelled meanwhile stays so."""
        self._end(task, Status.FAILED, moment, error=json.dumps(error))

    def cancel(self, job: int, moment: float) -> tuple[int, int]:
        """Cancel what has not ended; returns how many tasks were queued and how many were running."""
        statuses = self.statuses(job)
        self._database.execute(
            "UPDATE tasks SET status = 'Cancelled', finished_at = ? WHERE job = ? AND status IN ('Queued', 'Running')",
            (moment, job),
        )
        return statuses.count(Status.QUEUED), statuses.count(Status.RUNNING)

    def add_calibration(self, calibration_id: str, calibrated_at: float, payload: Mapping[str, Any]) -> None:
        self._database.execute(
            "INSERT INTO calibrations (id, calibrated_at, payload) VALUES (?, ?, ?)",
            (calibration_id, calibrated_at, json.dumps(payload)),
        )

    def calibration(self, calibration_id: str) -> dict[str, Any] | None:
        return self._calibration("SELECT payload FROM calibrations WHERE id = ?", calibration_id)

    def latest_calibration(self) -> dict[str, Any] | None:
        return self._calibration("SELECT payload FROM calibrations ORDER BY number DESC LIMIT 1")

    def n_calibrations(self) -> int:
        return self._count("SELECT COUNT(*) FROM calibrations")

    def _end(
        self, task: Task, status: Status, moment: float, *, sample: str | None = None, error: str | None = None
    ) -> None:
        self._database.execute(
            "UPDATE tasks SET status = ?, finished_at = ?, sample = ?, error = ? "
            "WHERE job = ? AND seq = ? AND status = 'Running'",
            (status, moment, sample, error, task.job, task.seq),
        )

    def _job(self, condition: str, value: int | str) -> Job | None:
        row = self._database.execute(f"SELECT * FROM jobs WHERE {condition}", (value,)).fetchone()
        return None if row is None else _job(row)

    def _calibration(self, query: str, *values: str) -> dict[str, Any] | None:
        row = self._database.execute(query, values).fetchone()
        return None if row is None else json.loads(row["payload"])

    def _count(self, query: str, *values: float) -> int:
        return int(self._database.execute(query, values).fetchone()[0])


def digest(qasm: str) -> str:
    """SHA-256 of a circuit's text, hexadecimal."""
    return sha256(qasm.encode()).hexdigest()


def _job(row: sqlite3.Row) -> Job:
    return Job(
        number=row["number"],
        protocol=Protocol(row["protocol"]),
        client_ref=row["client_ref"],
        name=row["name"],
        physical=bool(row["physical"]),
        target_qubits=tuple(json.loads(row["target_qubits"])),
        submitted_at=row["submitted_at"],
        replays=row["replays"],
    )


def _task(row: sqlite3.Row) -> Task:
    sample = json.loads(row["sample"]) if row["sample"] else None
    return Task(
        job=row["job"],
        seq=row["seq"],
        name=row["name"],
        qasm=row["qasm"],
        sha256=row["sha256"],
        shots=row["shots"],
        doomed=bool(row["doomed"]),
        status=Status(row["status"]),
        calibration=row["calibration"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        sample=sample
        and Sample(sample["counts"], tuple(Measurement(**m) for m in sample["measurements"]), sample["executed"]),
        error=json.loads(row["error"]) if row["error"] else None,
    )
