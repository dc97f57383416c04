"""`python -m tandemn.runner`."""

import sys

from tandemn.runner.app import main

sys.exit(main())
