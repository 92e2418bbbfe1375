"""The grid: which cells the study has, and in which table or plot each of them is a row, a bar or a point."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from training import toml
from training.errors import ConfigError
from training.study.cells import Cell, Options, Track

Section = Literal[
    "main",
    "losses",
    "teachers",
    "related",
    "hardware",
    "size",
    "qubits",
    "layers",
    "fidelity",
    "readout",
    "shots",
]
Row = str | int | float


class Sweep(toml.Section):
    """One cell for each value of an option; the value is the point on the axis."""

    option: str
    values: tuple[int | float, ...] = Field(min_length=1)


class Line(toml.Section):
    """One system in one section, for every task and seed."""

    system: str
    track: Track = "frozen"
    teacher: str | None = None
    row: str | None = Field(None, description="what the table calls it; the system's name where there is none")
    options: dict[str, Any] = Field(default_factory=dict)
    sweep: Sweep | None = None
    tasks: tuple[str, ...] | None = Field(None, min_length=1, description="some of the grid's; None for all")
    seeds: tuple[int, ...] | None = Field(None, description="instead of the grid's")


class Grid(toml.Section):
    """The study as a TOML file states it."""

    tasks: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    students: tuple[str, ...] = Field((), description="the quantum systems, which are held against the controls")
    controls: tuple[str, ...] = ()
    sections: dict[Section, tuple[Line, ...]]


@dataclass(frozen=True)
class Entry:
    """A cell and the row, bar or point that it is part of."""

    cell: Cell
    row: Row


@dataclass(frozen=True)
class Plan:
    """The study's cells by section; a cell that is in several is run once.

    Attributes:
        tasks: In the order of the tables.
        students: Systems that are held against the controls.
        controls: Systems that a student has to beat.
        sections: Entries in the order of the rows.
    """

    tasks: tuple[str, ...]
    students: tuple[str, ...]
    controls: tuple[str, ...]
    sections: Mapping[str, tuple[Entry, ...]]

    @property
    def cells(self) -> list[Cell]:
        """Every cell once, in order."""
        return list(dict.fromkeys(entry.cell for entries in self.sections.values() for entry in entries))

    def entries(self, section: Section, task: str | None = None) -> list[Entry]:
        return [e for e in self.sections.get(section, ()) if task is None or e.cell.task == task]

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": list(self.tasks),
            "students": list(self.students),
            "controls": list(self.controls),
            "sections": {
                name: [{"row": entry.row, "cell": entry.cell.to_json()} for entry in entries]
                for name, entries in self.sections.items()
            },
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Plan:
        sections = {
            name: tuple(Entry(Cell.from_json(e["cell"]), e["row"]) for e in entries)
            for name, entries in found["sections"].items()
        }
        return cls(tuple(found["tasks"]), tuple(found["students"]), tuple(found["controls"]), sections)

    def save(self, path: Path) -> None:
        """Write the plan where `read_plan` finds it, so that a report knows what was not run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def read_plan(path: Path) -> Plan:
    """The plan of the last `qdtrain study`.

    Raises:
        ConfigError: If there is none or it cannot be read; names the file.
    """
    try:
        return Plan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: no such file; expected the plan that `qdtrain study` writes") from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ConfigError(f"{path}: expected the plan that `qdtrain study` writes, found {exc!r}") from exc


def load_grid(path: Path) -> Grid:
    """Read a grid.

    Raises:
        ConfigError: If the file is missing, is not TOML, has an unknown or wrong field, or a line with a task that is
            none of the grid's; names the field.
    """
    grid = toml.checked(Grid, toml.read_toml(path, "a TOML grid"), str(path), "the grid")
    for section, lines in grid.sections.items():
        for number, line in enumerate(lines):
            # It would run, and stand in no table.
            if others := sorted(set(line.tasks or ()) - set(grid.tasks)):
                raise ConfigError(
                    f"{path}: sections.{section}.{number}.tasks: expected some of {list(grid.tasks)}, found {others}"
                )
    return grid


def plan_of(grid: Grid, data: Mapping[str, str], setup: Callable[[Cell], str]) -> Plan:
    """The grid's cells.

    Args:
        grid: What the study has.
        data: `data_digest` of each task.
        setup: `Cell.setup` of a cell that has none yet.
    """
    sections: dict[str, tuple[Entry, ...]] = {
        name: tuple(
            replace(entry, cell=replace(entry.cell, setup=setup(entry.cell)))
            for line in lines
            for entry in _entries(grid, line, data)
        )
        for name, lines in grid.sections.items()
    }
    return Plan(grid.tasks, grid.students, grid.controls, sections)


def _entries(grid: Grid, line: Line, data: Mapping[str, str]) -> list[Entry]:
    name = line.row or line.system
    points: list[tuple[Row, dict[str, Any]]] = [(name, {})]
    if line.sweep is not None:
        points = [(value, {line.sweep.option: value}) for value in line.sweep.values]
    return [
        Entry(
            Cell(line.system, task, line.track, line.teacher, seed, data[task], Options({**line.options, **point})), row
        )
        for row, point in points
        for task in line.tasks or grid.tasks
        for seed in line.seeds or grid.seeds
    ]
