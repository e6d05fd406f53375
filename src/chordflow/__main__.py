"""`python -m chordflow`, for launchers that start modules, such as torchrun and accelerate launch."""

import sys

from chordflow.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
