"""The `mmh` command: parse, call, exit. Everything heavy is imported by the handler that needs it.

Overrides of the configuration (`train.steps=10`) may stand anywhere on the line.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmh_ray import __version__
from mmh_ray.config import Config, QualityConfig, from_dict, load_config
from mmh_ray.errors import ConfigError, MMHError
from mmh_ray.models.shipped import BASE_MODEL
from mmh_ray.stopping import stoppable

if TYPE_CHECKING:
    import pyarrow

    from mmh_ray.bids.status import RunRecord
    from mmh_ray.distributed.harmonize import PlannedImage

log = logging.getLogger(__name__)

OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
EPILOG = """\
Any setting can be given as section.key=value, anywhere on the line: mmh train-global PREPARED train.steps=10
(a relative path that looks like that is written ./site=A).
Exit codes: 0 all done; 1 something failed; 2 unusable arguments or configuration; 130 interrupted."""
NOISY_LOGGERS = ("alembic", "fsspec", "git", "matplotlib", "mlflow", "nibabel", "PIL", "py4j", "ray", "urllib3")
NOISY_MODULES = r"(alembic|diffusers|huggingface_hub|mlflow|nibabel|nilearn|pydantic|ray|timm|torch|torchvision)(\.|$)"
REASONS_SHOWN = 10
INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""
TABLE_WIDTH = 120

HARMONIZE_FLAGS = {
    "harmonize.space": (("native", "template"), "grid of the output: the scan's own or the ICBM-152 template's"),
    "harmonize.intensity": (("unit", "source"), "0-1 of the unified domain, or back in the scan's own range"),
    "harmonize.detail": (("project", "model"), "detail from the scan, or the model's image alone"),
    "prepare.skull": (("keep", "strip"), "what becomes of everything outside the brain"),
}
"""Settings that have a flag of their own in `mmh harmonize`: values and meaning."""

Commands = argparse._SubParsersAction
Handler = Callable[[argparse.Namespace, Config], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` defaults to the command line."""
    arguments, overrides = parse(sys.argv[1:] if argv is None else argv)
    _set_up_logging(arguments.verbose)
    with stoppable():
        try:
            return arguments.handler(arguments, load_config(arguments.config, overrides))
        except MMHError as error:
            return _explained(arguments.command, error)
        except (KeyboardInterrupt, SystemExit):  # Ray's own handlers of signals leave by SystemExit, some with code 0
            print(f"mmh {arguments.command}: interrupted", file=sys.stderr)
            _end_ray()
            return INTERRUPTED


def _explained(command: str, error: MMHError) -> int:
    """Exit code of an error, which is printed."""
    log.debug("raised here:", exc_info=True)
    # An error that crossed a Ray worker carries the original, without the remote traceback, as its cause.
    print(f"mmh {command}: {getattr(error, 'cause', error)}", file=sys.stderr)
    return 2 if isinstance(error, ConfigError) else 1


def _end_ray() -> None:
    """End Ray while a second SIGTERM is ignored still: as part of the process's own end it can be cut short, and aborts."""
    if "mmh_ray.distributed.cluster" in sys.modules:
        from mmh_ray.distributed.cluster import disconnect

        disconnect()


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Arguments and the `key=value` overrides; leaves with exit code 2 and the usage when they make no sense."""
    argv = [f"--{token}" if token.startswith("model=") else token for token in argv]  # `model` is no setting but a flag
    pairs = list(
        zip(["", *argv], argv, strict=False)
    )  # what follows --archive is NAME=FOLDER, which looks like an override
    overrides = [token for before, token in pairs if _is_override(before, token)]
    arguments = build_parser().parse_args([token for before, token in pairs if not _is_override(before, token)])
    arguments.verbose = getattr(arguments, "verbose", False)
    flags = [f"{key}={vars(arguments)[key]}" for key in HARMONIZE_FLAGS if vars(arguments).get(key)]
    return arguments, overrides + flags


def _is_override(before: str, token: str) -> bool:
    return before != "--archive" and OVERRIDE.match(token) is not None


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mmh` with a subparser per command."""
    parser = argparse.ArgumentParser(
        prog="mmh",
        description="Takes the scanner out of multi-site brain MRI and leaves the person in.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mmh-ray {__version__}")
    _add_verbose(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_CommandParser)
    _add_phantom(commands)
    _add_manifest(commands)
    _add_prepare(commands)
    _add_train_global(commands)
    _add_train_target(commands)
    _add_harmonize(commands)
    _add_status(commands)
    _add_evaluate(commands)
    _add_evaluate_target(commands)
    _add_promote(commands)
    _add_demo(commands)
    return parser


