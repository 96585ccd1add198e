import logging
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from mae_nas.cli.announce import announce_data


def test_a_strangers_file_name_is_shown_and_not_obeyed(caplog: pytest.LogCaptureFixture) -> None:
    counts = dict.fromkeys(("images", "channels", "held_out"), 3)
    skipped = [{"file": "\x1b[2J.png", "reason": "forged\nline"}]
    data = Mock(
        shares={"held_out": "held out"},
        describe=lambda: {**counts, "side": 32, "skipped_files": skipped},
    )
    run = SimpleNamespace(config={"left_out": []}, data=data)
    with caplog.at_level(logging.INFO, "mae_nas"):
        announce_data(run)  # type: ignore[arg-type]  # what it tells of a run, and nothing else
    assert r"skipped \x1b[2J.png: forged\nline" in caplog.messages
    assert "3 images of 32 × 32, 3 channels: 3 held out" in caplog.messages
