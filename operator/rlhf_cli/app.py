"""The `rlhf` command line: parses, calls, prints, and turns errors into exit codes.

The only module here that talks to people beside `view`. Nothing is decided here.
"""

import importlib.util
import json
from pathlib import Path
from typing import Annotated

import typer

from rlhf_api.errors import RLHFError, UsageError
from rlhf_api.names import ConditionType, ExitCode
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_cli.files import write_atomically
from rlhf_cli.local_job import (
    check_inputs,
    describe,
    local_warnings,
    localized,
    parse_mounts,
    sampling_warnings,
    unmounted_claims,
)
from rlhf_cli.os_errors import explained
from rlhf_cli.output import make_console, show_every_letter
from rlhf_cli.results import failure_logs, result_lines, resumptions, summarize
from rlhf_cli.runner import LAUNCHER, Outcome, Runner, goes_on
from rlhf_cli.trainer_checks import row_counts
from rlhf_cli.view import make_view
from rlhf_cli.workdir import Workdir
from rlhf_operator.planning.conditions import find_condition, is_true
from rlhf_operator.planning.guardrails import (
    HELP,
    RESUME,
    awaits_resume,
    is_failed_by_guardrail,
)
from rlhf_operator.planning.statuses import is_finished, stages_of

_CLICK_USAGE = 2

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="RLHF from one RLHFJob file: supervised fine-tuning, reward model and PPO.",
)

File = Annotated[Path, typer.Argument(help="An RLHFJob manifest.", show_default=False)]
Mount = Annotated[
    list[str] | None,
    typer.Option(
        "--mount", help="claim=path: the folder that pvc://claim/... means here; may be repeated."
    ),
]


@app.command()
def validate(file: File, mount: Mount = None) -> None:
    """Check a job: its fields, the order of its stages, its models' files, and its rows.

    Claims for which no --mount is given at all are not looked into, nor are rows of a hub; of files
    of more than 32 MiB the first rows are. Whether rows are too long is for the run to say: it has
    a tokenizer.
    """
    job = RLHFJob.from_file(file)
    mounts = parse_mounts(mount or [])
    local = localized(job, file.parent)
    check_inputs(local, mounts, all_claims=bool(mounts))
    rows = list(row_counts(local, mounts))
    for claim in unmounted_claims(local, mounts):
        _warn(f"claim {claim} is not looked into; give --mount {claim}=path")
    if job.spec.storage is None:
        _warn("spec.storage is not set; a cluster needs it, rlhf run does not")
    for text in (*local_warnings(job), *sampling_warnings(job)):
        _warn(text)
    _say(f"{file}: RLHFJob {job.metadata.name} is valid")
    for line in describe(job):
        _say(f"  {line}")
    for field, told in rows:
        _say(f"  {field.removeprefix('spec.stages.')}: {told}")


@app.command()
def run(
    file: File,
    workdir: Annotated[
        Path, typer.Option(help="Each job gets a folder of its own in it, by its name.")
    ] = Path("runs"),
    mount: Mount = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "--no-progress", "-q", help="Show only how it ends.")
    ] = False,
    retry: Annotated[
        bool,
        typer.Option(
            "--retry",
            help="Go on with a job that has failed, after its cause was removed: from the last "
            "checkpoints, with all restarts of runPolicy.maxRestarts again. Without this a failed "
            "job only says why it failed, unless a guardrail failed it.",
        ),
    ] = False,
) -> None:
    """Run a job on this machine, without a cluster.

    Ctrl-C stops it with a checkpoint, a second one without. The same command again goes on where
    it was. A job that has succeeded says so and does nothing. The state is kept in
    WORKDIR/<name>/status.yaml, figures come to summary.json, logs lie beside the checkpoints.
    """
    raise typer.Exit(run_job(file, workdir, mount or [], quiet=quiet, retry=retry))


