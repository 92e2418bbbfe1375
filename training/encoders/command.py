"""`qdtrain adapt`: from a TOML file, the tasks' texts and their teachers to an encoder's folder."""

from __future__ import annotations

import argparse

from training.encoders.adapt import Adaptation
from training.encoders.config import load_adapt_config
from training.study.teachers import TEACHERS


def run(options: argparse.Namespace) -> str:
    """Adapt the encoder that `options` name and say how it does on validation texts."""
    config = load_adapt_config(options.config)
    found = Adaptation(config, TEACHERS, options.data, options.cache, options.out, options.invocation).run()
    lines = [
        f"{task:<11} validation accuracy {measured['accuracy']:.4f}" for task, measured in found["validation"].items()
    ]
    trained, total = found["trained_parameters"], found["parameters"]
    return "\n".join([*lines, f"{trained:,} of {total:,} parameters trained, in {options.out}"])
