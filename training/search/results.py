"""What a search found: one JSON file, and the table and plot that are made of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from matplotlib.figure import Figure

from training.config import RunConfig
from training.errors import ConfigError
from training.figures import save
from training.search.space import configure
from training.study.statistics import spread
from training.study.tables import Table, as_text

Status = Literal["done", "pruned", "failed", "infeasible"]


@dataclass(frozen=True)
class Trial:
    """One configuration.

    Attributes:
        number: In the order in which trials began.
        status: `done` with all seeds; `pruned` where the first seeds were worse than most; `failed` where the loss was
            no number; `infeasible` where the configuration may not be trained.
        values: Of every lever, by `section.field`.
        accuracies: On validation texts, one a seed.
        losses: Cross-entropy of the labels on validation texts, nats, one a seed. Unlike the loss that is trained, it
            means the same whatever the temperature and weights.
        n_trainable: The student's parameters; None where there is no such student.
        seconds: That it took.
        reason: Why it failed or is infeasible.
        repeats: Number of the earlier trial with the same values, whose results these are.
    """

    number: int
    status: Status
    values: dict[str, Any]
    accuracies: list[float]
    losses: list[float]
    n_trainable: int | None
    seconds: float
    reason: str | None
    repeats: int | None

    @property
    def accuracy(self) -> float:
        """Mean over seeds."""
        return fmean(self.accuracies)

    @property
    def rank(self) -> tuple[float, float]:
        """The larger the better: accuracy, and between equals the smaller cross-entropy."""
        # Means of the same number of right answers may differ in their last bits.
        return round(self.accuracy, 9), -fmean(self.losses)


@dataclass(frozen=True)
class SearchResult:
    """A search, finished or not.

    Attributes:
        name: Of its files.
        about: What was searched: task, teacher, space, seeds, texts and the configuration it went around; JSON.
        trials: In their order.
        importances: Share of each lever in the variance of the accuracy over done trials (fANOVA), by
            `section.field`; empty where too few trials differ.
    """

    name: str
    about: dict[str, Any]
    trials: tuple[Trial, ...]
    importances: dict[str, float]

    @property
    def ranked(self) -> list[Trial]:
        """Done trials, the best first, the earlier of equals; repeats left out."""
        done = [trial for trial in self.trials if trial.status == "done" and trial.repeats is None]
        return sorted(done, key=lambda trial: trial.rank, reverse=True)

    def configuration(self, trial: Trial) -> RunConfig:
        """The run that a trial's values make of the configuration that was searched around."""
        return configure(RunConfig.model_validate(self.about["configuration"]), trial.values)

    def save(self, folder: Path) -> None:
        """Write `<name>.json` and, where a trial is done, the best configuration as `<name>.toml`."""
        folder.mkdir(parents=True, exist_ok=True)
        best = next(iter(self.ranked), None)
        found = {
            "name": self.name,
            "about": self.about,
            "best": None if best is None else best.number,
            "importances": self.importances,
            "trials": [asdict(trial) for trial in self.trials],
        }
        _write(folder / f"{self.name}.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
        if best is not None:
            comment = (
                f"Trial {best.number} of the search {self.name}, with the teacher {self.about['teacher']}: "
                f"validation accuracy {as_text(spread(best.accuracies))}."
            )
            _write(folder / f"{self.name}.toml", as_toml(self.configuration(best), comment))


def read_search(path: Path) -> SearchResult:
    """A search's JSON file.

    Raises:
        ConfigError: If there is none or it cannot be read; names the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        trials = tuple(Trial(**trial) for trial in found["trials"])
        return SearchResult(found["name"], found["about"], trials, found["importances"])
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: no such file; expected what `qdtrain search` writes") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"{path}: expected what `qdtrain search` writes, found {exc!r}") from exc


def as_toml(config: RunConfig, comment: str) -> str:
    """A run configuration that `load_config` reads, below a comment of one line."""
    document = config.model_dump(mode="json", exclude_none=True)
    plain = {name: value for name, value in document.items() if not isinstance(value, dict)}
    lines = [f"# {comment}", *_assignments(plain)]
    for section, fields in document.items():
        if section not in plain:
            lines += ["", f"[{section}]", *_assignments(fields)]
    return "\n".join(lines) + "\n"


def table(found: SearchResult, n_best: int = 10) -> Table:
    """The best configurations, one a row, and what became of the other trials."""
    levers = list(found.about["space"])
    result = Table(["trial", *levers, "validation accuracy", "cross-entropy (nats)", "parameters"])
    for trial in found.ranked[:n_best]:
        values = [_value_text(trial.values[lever]) for lever in levers]
        figures = [as_text(spread(trial.accuracies)), as_text(spread(trial.losses)), f"{trial.n_trainable:,}"]
        result.rows.append([str(trial.number), *values, *figures])
    counts = Counter(trial.status for trial in found.trials)
    result.notes.append(
        f"{len(found.trials)} trials: "
        + ", ".join(f"{counts[status]} {status}" for status in ("done", "pruned", "failed", "infeasible"))
        + f"; {sum(trial.repeats is not None for trial in found.trials)} of them repeat an earlier one and did not run."
    )
    return result


def plot(found: SearchResult, path: Path) -> bool:
    """Validation accuracy over trials, the best so far as a line, and beside it the levers' importances, PNG.

    Returns:
        Whether there was anything to draw; without, no file is left.
    """
    scored = [trial for trial in found.trials if trial.accuracies and trial.status in ("done", "pruned")]
    if not scored:
        path.unlink(missing_ok=True)
        return False
    # Without pyplot no display is looked for and no figure stays open.
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    history, importances = figure.subplots(1, 2)
    for status, marker in (("done", "o"), ("pruned", "x")):
        points = [(trial.number, trial.accuracy) for trial in scored if trial.status == status]
        if points:
            history.scatter(*zip(*points, strict=True), marker=marker, s=14, label=status)
    done = [trial for trial in scored if trial.status == "done"]
    best = list(accumulate((trial.accuracy for trial in done), max))
    history.step([trial.number for trial in done], best, where="post", label="best so far")
    history.set_xlabel("trial", fontsize=8)
    history.set_ylabel("validation accuracy, mean over seeds", fontsize=8)
    history.set_title(found.name, fontsize=9)
    history.legend(fontsize=6)
    if found.importances:
        names = sorted(found.importances, key=lambda name: found.importances[name])
        importances.barh(names, [found.importances[name] for name in names], color="#4878a8")
        importances.tick_params(axis="y", labelsize=7)
    else:
        importances.text(0.5, 0.5, "too few trials", transform=importances.transAxes, ha="center", va="center")
    importances.set_xlabel("share of the accuracy's variance (fANOVA)", fontsize=8)
    return save(figure, path)


def _assignments(fields: dict[str, Any]) -> Sequence[str]:
    # JSON's strings, numbers, booleans and lists of them are TOML's too.
    return [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
