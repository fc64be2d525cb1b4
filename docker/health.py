"""The image's health check: exits with 0 if TATS_HEALTH_URL answers or is not set.

With TATS_HEALTH_USER the request is that user's, with the password in the file TATS_HEALTH_PASSWORD_FILE.
"""

import base64
import os
import sys
import urllib.request
from pathlib import Path


def main() -> None:
    """Send one request; `docker inspect` shows the line that says why it failed."""
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
