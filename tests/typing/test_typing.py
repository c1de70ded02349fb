import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_users_type_checkers_see_the_documented_types(tmp_path: Path) -> None:
    # From another directory, so that the installed package is checked as a user has it: by its py.typed.
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        f"--cache-dir={tmp_path}",
        str(HERE / "users.py"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
