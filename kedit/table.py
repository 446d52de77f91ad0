"""Tables of what has run: python -m kedit.table --help."""

from kedit.reports.table.cli import main

if __name__ == "__main__":
    main()
