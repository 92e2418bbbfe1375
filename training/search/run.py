"""The search: Optuna suggests configurations, each is trained with a few seeds, validation texts choose the best."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from tqdm import tqdm

from training.config import RunConfig
from training.errors import ConfigError, DivergedError, StudyError
from training.locks import alone
from training.search.results import SearchResult, Status, Trial
from training.search.space import Space, configure


@dataclass(frozen=True)
class Score:
    """Accuracy on validation texts, and the cross-entropy of their labels, nats."""

    accuracy: float
    loss: float


class Trainee(Protocol):
    """What a search trains."""

    def n_trainable(self, config: RunConfig) -> int:
        """Parameters that would be trained; nothing is."""

    def train(self, config: RunConfig) -> Score:
        """Train one configuration with its own seed.

        Raises:
            DivergedError: If the loss is no number.
        """


@dataclass(frozen=True)
class Search:
    """A search that goes on where an earlier one of the same name stopped; another process with that name waits.

    Attributes:
        name: Of its files.
        base: The configuration it goes around: the first trial, where the space holds it. Its seed is the first of the
            trials' and the sampler's.
        space: Levers.
        trainee: What is trained.
        folder: `<name>.journal` has all that Optuna knows, `<name>.json` and `<name>.toml` what it comes to.
        about: Whatever else a search of this name was and has to be again; JSON.
        n_seeds: Runs of a configuration.
        max_parameters: Configurations with more are refused.
    """

    name: str
    base: RunConfig
    space: Space
    trainee: Trainee
    folder: Path
    about: dict[str, Any]
    n_seeds: int
    max_parameters: int

    def run(self, n_trials: int, seconds: float | None = None, progress: bool = True) -> SearchResult:
        """Search until there are `n_trials`, those of earlier calls among them.

        Whatever stops it, the files are written and the next call takes up the trial that was running.

        Args:
            n_trials: In all, whatever became of them.
            seconds: No trial starts after so many.
            progress: Show a progress bar.

        Raises:
            ConfigError: If the search of this name was another one.
            StudyError: If no trial was done, and the JSON file says why; or if the journal cannot be read.
        """
        with alone(self.folder / f"{self.name}.lock"), _quiet():
            study = self._open()
            end = None if seconds is None else time.monotonic() + seconds
            bar = tqdm(total=n_trials, desc=f"search {self.name}", unit="trial", disable=not progress)
            try:
                while len(found := _trials(study, self.space)) < n_trials:
                    bar.n = len(found)
                    bar.set_postfix(_best_text(found))
                    if end is not None and time.monotonic() >= end:
                        break
                    # Of its own for each trial: a search that was stopped suggests what an unbroken one would.
                    study.sampler = _sampler(self.base.seed, len(found))
                    self._try(study, study.ask())
                bar.n = len(found)
                bar.set_postfix(_best_text(found))
            finally:
                bar.close()
                result = SearchResult(self.name, self._about(), _trials(study, self.space), _importances(study))
                result.save(self.folder)
        if not result.ranked:
            raise StudyError(
                f"{self.name}: none of {len(result.trials)} trials was done; {self.folder / self.name}.json says why"
            )
        return result

    def _open(self) -> optuna.Study:
        path = self.folder / f"{self.name}.journal"
        try:
            study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path))),
                study_name=self.name,
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(),
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise StudyError(f"{path}: expected the journal of a search, found {exc!r}; delete it") from exc
        about = self._about()
        found = study.user_attrs.get("about", about)
        if found != about:
            changed = [name for name in about if found.get(name) != about[name]]
            raise ConfigError(
                f"{path}: a search with another {' and '.join(changed)}; choose another --name, or delete the file"
            )
        study.set_user_attr("about", about)
        # Nobody else searches: whatever runs was stopped. The sampler, which forgets failures, suggests it again.
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        point = self.space.encode(self.base)
        if point is not None and not _ended(study):
            study.enqueue_trial(point)
        return study

    def _about(self) -> dict[str, Any]:
        return {
            **self.about,
            "task": self.base.task,
            "configuration": self.base.model_dump(mode="json"),
            "space": self.space.to_json(),
            "n_seeds": self.n_seeds,
        }

    def _try(self, study: optuna.Study, trial: optuna.Trial) -> None:
        """Train what a trial suggests and tell Optuna what came of it."""
        self.space.suggest(trial)
        earlier = _earlier(study, trial)
        if earlier is not None:
            _repeat(study, trial, earlier)
            return
        begin = time.monotonic()
        try:
            config = configure(self.base, self.space.decode(trial.params))
            self._require_size(trial, config)
        except ConfigError as exc:
            trial.set_user_attr("reason", str(exc))
            # Not a failure to Optuna, which forgets those: samplers keep away from what was pruned.
            study.tell(trial, state=TrialState.PRUNED)
            return
        state = self._train(trial, config)
        trial.set_user_attr("seconds", time.monotonic() - begin)
        study.tell(trial, trial.user_attrs["accuracy"] if state == TrialState.COMPLETE else None, state=state)

    def _require_size(self, trial: optuna.Trial, config: RunConfig) -> None:
        found = self.trainee.n_trainable(config)
        trial.set_user_attr("n_trainable", found)
        if found > self.max_parameters:
            raise ConfigError(f"{found} trainable parameters, expected at most {self.max_parameters} (Table 3)")

    def _train(self, trial: optuna.Trial, config: RunConfig) -> TrialState:
        scores: list[Score] = []
        for seed in range(config.seed, config.seed + self.n_seeds):
            try:
                scores.append(self.trainee.train(config.model_copy(update={"seed": seed})))
            except DivergedError as exc:
                trial.set_user_attr("reason", f"seed {seed}: {exc}")
                return TrialState.FAIL
            trial.set_user_attr("accuracies", [score.accuracy for score in scores])
            trial.set_user_attr("losses", [score.loss for score in scores])
            trial.set_user_attr("accuracy", fmean(score.accuracy for score in scores))
            trial.report(trial.user_attrs["accuracy"], len(scores))
            if len(scores) < self.n_seeds and trial.should_prune():
                return TrialState.PRUNED
        return TrialState.COMPLETE


_STATUS: dict[TrialState, Status] = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log says what the progress bar and the result file say."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    drawn = np.random.SeedSequence([seed, number]).generate_state(1)
    return optuna.samplers.TPESampler(seed=int(drawn[0]))


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that something came of; one that failed without a reason was stopped."""
    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state.is_finished() and (t.state != TrialState.FAIL or "reason" in t.user_attrs)]


