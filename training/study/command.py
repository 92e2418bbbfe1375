"""What `qdtrain study` does: a grid into a plan, the plan's cells through a runner, what they came to into a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from errno import EISDIR
from functools import cache as once
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

from training.data import load_task
from training.errors import ConfigError
from training.study.archive import Archive, write_archive
from training.study.cells import Cell, Options, data_digest
from training.study.grid import Plan, load_grid, plan_of
from training.study.registry import SYSTEMS, TEACHERS, setup_digest
from training.study.report import PLAN
from training.study.results import CellFolders, Split
from training.study.run import Ran, Work, run_study
from training.study.runners import make_runner
from training.study.workshop import NamedWorkshop

_FIELDS = ("section", "system", "task", "track", "teacher", "seed")


def run_grid(
    grid_path: Path,
    data: Path,
    cache: Path,
    final: bool = False,
    only: Sequence[str] | None = None,
    where: Sequence[str] = (),
    failed: bool = False,
    n_workers: int | None = None,
    ray_address: str | None = None,
    export: Path | None = None,
    timed: bool = True,
) -> Iterator[Ran]:
    """Run what is not finished of a grid, and leave plan and results for the report.

    A cache has one plan, the last grid's: a report of the cache is of that one. To report on several grids that share a
    cache, export each.

    Args:
        grid_path: TOML file of the grid.
        data: Folder with one folder a task.
        cache: Cells go into its folder `study`.
        final: Also measure on the test texts.
        only: Ids of cells to run; None for all.
        where: `FIELD=VALUE` of the cells to run: all fields that are named have one of the values that are.
        failed: Only cells that failed when they were last run.
        n_workers: Processes, without Ray.
        ray_address: Of a Ray cluster.
        export: File for the results of all the grid's finished cells, written at the end, ctrl-C among the ends. Where
            it is there already, the study goes on from it: cells whose results it has are finished, and stay in it.
        timed: Keep how long cells took: not where this machine is busy, or another than that of the other cells.

    Raises:
        ConfigError: If the grid is wrong, or names a system, a teacher or a cell that there is not, or `export` cannot
            be written.
        DataError: If a task's texts cannot be learned from.
        StudyError: If `export` is there, and is not what a study exported.
    """
    # Workers need not have this process's folder as theirs.
    data, cache = data.resolve(), cache.resolve()
    root = cache / "study"
    grid = load_grid(grid_path)
    if export is not None:
        _require_writable(export)  # a study takes days, and this is written at its end
    earlier = Archive(export) if export is not None and export.exists() else None
    digests = {task: data_digest(load_task(data / task)) for task in sorted(grid.tasks)}
    plan = plan_of(grid, digests, _setup(cache, earlier))
    if earlier is not None:
        for cell in plan.cells:
            earlier.entry(cell)  # what is damaged is told of now, not when all has run
    workshop = NamedWorkshop(SYSTEMS, TEACHERS, data, cache)
    cells = _chosen(plan, only, where, root if failed else None)
    workshop.check(cells)
    runner = make_runner(root, n_workers, ray_address)
    plan.save(root / PLAN)
    try:
        kept: Split = "test" if final else "validation"
        yield from run_study(
            cells,
            Work(workshop, root, final, timed),
            runner,
            lambda cell: earlier is not None and earlier.get(cell, kept) is not None,
        )
    finally:
        if export is not None:
            write_archive(export, plan, CellFolders(root), earlier)


def _require_writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(EISDIR, "is a folder")
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-"):
            pass
    except OSError as exc:
        raise ConfigError(f"--export {path}: expected a file that can be written ({exc.strerror})") from exc


def _setup(cache: Path, earlier: Archive | None) -> Callable[[Cell], str]:
    """`setup_digest`, asked once for cells that differ by their seed or options.

    An embedder that only a cache holds may not be in this one: its cells are then those of the earlier study, so that
    their results stay.
    """
    asked = once(partial(setup_digest, cache=cache))
    known = {} if earlier is None else {_seedless(replace(cell, setup="")): cell.setup for cell in earlier.plan.cells}

    def setup(cell: Cell) -> str:
        return asked(_seedless(cell)) or known.get(_seedless(cell), "")

    return setup


def _seedless(cell: Cell) -> Cell:
    return replace(cell, seed=0, options=Options())


def _chosen(plan: Plan, only: Sequence[str] | None, where: Sequence[str], failed_in: Path | None) -> list[Cell]:
    cells, known = plan.cells, {cell.id for cell in plan.cells}
    for name in only or ():
        if name not in known:
            raise ConfigError(f"--cell {name}: expected the id of one of the grid's {len(known)} cells")
    tags = _tags(plan)
    wanted: dict[str, set[str]] = {}
    for condition in where:
        field = condition.partition("=")[0]
        possible = sorted(tag for tag in set().union(*tags.values()) if tag.startswith(f"{field}="))
        if condition not in possible:
            raise ConfigError(
                f"--where {condition}: expected FIELD=VALUE, "
                + (f"one of {possible}" if possible else f"with a field of {list(_FIELDS)}")
            )
        wanted.setdefault(field, set()).add(condition)
    return [
        cell
        for cell in cells
        if (only is None or cell.id in only)
        and all(tags[cell] & conditions for conditions in wanted.values())
        and (failed_in is None or (failed_in / cell.id / "error.json").exists())
    ]


def _tags(plan: Plan) -> dict[Cell, set[str]]:
    """What `--where` may say of each cell."""
    tags = {
        cell: {
            f"system={cell.system}",
            f"task={cell.task}",
            f"track={cell.track}",
            f"teacher={cell.teacher or 'none'}",
            f"seed={cell.seed}",
        }
        for cell in plan.cells
    }
    for name, entries in plan.sections.items():
        for entry in entries:
            tags[entry.cell].add(f"section={name}")
    return tags