class _CommandParser(argparse.ArgumentParser):
    """Takes positional arguments anywhere among the options, which argparse's own subparsers do not."""

    _nested = False

    def parse_known_args(self, args=None, namespace=None):
        """Parse options first, then positionals."""
        if self._nested:
            return super().parse_known_args(args, namespace)
        self._nested = True
        try:
            found, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._nested = False
        if unknown:  # said here, with the command's own usage
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def _add_command(commands: Commands, name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="YAML file of settings; without it, the defaults")
    _add_verbose(parser)
    parser.set_defaults(handler=handler)
    return parser


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    text = "log details, and the traceback of an error"
    parser.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help=text)


def _existing(path: str) -> str:
    """A local path must exist; a URI (s3://, gs:// ...) is left for the command to open."""
    if "://" not in path and not os.path.exists(path):  # pathlib raises where a name is too long
        raise argparse.ArgumentTypeError(f"{path}: no such file or folder; give an existing path or a URI")
    return path


def _add_phantom(commands: Commands) -> None:
    parser = _add_command(commands, "phantom", _phantom, "make a simulated multi-site BIDS archive with known truth")
    parser.add_argument("out", metavar="OUT", help="folder to make the archive in")
    parser.add_argument("--sites", type=int, metavar="N", help="scanners to simulate")
    parser.add_argument("--subjects-per-site", type=int, metavar="N", help="subjects scanned at one site only")
    parser.add_argument("--travelers", type=int, metavar="N", help="subjects scanned at every site")
    parser.add_argument("--spacing", type=float, dest="spacing_mm", metavar="MM", help="isotropic voxel edge in mm")
    parser.add_argument("--lesions", type=float, metavar="SHARE", help="share of subjects with lesions, 0-1")
    parser.add_argument("--seed", type=int, metavar="N", help="same seed, same bytes")


def _phantom(arguments: argparse.Namespace, config: Config) -> int:
    keys = [field.name for field in dataclasses.fields(config.phantom)]
    flags = {key: getattr(arguments, key) for key in keys if getattr(arguments, key, None) is not None}
    phantom = dataclasses.replace(config.phantom, **flags)
    from mmh_ray.distributed.phantom import make_archive

    make_archive(arguments.out, phantom)
    return 0


def _add_manifest(commands: Commands) -> None:
    parser = _add_command(commands, "manifest", _manifest, "list every image of a BIDS archive in a Parquet table")
    parser.add_argument("bids", metavar="BIDS", type=_existing, help="BIDS archive")
    parser.add_argument("out", metavar="OUT.parquet", help="table to write")


def _manifest(arguments: argparse.Namespace, config: Config) -> int:
    from mmh_ray.distributed.manifest import build_manifest

    _log_statuses(build_manifest(arguments.bids, arguments.out, config))
    log.info("wrote %s", arguments.out)
    return 0


def _log_statuses(manifest: pyarrow.Table) -> None:
    """Log how many images can be used, and why the others cannot."""
    from mmh_ray.bids.status import count_reasons

    counts = Counter(manifest["status"].to_pylist())
    log.info("%d images: %s", manifest.num_rows, _as_text(counts))
    reasons = count_reasons(manifest.select(["uri", "reason"]).to_pylist())
    for reason, count in list(reasons.items())[:REASONS_SHOWN]:
        log.warning("%d x %s", count, reason)
    if len(reasons) > REASONS_SHOWN:
        log.warning("and %d more reasons: see the column `reason`", len(reasons) - REASONS_SHOWN)


def _add_prepare(commands: Commands) -> None:
    parser = _add_command(commands, "prepare", _prepare, "bring every image of a manifest to the working grid")
    parser.add_argument("manifest", metavar="MANIFEST", type=_existing, help="table made by `mmh manifest`")
    parser.add_argument("out", metavar="OUT", help="folder or URI for the Parquet shards")


def _prepare(arguments: argparse.Namespace, config: Config) -> int:
    from mmh_ray.distributed.prepare import prepare

    outcome = prepare(arguments.manifest, arguments.out, config)
    if outcome.failed:
        log.warning("%d images could not be prepared", outcome.failed)
    return 1 if outcome.failed else 0


