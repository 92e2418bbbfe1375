from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from training.data import SPLITS, TaskData, Texts, load_task, read_class_folder, read_csv, read_texts, split_texts
from training.errors import DataError

Row = tuple[str, str]
ROWS: list[Row] = [("rain, again", "sad"), ('she said "yes"', "glad"), ("so\ttired", "sad"), ("日本 — naïve", "glad")]


def write_csv(path: Path, rows: Sequence[Row], header: Sequence[str] = ("text", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_folder(folder: Path, classes: dict[str, Sequence[str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for label, texts in classes.items():
        (folder / f"{label}.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return folder


def write_task(folder: Path, **splits: Sequence[Row]) -> Path:
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        write_csv(folder / f"{split}.csv", splits.get(split, ROWS))
    return folder


def rows_of(texts: Texts) -> list[Row]:
    return [(text, texts.labels[target]) for text, target in zip(texts.texts, texts.targets, strict=True)]


def numbered(sizes: dict[str, int]) -> dict[str, Sequence[str]]:
    return {label: [f"{label} text {i}" for i in range(n)] for label, n in sizes.items()}


def test_csv_is_read_row_by_row(tmp_path: Path) -> None:
    texts = read_csv(write_csv(tmp_path / "a.csv", ROWS))
    assert rows_of(texts) == ROWS
    assert texts.targets.dtype == np.int64
    assert len(texts) == 4


def test_labels_are_sorted_whatever_the_order_of_rows(tmp_path: Path) -> None:
    texts = read_csv(write_csv(tmp_path / "a.csv", ROWS))
    assert texts.labels == ("glad", "sad")
    assert texts.targets.tolist() == [1, 0, 1, 0]


def test_given_labels_set_the_class_order(tmp_path: Path) -> None:
    texts = read_csv(write_csv(tmp_path / "a.csv", ROWS), labels=["sad", "calm", "glad"])
    assert texts.labels == ("sad", "calm", "glad")
    assert texts.targets.tolist() == [0, 2, 0, 2]


def test_csv_may_have_more_columns_and_lines_inside_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,label,text\n1,sad,"two\nlines"\n2, glad ,one\n', encoding="utf-8")
    assert rows_of(read_csv(path)) == [("two\nlines", "sad"), ("one", "glad")]


def test_csv_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    # Spreadsheets write one in front of UTF-8.
    path = write_csv(tmp_path / "a.csv", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert rows_of(read_csv(path)) == ROWS


def test_class_folder_takes_labels_from_file_names_and_skips_blank_lines(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "sad" / "glad", {"glad": ["one", "  ", "two"], "sad": ["three"]})
    assert rows_of(read_class_folder(folder)) == [("one", "glad"), ("two", "glad"), ("three", "sad")]


def test_class_folder_ends_a_text_only_at_a_line_feed(tmp_path: Path) -> None:
    # str.splitlines would also split at these.
    text = "a\x0bb\x0cc\x1cd\x85e\u2028f"
    folder = write_folder(tmp_path / "task", {"glad": [text], "sad": ["b"]})
    assert rows_of(read_class_folder(folder)) == [(text, "glad"), ("b", "sad")]


def test_hash_does_not_depend_on_the_file_format(tmp_path: Path) -> None:
    classes = {"glad": ["so, so happy", 'a "day"'], "sad": ["naïve"]}
    rows = [(text, label) for label, texts in classes.items() for text in texts]
    from_csv = read_texts(write_csv(tmp_path / "a.csv", rows))
    from_folder = read_texts(write_folder(tmp_path / "task", classes))
    assert from_csv.sha256 == from_folder.sha256


@pytest.mark.parametrize(
    "changed",
    [ROWS[::-1], ROWS[:-1], [(t, "sad") if i == 1 else (t, y) for i, (t, y) in enumerate(ROWS)], [*ROWS, ROWS[0]]],
    ids=["order", "one less", "label", "one more"],
)
def test_hash_tells_texts_labels_and_order_apart(tmp_path: Path, changed: list[Row]) -> None:
    assert read_csv(write_csv(tmp_path / "a.csv", ROWS)).sha256 != read_csv(write_csv(tmp_path / "b", changed)).sha256


def test_hash_depends_on_label_names_not_on_class_order(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ROWS)
    assert read_csv(path).sha256 == read_csv(path, labels=["sad", "glad"]).sha256
    renamed = write_csv(tmp_path / "b.csv", [(text, label.upper()) for text, label in ROWS])
    assert read_csv(path).sha256 != read_csv(renamed).sha256


@pytest.fixture
def split() -> Callable[[dict[str, int], int], TaskData]:
    def split(sizes: dict[str, int], seed: int) -> TaskData:
        rows = [(text, label) for label, texts in numbered(sizes).items() for text in texts]
        labels = tuple(sorted(sizes))
        targets = np.array([labels.index(label) for _, label in rows])
        return split_texts(Texts(tuple(text for text, _ in rows), targets, labels, "memory"), seed)

    return split


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("sizes", [{"a": 50, "b": 50}, {"a": 100, "b": 20, "c": 35}])
def test_split_is_6_2_2_in_every_class(split: Callable[..., TaskData], sizes: dict[str, int], seed: int) -> None:
    task = split(sizes, seed)
    for name, share in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        counts = Counter(label for _, label in rows_of(getattr(task, name)))
        assert counts == {label: round(share * n) for label, n in sizes.items()}


@pytest.mark.parametrize("n", [3, 4, 5, 7, 13])
def test_split_gives_every_text_to_one_split_and_every_class_to_each(split: Callable[..., TaskData], n: int) -> None:
    task = split({"a": n, "b": 40}, 3)
    parts = [rows_of(getattr(task, name)) for name in SPLITS]
    assert sum(map(len, parts)) == n + 40
    assert len({row for part in parts for row in part}) == n + 40
    assert all({label for _, label in part} == {"a", "b"} for part in parts)
    assert all(text.startswith(label) for part in parts for text, label in part)


def test_class_too_small_to_split_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"task: .*'rare'.* 2 "):
        load_task(write_folder(tmp_path / "task", numbered({"common": 30, "rare": 2})))


def test_text_that_occurs_twice_stays_in_one_split(tmp_path: Path) -> None:
    repeated = ["the same words"] * 10 + [f"good {i}" for i in range(20)]
    task = load_task(write_folder(tmp_path / "task", {"good": repeated, "bad": [f"bad {i}" for i in range(30)]}))
    holders = [name for name in SPLITS if "the same words" in getattr(task, name).texts]
    assert len(holders) == 1


def test_split_follows_its_seed(split: Callable[..., TaskData]) -> None:
    sizes = {"a": 30, "b": 30}
    assert split(sizes, 1).sha256 == split(sizes, 1).sha256
    assert split(sizes, 1).sha256 != split(sizes, 2).sha256


def test_split_mixes_the_classes(split: Callable[..., TaskData]) -> None:
    targets = split({"a": 50, "b": 50}, 0).train.targets
    assert sorted(targets.tolist()) != targets.tolist()


def test_task_with_three_csv_files_keeps_them_as_they_are(tmp_path: Path) -> None:
    parts = {"validation": [("v", "sad"), ("w", "glad")], "test": [("t", "glad"), ("u", "sad")]}
    folder = write_task(tmp_path / "task", **parts)
    task = load_task(folder)
    assert rows_of(task.train) == ROWS
    assert (rows_of(task.validation), rows_of(task.test)) == (parts["validation"], parts["test"])
    assert task.labels == task.validation.labels == task.test.labels == ("glad", "sad")
    assert task.sha256 == {split: read_csv(folder / f"{split}.csv", task.labels).sha256 for split in SPLITS}


def test_class_folder_task_is_split(tmp_path: Path) -> None:
    task = load_task(write_folder(tmp_path / "task", numbered({"glad": 10, "sad": 10})))
    assert [len(getattr(task, name)) for name in SPLITS] == [12, 4, 4]


def test_missing_csv_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv: no such file"):
        read_csv(tmp_path / "absent.csv")


@pytest.mark.parametrize("header", [("text", "class"), ("sentence", "label"), ("Text", "Label")])
def test_missing_column_is_refused_with_what_was_found(tmp_path: Path, header: tuple[str, str]) -> None:
    path = write_csv(tmp_path / "a.csv", ROWS, header)
    with pytest.raises(DataError, match=rf"a\.csv: expected the columns text and label .*{header[0]}.*{header[1]}"):
        read_csv(path)


@pytest.mark.parametrize(("content", "said"), [("", "columns text and label"), ("text,label\n", "at least one text")])
def test_csv_without_rows_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"a\.csv: expected .*{said}"):
        read_csv(path)


@pytest.mark.parametrize("text", ["", "   ", "\t\u3000"])
def test_blank_text_is_refused_with_its_row(tmp_path: Path, text: str) -> None:
    path = write_csv(tmp_path / "a.csv", [*ROWS, (text, "sad")])
    with pytest.raises(DataError, match=r"a\.csv: text 5 is blank"):
        read_csv(path)


@pytest.mark.parametrize("line", ["no label,", "no label,  ", "no label"])
def test_missing_label_is_refused_with_its_row(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text,label\none,sad\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv: text 2 has no label"):
        read_csv(path)


def test_single_label_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("one", "sad"), ("two", "sad")])
    with pytest.raises(DataError, match=r"a\.csv: expected at least two labels, found \['sad'\]"):
        read_csv(path)


def test_csv_that_is_not_utf_8_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nnaïve,sad\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv: expected a UTF-8 CSV file"):
        read_csv(path)


def test_class_file_that_is_not_utf_8_is_refused_and_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "task", numbered({"glad": 5, "sad": 5}))
    (folder / "sad.txt").write_bytes("naïve\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"sad\.txt: expected .*UTF-8"):
        read_class_folder(folder)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_label_seen_only_outside_train_is_refused_with_its_row(tmp_path: Path, split: str) -> None:
    folder = write_task(tmp_path / "task", **{split: [("one", "sad"), ("two", "angry")]})
    with pytest.raises(DataError, match=rf"{split}\.csv: text 2 has the label 'angry', expected one of .*glad.*sad"):
        load_task(folder)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_task_that_lacks_a_split_is_refused_and_the_file_named(tmp_path: Path, split: str) -> None:
    folder = write_task(tmp_path / "task")
    (folder / f"{split}.csv").unlink()
    with pytest.raises(DataError, match=rf"{split}\.csv: no such file"):
        load_task(folder)


def test_missing_task_folder_is_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        load_task(tmp_path / "nowhere")


def test_empty_class_file_is_refused_and_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "task", {"glad": ["one"], "sad": ["", " "]})
    with pytest.raises(DataError, match=r"sad\.txt: the class 'sad' is empty"):
        load_task(folder)


def test_folder_of_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least two, found \['glad\.txt'\]"):
        load_task(write_folder(tmp_path / "task", {"glad": ["one", "two"]}))


def test_folder_whose_classes_are_not_the_bundles_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "task", {"glad": ["one"], "angry": ["two"]})
    with pytest.raises(DataError, match="has the label 'angry', expected one of"):
        read_texts(folder, labels=("glad", "sad"))


def test_folder_takes_the_class_order_that_is_given(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "task", {"glad": ["one"], "sad": ["two"]})
    texts = read_texts(folder, labels=("sad", "glad"))
    assert texts.labels == ("sad", "glad")
    assert sorted(rows_of(texts)) == [("one", "glad"), ("two", "sad")]


def test_folder_in_the_place_of_a_csv_file_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "test.csv").mkdir()
    with pytest.raises(DataError, match=r"test\.csv: expected a CSV file, found no readable file"):
        read_csv(tmp_path / "test.csv")


def test_unquoted_comma_is_refused_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text,label\ngood,positive\nbad, really bad,negative\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.csv: text 2 has more columns than the header row"):
        read_csv(path)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_class_without_texts_outside_train_is_refused_and_named(tmp_path: Path, split: str) -> None:
    folder = write_task(tmp_path / "task", **{split: [("one", "sad"), ("two", "sad")]})
    with pytest.raises(
        DataError, match=rf"{split}\.csv: expected .* of each class of train\.csv, found none of 'glad'"
    ):
        load_task(folder)
