"""The README's example, run as it stands against the shipped bundles."""

from __future__ import annotations

import re

from benchmarks.readme import README, example_output


def test_readme_example_prints_what_the_readme_says() -> None:
    readme = README.read_text(encoding="utf-8")
    written = re.search(r"<!-- example -->\n```text\n(.*?)```", readme, re.DOTALL)
    assert written is not None
    expected, found = written[1].splitlines(), example_output(readme).splitlines()
    assert len(found) == len(expected) == 2
    for wanted, line in zip(expected, found, strict=True):
        label, score, text = wanted.split(maxsplit=2)
        found_label, found_score, found_text = line.split(maxsplit=2)
        assert (found_label, found_text) == (label, text)
        # Encoders round differently from one processor to the next.
        assert abs(float(found_score) - float(score)) <= 0.02