def _add_train_global(commands: Commands) -> None:
    parser = _add_command(commands, "train-global", _train_global, "train and register the global harmonizer")
    text = "shards made by `mmh prepare`; without them the model learns from simulation alone (configs/base.yaml)"
    parser.add_argument("prepared", metavar="PREPARED", nargs="?", type=_existing, help=text)


def _train_global(arguments: argparse.Namespace, config: Config) -> int:
    from mmh_ray.distributed.train import train_global

    model = train_global(arguments.prepared, config)
    print(f"bundle {model.bundle}\nmodel {model.model_uri}")
    return 0


def _add_train_target(commands: Commands) -> None:
    text = "train and register an adapter per target site (target.site=NAME)"
    parser = _add_command(commands, "train-target", _train_target, text)
    parser.add_argument("prepared", metavar="PREPARED", type=_existing, help="shards made by `mmh prepare`")
    _add_model(parser)


def _train_target(arguments: argparse.Namespace, config: Config) -> int:
    from mmh_ray.distributed.train_target import train_targets

    for target in train_targets(arguments.prepared, arguments.model, config):
        print(f"target {target.site}: bundle {target.bundle}, model {target.model_uri}")
    return 0


def _add_harmonize(commands: Commands) -> None:
    parser = _add_command(
        commands, "harmonize", _harmonize, "write harmonized derivatives of a BIDS archive, or of a scan"
    )
    parser.add_argument("bids", metavar="BIDS", type=_existing, help="BIDS archive; or one scan, NAME.nii.gz")
    parser.add_argument("out", metavar="OUT", help="folder for the derivatives and the ledger; of one scan its file")
    parser.add_argument("level", metavar="participant", nargs="?", choices=["participant"], help="analysis level")
    _add_model(parser)
    _add_list(parser, "--participant-label", "only these subjects, with or without `sub-`")
    _add_list(parser, "--sequence", "only these BIDS suffixes, for example T1w; of one scan its own")
    parser.add_argument("--mask", metavar="FILE.nii.gz", type=_existing, help="brain mask of one scan")
    _add_list(parser, "--target", "move the images to these sites' looks (names, target bundles or registered models)")
    text = "a scan in BIDS naming whose look the images of its sequence are to take on"
    parser.add_argument("--target-image", metavar="FILE.nii.gz", type=_existing, help=text)
    for key, (choices, text) in HARMONIZE_FLAGS.items():
        parser.add_argument(f"--{key.partition('.')[2]}", dest=key, choices=choices, help=f"{text} (the setting {key})")
    parser.add_argument("--retry-failed", action="store_true", help="only images that failed or were refused before")
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be done and refused, and why; write nothing"
    )


def _add_list(parser: argparse.ArgumentParser, flag: str, text: str) -> None:
    parser.add_argument(flag, nargs="+", action="extend", default=[], metavar=flag[2].upper(), help=text)


def _add_model(parser: argparse.ArgumentParser) -> None:
    text = (
        f"{BASE_MODEL} (the default, which the package brings), a bundle folder or its s3:// or gs:// URI, or "
        "models:/NAME@ALIAS; also model=..."
    )
    parser.add_argument("--model", default=BASE_MODEL, help=text)


def _harmonize(arguments: argparse.Namespace, config: Config) -> int:
    if os.path.isfile(arguments.bids):
        return _harmonize_scan(arguments, config)
    if arguments.mask:
        raise ConfigError("--mask with an archive", "a mask of one scan", "Put masks beside the scans, as BIDS has it.")
    from mmh_ray.harmonization.job import Job

    subjects = tuple(label.removeprefix("sub-") for label in arguments.participant_label)
    sequences, retry = tuple(arguments.sequence), arguments.retry_failed
    targets, image = tuple(arguments.target), arguments.target_image
    job = Job(arguments.bids, arguments.out, arguments.model, config, subjects, sequences, retry, targets, image)
    if arguments.dry_run:
        from mmh_ray.distributed.harmonize import plan

        return _show_plan(plan(job))
    from mmh_ray.distributed.harmonize import harmonize

    counts = harmonize(job)
    log.info("images: %s", _as_text(counts))
    if counts.get("failed", 0) or counts.get("refused", 0):
        log.warning("some images failed: see %s", Path(arguments.out, "report.html"))
        return 1
    return 0


