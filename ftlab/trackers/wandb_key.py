"""Whether an API key for W&B is on this machine: no network call, no prompt, and W&B is not imported."""

import netrc
import os
from urllib.parse import urlsplit


def has_key(base_url: str = "") -> bool:
    """Whether a key for the server is in the environment or in a netrc file; by default for the server that the
    environment names."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(base_url or os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    for path in [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]:
        try:
            return netrc.netrc(os.path.expanduser(path)).authenticators(host) is not None
        except (OSError, netrc.NetrcParseError):
            continue
    return False
