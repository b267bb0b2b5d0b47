"""`python -m dnabert2 VERB ...` is `dnabert2 VERB ...`."""

import sys

from .cli import main

sys.exit(main())
