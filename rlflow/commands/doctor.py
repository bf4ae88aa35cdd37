"""`rlflow doctor`: what is installed, what will be used, what is missing and how to get it."""

from __future__ import annotations

import typer

from rlflow.commands.options import DEFAULT_RESULTS, Results, TrackingUri


def doctor(tracking_uri: TrackingUri = None, results: Results = DEFAULT_RESULTS) -> None:
    """Check this installation; exit code 1 if something that is needed does not work."""
    from rlflow.doctor import examine

    findings = examine(tracking_uri, results)
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        typer.echo(f"{finding.verdict:<8} {finding.subject:<{width}}  {finding.detail}")
    if any(finding.verdict == "broken" for finding in findings):
        raise typer.Exit(1)
