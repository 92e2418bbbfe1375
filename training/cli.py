"""`qdtrain teach | distil | evaluate | adapt | export-embedder | search | study | report`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.errors import StudentError
from training.errors import StudyError, TrainingError
from training.search.command import add_arguments as add_search_arguments

_STOPPED = 130  # the shell's exit code for a program that ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a wrong input, 130 after ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    options.invocation = shlex.join(["qdtrain", *arguments])
    # Third-party deprecations are for this project's tests to see, not for its users.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        options.run(options)
    except (TrainingError, StudentError, OSError) as exc:
        # transformers explains some errors over many lines.
        print(f"qdtrain: {' '.join(str(exc).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nqdtrain: stopped; the same command goes on from the last checkpoint, if there was one", file=sys.stderr
        )
        return _STOPPED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qdtrain", description="Teach a language model, distil it into a circuit.")
    commands = parser.add_subparsers(dest="command", required=True)

    teach = commands.add_parser("teach", help="fine-tune a teacher with LoRA and cache its logits")
    _add_run_options(teach)
    teach.set_defaults(run=_teach)

    distil = commands.add_parser("distil", help="distil the teacher into a student and export its bundle")
    _add_run_options(distil)
    distil.add_argument("--out", type=Path, required=True, help="folder of the bundle, such as models/bundles/emotion")
    distil.add_argument(
        "--final", action="store_true", help="also measure on the test texts: once, when the configuration is final"
    )
    distil.set_defaults(run=_distil)

    evaluate = commands.add_parser("evaluate", help="measure a bundle on labelled texts")
    evaluate.add_argument("bundle", type=Path, help="folder of a bundle")
    evaluate.add_argument(
        "texts", type=Path, help="CSV file with the columns text,label, or a folder of LABEL.txt files"
    )
    evaluate.add_argument(
        "--engine", choices=("compiled", "mindquantum"), default="compiled", help="how the circuit is computed"
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.set_defaults(run=_evaluate)

    export = commands.add_parser("export-embedder", help="export a Hugging Face encoder for serving without torch")
    export.add_argument("source", help="`minilm-l6`, or the folder of a Hugging Face encoder")
    export.add_argument("out", type=Path, help="folder of the embedder, such as models/embedders/minilm-l6")
    export.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    export.add_argument("--max-tokens", type=int, default=128)
    export.set_defaults(run=_export)

    adapt = commands.add_parser("adapt", help="adapt one encoder to all tasks, from labels and teachers")
    adapt.add_argument("config", type=Path, help="such as training/configs/adapt.toml")
    adapt.add_argument("--data", type=Path, required=True, help="folder with one folder a task")
    adapt.add_argument("--out", type=Path, required=True, help="folder of the encoder, for export-embedder")
    adapt.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="teachers, encoders and checkpoints (default .cache)"
    )
    adapt.set_defaults(run=_adapt)

    search = commands.add_parser(
        "search", help="search for the configuration whose student is best on validation texts"
    )
    add_search_arguments(search)
    search.set_defaults(run=_search)

    study = commands.add_parser("study", help="run the cells of a grid that are not finished")
    study.add_argument("grid", type=Path, help="grid of cells, such as training/configs/study.toml")
    study.add_argument("--data", type=Path, required=True, help="folder with one folder a task")
    study.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="teachers, embeddings, cells (default .cache)"
    )
    study.add_argument("--final", action="store_true", help="also measure on the test texts: once, when all is final")
    study.add_argument("--cell", action="append", metavar="ID", help="only this cell; may be repeated")
    study.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="only cells of this section, system, task, track, teacher or seed; one field may be given several values",
    )
    study.add_argument("--failed", action="store_true", help="only cells that failed when they were last run")
    study.add_argument(
        "--export",
        type=Path,
        metavar="FILE",
        help="write the grid's results, for the report, here; results it has are kept",
    )
    study.add_argument(
        "--untimed",
        action="store_true",
        help="keep no times: this machine is busy, or is not the one that timed the other cells",
    )
    where = study.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, help="processes on this machine, instead of Ray")
    where.add_argument("--ray-address", help="of a Ray cluster; `auto` finds it, `local` (as without) starts Ray here")
    study.set_defaults(run=_study)

    report = commands.add_parser("report", help="write the study's tables and plots from its finished cells")
    read = report.add_mutually_exclusive_group()
    read.add_argument(
        "--cells",
        type=Path,
        default=Path("docs/study/cells.json"),
        help="what `study --export` wrote (default docs/study/cells.json)",
    )
    read.add_argument("--cache", type=Path, help="read the cells of the last `study` here instead, finished or not")
    report.add_argument("--out", type=Path, default=Path("docs"), help="folder of study.md and study/ (default docs)")
    report.add_argument("--split", choices=("test", "validation"), default="test", help="texts that figures are of")
    report.set_defaults(run=_report)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="run configuration, such as training/configs/emotion.toml")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train.csv, validation.csv, test.csv, or LABEL.txt files"
    )
    parser.add_argument(
        "--teacher", help="folder of a causal or sequence-classification model, instead of the configured"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="teachers, embeddings and runs (default .cache)"
    )


# torch and transformers take seconds to import, so each command imports what it runs.


def _teach(options: argparse.Namespace) -> None:
    from training.pipeline import Pipeline

    pipeline = Pipeline.open(options.config, options.data, options.cache, options.teacher)
    for split, found in pipeline.teacher_metrics().items():
        print(f"{pipeline.config.task} teacher {pipeline.teacher.key}: {split} accuracy {found['accuracy']:.4f}")


def _distil(options: argparse.Namespace) -> None:
    from models.folders import require_replaceable
    from training.pipeline import Pipeline

    require_replaceable(options.out.resolve(), "manifest.json")  # before hours of teaching
    pipeline = Pipeline.open(options.config, options.data, options.cache, options.teacher)
    bundle = pipeline.distil(options.out, options.invocation, options.final)
    for split, systems in bundle.manifest.metrics.items():
        for system, found in systems.items():
            print(f"{split:<11} {system:<20} accuracy {found['accuracy']:.4f}  f1 {found['f1']:.4f}")
    print(f"{bundle.id}: {bundle.manifest.parameter_counts['total']} trainable parameters, in {options.out}")


def _evaluate(options: argparse.Namespace) -> None:
    from models.bundle import load_bundle
    from models.embedder import Embedder, find_embedder
    from training.data import read_texts
    from training.evaluate import evaluate_bundle

    bundle = load_bundle(options.bundle)
    texts = read_texts(options.texts, bundle.manifest.labels)
    embedder = Embedder(find_embedder(bundle.manifest.embedder["name"], options.bundle.resolve().parent.parent))
    bundle.verify(embedder)
    found = evaluate_bundle(bundle, texts, embedder, options.engine)
    print(json.dumps(found) if options.json else _as_table(bundle.id, found))


def _export(options: argparse.Namespace) -> None:
    from training.export import export_embedder

    info = export_embedder(options.source, options.out, options.precision, options.max_tokens)
    print(json.dumps(info, indent=1))


def _adapt(options: argparse.Namespace) -> None:
    from training.encoders.command import run

    print(run(options))


def _study(options: argparse.Namespace) -> None:
    from training.study.command import run_grid

    failed = []
    runs = run_grid(
        options.grid,
        options.data,
        options.cache,
        final=options.final,
        only=options.cell,
        where=options.where,
        failed=options.failed,
        n_workers=options.workers,
        ray_address=options.ray_address,
        export=options.export,
        timed=not options.untimed,
    )
    for ran in runs:
        print(f"{ran.status:<8} {ran.cell}", flush=True)
        if ran.status == "failed":
            failed.append(ran)
    for ran in failed:
        print(f"{ran.cell.id} failed: {' '.join(ran.message.split())}", file=sys.stderr)
    if failed:
        raise StudyError(f"{len(failed)} cells failed; each folder's error.json says more, `--failed` runs them again")


def _report(options: argparse.Namespace) -> None:
    from training.study.report import report_study

    print(report_study(options.cells, options.cache, options.out, options.split))


def _search(options: argparse.Namespace) -> None:
    from training.search.command import run

    print(run(options))


def _as_table(name: str, found: dict[str, Any]) -> str:
    width = max(len(label) for label in found["labels"])
    lines = [f"{name} on {found['n']} texts"]
    lines += [f"  {metric:<10} {found[metric]:.4f}" for metric in ("accuracy", "precision", "recall", "f1")]
    lines.append("  true label, then how often each label was predicted: " + ", ".join(found["labels"]))
    for label, row in zip(found["labels"], found["confusion"], strict=True):
        lines.append(f"  {label:<{width}} " + " ".join(f"{count:>6}" for count in row))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
