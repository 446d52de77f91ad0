"""A run on a disk that is full at once: python tests/full_disk.py BYTES [OVERRIDE ...]. No file may exceed BYTES."""

import resource
import sys

from kedit.run import main as run

if __name__ == "__main__":
    size = int(sys.argv.pop(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    run.main()
