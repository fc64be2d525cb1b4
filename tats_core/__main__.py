"""`python -m tats_core` is `tats`."""

from __future__ import annotations

from tats_core.cli.app import main

if __name__ == "__main__":
    main()
