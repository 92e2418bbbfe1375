"""Texts with labels, from CSV files or from the paper's one-file-per-class folders."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.errors import DataError

SPLITS = ("train", "validation", "test")
_SPLIT_SHARES = (0.6, 0.2, 0.2)  # the paper's 6:2:2
_SPLIT_SEED = 0  # one for all runs: what one of them selects on, no other may test on


@dataclass(frozen=True)
class Texts:
    """Texts and their class indices into `labels`.

    Attributes:
        texts: The raw texts.
        targets: Class indices, shape (n,), int64.
        labels: Class names in sorted order.
        source: Where they were read, for messages.
    """

    texts: tuple[str, ...]
    targets: np.ndarray
    labels: tuple[str, ...]
    source: str

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def sha256(self) -> str:
        """Hash of the texts and labels in their order, whatever file format held them."""
        rows = [[text, self.labels[target]] for text, target in zip(self.texts, self.targets, strict=True)]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class TaskData:
    """The three splits of one task, over one set of labels."""

    train: Texts
    validation: Texts
    test: Texts

    @property
    def labels(self) -> tuple[str, ...]:
        return self.train.labels

    @property
    def sha256(self) -> dict[str, str]:
        return {split: getattr(self, split).sha256 for split in SPLITS}


def read_csv(path: Path, labels: Sequence[str] | None = None) -> Texts:
    """Read a UTF-8 CSV file with a header row holding at least `text` and `label`.

    Args:
        path: The file.
        labels: The only labels allowed, in class order; None takes those found, sorted.

    Raises:
        DataError: If the file is missing, lacks a column, has a blank text or a label not in `labels`.
    """
    try:
        # utf-8-sig: spreadsheets write a byte order mark in front.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"text", "label"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(
                    f"{path}: expected the columns text and label in the header row, "
                    f"found {list(reader.fieldnames or ())}"
                )
            rows = []
            for number, row in enumerate(reader, start=1):
                # DictReader keeps what is beyond the header's columns under None.
                if None in row:
                    raise DataError(
                        f"{path}: text {number} has more columns than the header row; a text with commas needs quotes"
                    )
                rows.append((row["text"] or "", (row["label"] or "").strip()))
    except FileNotFoundError as exc:
        raise DataError(f"{path}: no such file; expected a CSV file with the columns text and label") from exc
    except OSError as exc:
        raise DataError(f"{path}: expected a CSV file, found no readable file ({exc.strerror})") from exc
    except (UnicodeDecodeError, csv.Error) as exc:
        raise DataError(f"{path}: expected a UTF-8 CSV file: {exc}") from exc
    return _texts(rows, labels, str(path))


def read_class_folder(folder: Path) -> Texts:
    """Read a folder of `<label>.txt` files, one text a line: the form in which the paper's authors publish theirs.

    Raises:
        DataError: If there are fewer than two such files, or one of them holds no text or is not UTF-8.
    """
    files = sorted(folder.glob("*.txt"))
    if len(files) < 2:
        raise DataError(
            f"{folder}: expected one LABEL.txt file a class, at least two, found "
            f"{[f.name for f in files]}; for CSV name one file"
        )
    rows: list[tuple[str, str]] = []
    for file in files:
        try:
            content = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as exc:
            raise DataError(f"{file}: expected UTF-8 text, one text a line: {exc}") from exc
        # Not splitlines, which also ends a line at form feeds, U+0085 and U+2028.
        lines = [line for line in content.split("\n") if line.strip()]
        if not lines:
            raise DataError(f"{file}: the class {file.stem!r} is empty, expected at least one text")
        rows += [(line, file.stem) for line in lines]
    return _texts(rows, None, str(folder))


def read_texts(path: Path, labels: Sequence[str] | None = None) -> Texts:
    """Read a CSV file or a one-file-per-class folder."""
    if not path.is_dir():
        return read_csv(path, labels)
    texts = read_class_folder(path)
    if labels is None:
        return texts
    return _texts([(t, texts.labels[i]) for t, i in zip(texts.texts, texts.targets, strict=True)], labels, texts.source)


def load_task(folder: Path) -> TaskData:
    """Load a task: `train.csv`, `validation.csv`, `test.csv`, or one-file-per-class texts that are split 6:2:2.

    The split of a folder is always the same, whatever the seed of a run is.

    Raises:
        DataError: If no split can be read, a class is seen only outside train, or is empty outside it.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; expected train.csv, validation.csv and test.csv, or LABEL.txt files"
        )
    if (folder / "train.csv").exists():
        train = read_csv(folder / "train.csv")
        rest = [read_csv(folder / f"{split}.csv", train.labels) for split in SPLITS[1:]]
        for texts in rest:
            _require_every_class(texts)
        return TaskData(train, *rest)
    return split_texts(read_class_folder(folder), _SPLIT_SEED)


def split_texts(texts: Texts, seed: int) -> TaskData:
    """Split stratified by class, 6:2:2 as in the paper; a text that occurs more than once stays in one split.

    Raises:
        DataError: If a class has fewer different texts than there are splits.
    """
    rng = np.random.default_rng(seed)
    rows_of: dict[str, list[int]] = {}
    for row, text in enumerate(texts.texts):
        rows_of.setdefault(text, []).append(row)
    groups = list(rows_of.values())
    group_targets = np.array([texts.targets[rows[0]] for rows in groups])
    parts: list[list[int]] = [[], [], []]
    for target, label in enumerate(texts.labels):
        members = rng.permutation(np.flatnonzero(group_targets == target))
        if len(members) < len(SPLITS):
            raise DataError(
                f"{texts.source}: the class {label!r} has {len(members)} different texts, "
                f"expected at least {len(SPLITS)} to split"
            )
        n_validation, n_test = (max(1, round(share * len(members))) for share in _SPLIT_SHARES[1:])
        cuts = [len(members) - n_validation - n_test, len(members) - n_test]
        for part, chosen in zip(parts, np.split(members, cuts), strict=True):
            part.extend(row for member in chosen for row in groups[member])
    splits = []
    for name, part in zip(SPLITS, parts, strict=True):
        order = rng.permutation(part).astype(int)
        chosen_texts = tuple(texts.texts[i] for i in order)
        splits.append(Texts(chosen_texts, texts.targets[order], texts.labels, f"{texts.source} ({name})"))
    return TaskData(*splits)


def _require_every_class(texts: Texts) -> None:
    """A class without texts has no recall: averages over classes would count it as wholly missed."""
    counts = np.bincount(texts.targets, minlength=len(texts.labels))
    for label, count in zip(texts.labels, counts, strict=True):
        if not count:
            raise DataError(
                f"{texts.source}: expected at least one text of each class of train.csv, found none of {label!r}"
            )


def _texts(rows: list[tuple[str, str]], labels: Sequence[str] | None, source: str) -> Texts:
    if not rows:
        raise DataError(f"{source}: expected at least one text, found none")
    known = tuple(labels) if labels is not None else tuple(sorted({label for _, label in rows}))
    index = {label: i for i, label in enumerate(known)}
    for number, (text, label) in enumerate(rows, start=1):
        if not text.strip():
            raise DataError(f"{source}: text {number} is blank")
        if not label:
            raise DataError(f"{source}: text {number} has no label")
        if label not in index:
            raise DataError(f"{source}: text {number} has the label {label!r}, expected one of {list(known)}")
    if len(known) < 2:
        raise DataError(f"{source}: expected at least two labels, found {list(known)}")
    targets = np.array([index[label] for _, label in rows], dtype=np.int64)
    return Texts(tuple(text for text, _ in rows), targets, known, source)
