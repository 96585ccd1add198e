import logging
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from mae_nas.cli.announce import announce
from mae_nas.masking import Masking


def test_a_strangers_file_name_is_shown_and_not_obeyed(caplog: pytest.LogCaptureFixture) -> None:
    counts = dict.fromkeys(("images", "channels", "weights", "architecture", "held_out"), 3)
    skipped = [{"file": "\x1b[2J.png", "reason": "forged\nline"}]
    data = Mock(side=32, describe=lambda: {**counts, "side": 32, "skipped_files": skipped})
    run = SimpleNamespace(
        config={"left_out": [], "trainer": {"precision": "32-true"}},
        data=data,
        parts=SimpleNamespace(masking=Masking()),
        module=SimpleNamespace(epochs=1, steps_per_epoch=1),
        yardsticks={},
        last_step=1,
    )
    with caplog.at_level(logging.INFO, "mae_nas"):
        announce(run)  # type: ignore[arg-type]  # what it tells of a run, and nothing else
    assert r"skipped \x1b[2J.png: forged\nline" in caplog.messages
