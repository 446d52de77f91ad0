"""python -m kedit.convert: what others have trained, as kedit reads it; see kedit/run/convert_command.py."""

from kedit.run.convert_command import main

if __name__ == "__main__":
    main()
