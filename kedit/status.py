"""What has run, runs, failed or is missing: python -m kedit.status --help."""

from kedit.reports.status import main


def plan(sweep: str) -> None:
    """Look for what the cells of a sweep need; it composes them, so Hydra is imported only then."""
    from kedit.run.plan import plan as look

    look(sweep)


if __name__ == "__main__":
    main(plan)
