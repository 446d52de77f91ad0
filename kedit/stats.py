"""Second moments of models over corpora: python -m kedit.stats --help."""

from kedit.run.covariance_command import main

if __name__ == "__main__":
    main()
