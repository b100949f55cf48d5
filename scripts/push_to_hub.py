"""Push a saved model, or the app as a Space: `python scripts/push_to_hub.py MODEL --repo_id NAME`."""

import sys

from ddpm_hf.cli.push import main

if __name__ == "__main__":
    sys.exit(main())
