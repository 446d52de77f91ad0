"""Bring what cells need into the caches, where the network is: python -m kedit.fetch --help."""

from kedit.run.fetch_command import main

if __name__ == "__main__":
    main()