def _harmonize_scan(arguments: argparse.Namespace, config: Config) -> int:
    """One file to another, in this process."""
    given = [flag for flag in _ARCHIVES_ONLY if vars(arguments)[flag.lstrip("-").replace("-", "_")]]
    if given or len(arguments.sequence) > 1:
        received = f"{', '.join(given) or '--sequence with several'} for one scan, {arguments.bids}"
        raise ConfigError(received, "a BIDS archive for it", "Leave it out, or give the archive.")
    from mmh_ray.harmonization.one_scan import harmonize_file, load

    sequence = arguments.sequence[0] if arguments.sequence else None
    flags = harmonize_file(arguments.bids, arguments.out, load(arguments.model, config), sequence, arguments.mask)
    for flag in flags:
        log.warning("look at it: %s", flag)
    log.info("wrote %s", arguments.out)
    return 0


_ARCHIVES_ONLY = ("--participant-label", "--target", "--target-image", "--retry-failed", "--dry-run")
"""Flags of `mmh harmonize` that make no sense for one scan."""


def _show_plan(rows: Sequence[PlannedImage]) -> int:
    """A line per image on stdout, the counts on stderr."""
    for row in rows:
        print("\t".join(filter(None, (row["action"], row["image_id"], row["reason"]))))
    counts = Counter(row["action"] for row in rows)
    log.info("would %s; nothing was written", _as_text(counts))
    return 1 if counts["fail"] or counts["refuse"] else 0


def _add_status(commands: Commands) -> None:
    parser = _add_command(commands, "status", _status, "how far a run of `mmh harmonize` has come")
    parser.add_argument("out", metavar="OUT", type=_existing, help="folder of the derivatives")
    text = "write OUT/report.html anew, as after a run that was killed"
    parser.add_argument("--report", action="store_true", help=text)


def _status(arguments: argparse.Namespace, _config: Config) -> int:
    from mmh_ray.bids.status import run_status

    status = run_status(arguments.out)
    print(status.as_text())
    if not arguments.report:
        return 0
    from mmh_ray.bids.ledger import current_rows
    from mmh_ray.quality.run_report import write_cohort_report

    quality = _bounds_of(status.record)
    return 0 if write_cohort_report(arguments.out, status.record, current_rows(arguments.out), quality) else 1


def _bounds_of(record: RunRecord) -> QualityConfig:
    """Bounds of the figures that the run used; the defaults where its record is damaged."""
    try:
        return from_dict(QualityConfig, record.settings.get("quality", {}), "quality.")
    except (MMHError, OverflowError) as error:
        log.warning("bounds of the quality figures are the defaults: those of the run's record are damaged (%s)", error)
        return QualityConfig()


def _add_evaluate(commands: Commands) -> None:
    parser = _add_command(commands, "evaluate", _evaluate, "compare scans, baselines and the outputs of any methods")
    archive = (
        "raw=BIDS, the scans (or the table made by `mmh manifest`); ours=OUT, made by `mmh harmonize`; any other name and "
        "folder of volumes in BIDS naming is a method to compare with; ours_twice=OUT2 is OUT harmonized again"
    )
    parser.add_argument("--archive", required=True, action="append", metavar="NAME=FOLDER", type=_archive, help=archive)
    parser.add_argument(
        "--out", required=True, help="folder for evaluation.json, per_image.parquet, report.html, figures"
    )
    truth = "derivatives/truth of a simulated archive, for the measures that need the truth"
    parser.add_argument("--truth", metavar="FOLDER", type=_existing, help=truth)
    labels = "folder of label maps *_dseg.nii.gz in BIDS naming, drawn by others; otherwise those in raw's derivatives"
    parser.add_argument("--labels", metavar="DIR", type=_existing, help=labels)
    text = (
        "registered model that made `ours` (models:/NAME@ALIAS or models:/NAME/VERSION): the figures are kept with it"
    )
    parser.add_argument("--model", help=text)


def _archive(text: str) -> tuple[str, str]:
    name, found, folder = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text}: no name; give NAME=FOLDER, for example raw=/data/bids")
    return name, _existing(folder)


