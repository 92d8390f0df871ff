"""`python -m sshmuxfs`: the command `sshmuxfs`."""

import sys

from sshmuxfs.cli import main

sys.exit(main())
