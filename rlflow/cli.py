"""The `rlflow` command: expected errors are one line and exit code 2, anything else is a bug with its traceback."""

from __future__ import annotations

import gc
import os
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from rlflow.commands.board import leaderboard, report
from rlflow.commands.check import check
from rlflow.commands.checkpoint import evaluate, sample
from rlflow.commands.claims import claims
from rlflow.commands.doctor import doctor
from rlflow.commands.export import export
from rlflow.commands.matrix import matrix
from rlflow.commands.new import new
from rlflow.commands.plugins import list_plugins, pretrain
from rlflow.commands.train import train
from rlflow.launch import quiet_libraries

# By name, because the classes live in modules that import torch, Lightning or MLflow.
EXPECTED_ERRORS = frozenset(
    {
        "rlflow.checkpoint.CheckpointError",
        "rlflow.claims.ClaimsError",
        "rlflow.commands.options.UsageError",
        "rlflow.export.ExportError",
        "rlflow.launcher.LaunchError",
        "rlflow.matrix.MatrixError",
        "rlflow.policy.MissingCapabilityError",
        "rlflow.release.ReleaseError",
        "rlflow.report.ReportError",
        "rlflow.registry.UnknownNameError",
        "rlflow.run.BuildError",
        "rlflow.scaffold.ScaffoldError",
        "rlflow.settings.ConfigError",
        "rlflow.store.TrackingError",
        "rlflow.suite_checks.SuiteError",
        "rlflow.task.ContentError",
    }
)
USAGE_EXIT_CODE = 2
COLLECT_AFTER = 50_000
"""Objects between two collections. Importing torch and MLflow makes far more, all of which stay: looking through them
again and again takes about 15 % of a short command's time."""


class Commands(TyperGroup):
    """Turns expected errors into a message."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; RLFLOW_TRACEBACK=1 shows where an expected error came from."""
        quiet_libraries()
        try:
            return super().invoke(ctx)
        except Exception as error:
            if not is_expected(error):
                raise
            if os.environ.get("RLFLOW_TRACEBACK"):
                traceback.print_exc()
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(USAGE_EXIT_CODE) from error


def is_expected(error: BaseException) -> bool:
    """Whether the error is the user's to mend, so that its message says all."""
    return any(f"{c.__module__}.{c.__qualname__}" in EXPECTED_ERRORS for c in type(error).__mro__)


app = typer.Typer(
    cls=Commands,
    help="Any reinforcement-learning algorithm on any task through one loop, with leaderboards from MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command()(train)
app.command()(matrix)
app.command()(leaderboard)
app.command()(report)
app.command()(claims)
app.command("eval")(evaluate)
app.command()(sample)
app.command()(export)
app.command("list")(list_plugins)
app.command()(new)
app.command()(check)
app.command()(pretrain)
app.command()(doctor)


def main() -> None:
    """Entry point."""
    gc.set_threshold(COLLECT_AFTER)
    app(prog_name="rlflow")


if __name__ == "__main__":
    main()