def _evaluate(arguments: argparse.Namespace, config: Config) -> int:
    from rich.console import Console

    from mmh_ray.distributed.evaluate import evaluate
    from mmh_ray.evaluation.report.table import as_table
    from mmh_ray.evaluation.statistics.summary import by_sequence

    archives, model = dict(arguments.archive), None
    if len(archives) < len(arguments.archive):
        raise ConfigError("two archives of one name", "a name of its own for each", "Rename one of them.")
    if arguments.model:
        from mmh_ray.tracking.promotion import check_model, keep_with_model

        model = check_model(arguments.model, archives, config)
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    outcome = evaluate(archives, arguments.out, config, arguments.truth, model, arguments.labels)
    console.print(as_table(by_sequence(outcome)))
    if labels := outcome["about"].get("labels"):
        from mmh_ray.evaluation.report.labels_table import labels_table

        console.print(labels_table(labels))
    if model:
        keep_with_model(model, arguments.out, config)
    return 0


def _add_evaluate_target(commands: Commands) -> None:
    text = "how near scans of other sites come to a target site, on subjects who were scanned at both"
    parser = _add_command(commands, "evaluate-target", _evaluate_target, text)
    parser.add_argument("manifest", metavar="MANIFEST", type=_existing, help="table made by `mmh manifest`")
    parser.add_argument("site", metavar="SITE", help="target site")
    parser.add_argument("unified", metavar="GLOBAL", type=_existing, help="derivatives without --target")
    parser.add_argument("moved", metavar="MOVED", type=_existing, help="derivatives with --target or --target-image")
    parser.add_argument("out", metavar="OUT.json", help="file for the measures")
    text = "name of the target, if it is not SITE: of a --target-image its file name without .nii.gz"
    parser.add_argument("--target", metavar="NAME", help=text)
    truth = "derivatives/truth of a simulated archive"
    parser.add_argument("--truth", metavar="FOLDER", type=_existing, help=truth)


def _evaluate_target(arguments: argparse.Namespace, config: Config) -> int:
    from rich.console import Console

    from mmh_ray.distributed.evaluate_target import MEASURES, evaluate_target
    from mmh_ray.evaluation.report.table import as_table
    from mmh_ray.evaluation.target_metrics import METHODS, SHOWN
    from mmh_ray.provenance import write_json

    folders = arguments.unified, arguments.moved
    given = arguments.manifest, arguments.site, *folders, config
    results = evaluate_target(*given, arguments.truth, METHODS, arguments.target)
    write_json(Path(arguments.out), results)
    shown = {sequence: {SHOWN[name]: row for name, row in methods.items()} for sequence, methods in results.items()}
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(as_table(shown, (*MEASURES, "truth_nrmse")))
    return 0


def _add_promote(commands: Commands) -> None:
    parser = _add_command(commands, "promote", _promote, "give a model another's alias if its evaluation is better")
    parser.add_argument(
        "model", metavar="MODEL", help="models:/NAME/VERSION or models:/NAME@ALIAS, evaluated with --model"
    )
    text = "who must be beaten, for example: --if better-than champion; the alias moves to MODEL"
    parser.add_argument("--if", dest="condition", nargs=2, required=True, metavar=("better-than", "ALIAS"), help=text)


def _promote(arguments: argparse.Namespace, config: Config) -> int:
    word, alias = arguments.condition
    if word != "better-than":
        raise ConfigError(f"--if {word} {alias}", "better-than ALIAS", "Write --if better-than champion.")
    from mmh_ray.tracking.promotion import promote

    decision = promote(arguments.model, alias, config)
    print("\n".join([*decision.lines, decision.outcome]))
    return 0 if decision.passed else 1


def _add_demo(commands: Commands) -> None:
    parser = _add_command(commands, "demo", _demo, "run the whole way, phantom to evaluation, on this machine")
    parser.add_argument("out", metavar="OUT", nargs="?", default="demo", help="folder for everything (default: demo)")


def _demo(arguments: argparse.Namespace, config: Config) -> int:
    from mmh_ray.demo import run

    run(arguments.out, config)
    return 0


def _as_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "none"


def _set_up_logging(verbose: bool) -> None:
    """Plain lines with the time on stderr; libraries speak only when something is wrong."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    logging.getLogger("mmh_ray").setLevel(logging.DEBUG if verbose else logging.INFO)
    if verbose:
        return
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # MLflow sets its own levels when it is imported
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR if name == "nibabel" else logging.WARNING)
    warnings.filterwarnings("ignore", module=NOISY_MODULES)


if __name__ == "__main__":
    sys.exit(main())
