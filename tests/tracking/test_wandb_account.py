"""Where runs go when nothing is said: online with an account, else offline."""

from pathlib import Path

import pytest

from heft_pipeline.errors import UserError
from heft_pipeline.tracking.wandb_account import resolve_mode


def test_without_an_account_auto_is_offline_and_online_is_refused() -> None:
    assert resolve_mode("auto") == "offline"
    with pytest.raises(UserError, match="wandb login"):
        resolve_mode("online")


def test_a_key_in_the_environment_is_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    assert (resolve_mode("auto"), resolve_mode("offline")) == ("online", "offline")


def test_a_key_that_wandb_login_saved_is_an_account_at_its_server_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n login user\n password {'f' * 40}\n")
    assert resolve_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert resolve_mode("auto") == "offline"


def test_what_wandb_offline_has_said_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    (tmp_path / "wandb-config").mkdir()
    (tmp_path / "wandb-config" / "settings").write_text("[default]\nmode = offline\n")
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert resolve_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(UserError, match="WANDB_MODE=sometimes"):
        resolve_mode("auto")
