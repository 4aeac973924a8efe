"""``python -m selrel_zennit`` is the `selrel` command."""

import sys

from .cli import main

sys.exit(main())
