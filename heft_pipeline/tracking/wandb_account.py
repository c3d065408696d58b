"""Whether W&B can be used from here, according to its environment variables and files.

This is also asked before training, so nothing here imports wandb, sends a request, prompts or
writes.
"""

import configparser
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from heft_pipeline.errors import UserError

_SERVER = "https://api.wandb.ai"
#: The modes that WANDB_MODE and `wandb offline` can name, and what they mean here.
_MODES = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def resolve_mode(mode: str) -> str:
    """Resolve ``tracking.mode``.

    Args:
        mode: ``auto``, ``online``, ``offline`` or ``disabled``.

    Returns:
        ``online``, ``offline`` or ``disabled``. ``auto`` becomes the mode that ``WANDB_MODE`` or
        ``wandb offline`` has set, else online where there is an API key, else offline.

    Raises:
        UserError: Online is asked for and there is no key, or ``WANDB_MODE`` is not a mode.
    """
    if mode == "auto":
        said = os.environ.get("WANDB_MODE") or _settings().get("mode")
        if said and said not in _MODES:
            raise UserError(f"WANDB_MODE={said} is not one of online, offline, disabled")
        mode = _MODES[said] if said else "online" if logged_in() else "offline"
    if mode == "online" and not logged_in():
        raise UserError(
            "tracking.mode=online needs a W&B API key, and there is none here: run `wandb login`, "
            "or use tracking.mode=offline"
        )
    return mode


def logged_in() -> bool:
    """Whether there is an API key in the environment, in W&B's settings, or in netrc."""
    settings = _settings()
    if any(os.environ.get(f"WANDB_{name}") for name in ("API_KEY", "IDENTITY_TOKEN_FILE")):
        return True
    if settings.get("api_key"):
        return True
    server = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or _SERVER
    given = os.environ.get("NETRC")
    for path in [given] if given else ["~/.netrc", "~/_netrc"]:
        try:
            found = netrc.netrc(Path(path).expanduser()).authenticators(urlsplit(server).netloc)
        except (OSError, netrc.NetrcParseError):
            continue
        if found and found[2]:
            return True
    return False


def _settings() -> Mapping[str, str]:
    """The settings that ``wandb login --host`` and ``wandb offline`` write to a file."""
    folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([folder / "settings", Path("wandb") / "settings"])
    except (OSError, configparser.Error):
        return {}
    return dict(parser["default"]) if parser.has_section("default") else {}
