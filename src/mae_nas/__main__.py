"""`python -m mae_nas` is `mae-nas`."""

import sys

from mae_nas.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
