"""``python -m modality_forcing`` is ``mf``; torchrun starts it by this name."""

import sys

from modality_forcing.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
