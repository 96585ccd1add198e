"""An installed wheel runs from an empty folder: `conf/` is inside it."""

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def call(*command: str | Path, cwd: Path) -> str:
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installed_wheel_searches_from_an_empty_folder(tmp_path: Path, tiny: list[str]) -> None:
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=REPOSITORY)
    (wheel,) = tmp_path.glob("*.whl")
    home = tmp_path / "home"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    where = call(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path)
    packages = Path(where.strip())
    pip = ["-m", "pip", "install", "--no-deps", "--no-index", "--target", packages, wheel]
    call(sys.executable, *pip, cwd=tmp_path)
    # The dependencies of this test's own environment, without its editable install.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    found = call(python, "-c", "import mae_nas; print(mae_nas.__file__)", cwd=empty)
    assert Path(found.strip()).is_relative_to(packages)
    said = call(python, "-m", "mae_nas", "search", *tiny, "trainer.max_steps=2", cwd=empty)
    assert "verdict ok at step 2" in said
    (run,) = (empty / "runs" / "search").iterdir()
    assert (run / "summary.json").exists()
    assert [path.name for path in empty.iterdir()] == ["runs"]
