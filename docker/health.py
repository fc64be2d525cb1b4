"""Ends with 0 where TATS_HEALTH_URL answers, or is not set: the image's health check.

With TATS_HEALTH_USER it asks as that user, with the password in the file TATS_HEALTH_PASSWORD_FILE.
"""

import base64
import os
import sys
import urllib.request
from pathlib import Path


def main() -> None:
    """Ask once; what went wrong is the one line that `docker inspect` shows."""
    url = os.environ.get("TATS_HEALTH_URL")
    if not url:
        return
    request = urllib.request.Request(url)
    if user := os.environ.get("TATS_HEALTH_USER"):
        password = Path(os.environ["TATS_HEALTH_PASSWORD_FILE"]).read_text().strip()
        request.add_header(
            "Authorization", f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
        )
    try:
        urllib.request.urlopen(request, timeout=4).close()
    except OSError as error:
        sys.exit(f"{url}: {error}")


if __name__ == "__main__":
    main()
