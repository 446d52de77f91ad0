"""What has run, runs, failed or is missing: python -m kedit.status --help."""

from kedit.reports.cell_status import main

if __name__ == "__main__":
    main()
