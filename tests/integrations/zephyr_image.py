"""An image whose workers run jobs in Zephyr's environment: its interpreter goes in, its packages are mounted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from fluster.cluster.docker.engine import Engine
from fluster.testing.docker_image import libraries, provide_image_with, provide_test_image, tree

PYTHON = "/opt/zephyr/bin/python"
_ENVIRONMENT = PYTHON.removeprefix("/").removesuffix("/bin/python")
_PACKAGES = "/mnt/zephyr/site-packages"
"""So called, modules in it count as installed, and do not travel with functions as the user's own do."""
_LIBRARIES = (
    "libc.so.6 libm.so.6 libdl.so.2 librt.so.1 libpthread.so.0 libresolv.so.2 libutil.so.1 libgcc_s.so.1 libstdc++.so.6"
)
"""What packages from an index may take for granted (PEP 600)."""
_ASK = """
import json, os, sys, sysconfig
where = sysconfig.get_path
version = "python%d.%d" % sys.version_info[:2]
print(json.dumps([version, os.path.realpath(sys.executable), where("stdlib"), where("purelib")]))
"""


async def provide_zephyr_image(python: str) -> tuple[str, str]:
    """The image's name, and the mount by which its environment has packages.

    Args:
        python: Interpreter of the environment on this machine that has them.
    """
    told = subprocess.run([python, "-c", _ASK], check=True, capture_output=True, text=True, timeout=30).stdout
    version, executable, library, packages = json.loads(told)
    interpreter: dict[str, Path] = {
        f"usr/local/lib/{version}/{path.relative_to(library)}": path for path in tree(Path(library))
    }
    interpreter[f"usr/local/bin/{version}"] = Path(executable)
    site = f"{_ENVIRONMENT}/lib/{version}/site-packages"
    environment: dict[str, Path | bytes] = {
        f"{_ENVIRONMENT}/pyvenv.cfg": b"home = /usr/local/bin\n",
        f"{site}/mounted.pth": f"{_PACKAGES}\n".encode(),
    }
    base = await provide_test_image(Engine())
    found = subprocess.run(
        ["docker", "run", "--rm", "--entrypoint", "python3", base, "-c", "import fluster; print(fluster.__path__[0])"],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    links = {f"{_ENVIRONMENT}/bin/python": f"/usr/local/bin/{version}", f"{site}/fluster": found.stdout.strip()}
    needed = dict(libraries(interpreter.values()))
    beside = next((name, path) for name, path in needed.items() if name.endswith("/libc.so.6"))
    more = {str(Path(beside[0]).with_name(each)): beside[1].with_name(each).resolve() for each in _LIBRARIES.split()}
    files: dict[str, Path | bytes] = {**interpreter, **needed, **more, **environment}
    return await provide_image_with(Engine(), "fluster-test-zephyr", base, files, links), f"{packages}:{_PACKAGES}:ro"
