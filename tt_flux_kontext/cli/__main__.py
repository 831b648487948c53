import sys

from tt_flux_kontext.cli import main

sys.exit(main())
