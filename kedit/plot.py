"""Pictures of what has run: python -m kedit.plot --help."""

from kedit.reports.plot.cli import main

if __name__ == "__main__":
    main()