def run_job(
    file: Path,
    root: Path,
    mounts: list[str],
    *,
    quiet: bool = False,
    retry: bool = False,
    launcher: tuple[str, ...] = LAUNCHER,
) -> int:
    """`rlhf run`; returns the exit code.

    Args:
        file: the job's manifest.
        root: the folder of all workdirs.
        mounts: `claim=path` texts.
        quiet: whether to show only the end.
        retry: whether a failed job goes on.
        launcher: what runs a stage, with the path of its stage.json behind it.
    """
    given = RLHFJob.from_file(file)
    folders = parse_mounts(mounts)
    workdir = Workdir(root, given.metadata.name)
    known = workdir.load(given, file)
    if not is_finished(known.status) or goes_on(known.status, retry=retry):
        check_inputs(localized(given, file.parent), folders)
        _check_trainer(launcher)
        for text in (*local_warnings(given), *sampling_warnings(given)):
            _warn(text)
    with workdir.locked():
        # Once more, since another runner may have worked here until now.
        job = workdir.load(given, file)
        already = is_true(job.status.conditions, ConditionType.SUCCEEDED)
        view = make_view(make_console(), quiet=quiet)
        outcome = Runner(job, file, workdir, folders, view, launcher).run(retry=retry)
        return _conclude(outcome, workdir, already=already)


def main() -> int:
    """The console script."""
    show_every_letter()
    try:
        app(prog_name="rlhf")
    except SystemExit as leaving:
        # The parser leaves with 2 where the contract says 64.
        return ExitCode.USAGE if leaving.code == _CLICK_USAGE else int(leaving.code or 0)
    except RLHFError as error:
        _fail(str(error))
        return error.exit_code
    except OSError as error:
        code, sentence = explained(error)
        _fail(sentence)
        return code
    return ExitCode.DONE


def _conclude(outcome: Outcome, workdir: Workdir, *, already: bool) -> int:
    """Tell how it ended; the reason of a failure is the last line."""
    job, name = outcome.job, outcome.job.metadata.name
    again = "choose another --workdir, or remove the folder, to run it anew"
    if outcome.exit_code == ExitCode.DONE:
        if already and workdir.summary.exists():
            _say(f"{name} has succeeded already, in {workdir.folder}; {again}")
            return ExitCode.DONE
        summary = summarize(job, workdir.folder)
        write_atomically(workdir.summary, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        for line in result_lines(job, workdir.folder, summary):
            _say(line)
        _say(f"{name} has succeeded: {workdir.summary}")
        return ExitCode.DONE
    failed = find_condition(job.status.conditions, ConditionType.FAILED)
    if failed is not None and failed.status == "True":
        # A file in which such a field is corrected is another job; `Workdir.load` refuses it.
        other = f"where that takes another value of a field that determines results, {again}"
        if is_failed_by_guardrail(stages_of(job.status)):
            _say(f"the same command goes on from the last checkpoints; {HELP}; {other}")
        else:
            _say(f"when the cause is removed, --retry goes on; {other}")
        # As one line, since whoever reads a log looks at the last one.
        told = " ".join(failed.message.removesuffix(f"; {RESUME}").split())
        logs = ", ".join(log for log in failure_logs(job, workdir) if log not in told)
        _fail(f"{name} has failed ({failed.reason}): {told}{logs and f'; log: {logs}'}")
    elif outcome.exit_code == ExitCode.GUARDRAIL:
        held = {name: each for name, each in stages_of(job.status).items() if awaits_resume(each)}
        told = "; ".join(f"stage {name}: {stage.message}" for name, stage in held.items())
        again = f"the same command again goes on from the last checkpoints; {HELP}"
        _fail(f"{name} is suspended by a guardrail: {' '.join(told.split())}; {again}")
    elif job.spec.suspend:
        _fail(f"{name} is suspended: spec.suspend is true; set it to false to go on")
    else:
        going_on = ", ".join(resumptions(job)) or "from the beginning"
        _fail(f"{name} was stopped; the same command again goes on: {going_on}")
    return outcome.exit_code


def _check_trainer(launcher: tuple[str, ...]) -> None:
    if launcher is LAUNCHER and importlib.util.find_spec("torch") is None:
        raise UsageError(
            "the trainer is not installed; install it with pip install 'rlhf-operator[trainer]'"
        )


def _say(text: str) -> None:
    make_console().print(text, markup=False, soft_wrap=True)


def _warn(text: str) -> None:
    make_console(stderr=True).print(f"warning: {text}", markup=False, soft_wrap=True)


def _fail(text: str) -> None:
    make_console(stderr=True).print(f"rlhf: {text}", markup=False, soft_wrap=True)
