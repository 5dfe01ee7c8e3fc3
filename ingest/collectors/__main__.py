"""``python -m ingest.collectors``: the collectors where only the standard library and nvidia-ml-py are."""

from __future__ import annotations

import sys

from ingest.collectors.run import main

if __name__ == "__main__":
    sys.exit(main())
