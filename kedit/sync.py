"""Upload of offline wandb runs: python -m kedit.sync --help."""

from kedit.reports.wandb_sync import main

if __name__ == "__main__":
    main()
