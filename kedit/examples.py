"""Answers before and after editing: python -m kedit.examples --help."""

from kedit.reports.answers import main

if __name__ == "__main__":
    main()
