"""The memory of edits that a run has left: python -m kedit.memory --help."""

from kedit.run.memory_command import main

if __name__ == "__main__":
    main()