def _earlier(study: optuna.Study, trial: optuna.Trial) -> optuna.trial.FrozenTrial | None:
    return next((found for found in _ended(study) if found.params == trial.params), None)


def _repeat(study: optuna.Study, trial: optuna.Trial, earlier: optuna.trial.FrozenTrial) -> None:
    for name, value in earlier.user_attrs.items():
        trial.set_user_attr(name, value)
    trial.set_user_attr("repeats", earlier.user_attrs.get("repeats", earlier.number))
    trial.set_user_attr("seconds", 0.0)
    study.tell(trial, earlier.value if earlier.state == TrialState.COMPLETE else None, state=earlier.state)


def _trials(study: optuna.Study, space: Space) -> tuple[Trial, ...]:
    return tuple(_trial(trial, space) for trial in _ended(study))


def _trial(trial: optuna.trial.FrozenTrial, space: Space) -> Trial:
    attributes = trial.user_attrs
    return Trial(
        trial.number,
        "infeasible" if trial.state == TrialState.PRUNED and "reason" in attributes else _STATUS[trial.state],
        space.decode(trial.params),
        attributes.get("accuracies", []),
        attributes.get("losses", []),
        attributes.get("n_trainable"),
        attributes.get("seconds", 0.0),
        attributes.get("reason"),
        attributes.get("repeats"),
    )


def _best_text(trials: tuple[Trial, ...]) -> dict[str, str]:
    done = [trial.accuracy for trial in trials if trial.status == "done"]
    return {"best": f"{max(done):.4f}"} if done else {}


def _importances(study: optuna.Study) -> dict[str, float]:
    values = {t.value for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}
    if len(values) < 2:  # no variance to share
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except RuntimeError:  # values that differ in their last bits alone
        return {}
    return {name: float(share) for name, share in found.items()}
