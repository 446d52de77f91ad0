"""Builds the pretend CUDA with g++ (15 CPU-seconds), once for each torch: `python tests/pretend/build.py`."""

import shutil
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from kedit.common.cache import cached, sha256

SOURCE = Path(__file__).with_name("pretend_cuda.cpp")
TORCH = "2.13."  # whose C++ interface the source is written for


def why_not() -> str:
    """Why it cannot be built; "" if it can."""
    if not version("torch").startswith(TORCH):
        return f"the pretend CUDA is written for torch {TORCH}x, and this is {version('torch')}"
    if "+cpu" not in version("torch"):
        return "this torch has a CUDA of its own"
    return "" if shutil.which("g++") else "there is no g++ to build the pretend CUDA"


def library() -> Path:
    [home] = find_spec("torch").submodule_search_locations  # type: ignore[union-attr,misc]

    def build(folder: Path) -> None:
        include = [f"-I{home}/include", f"-I{home}/include/torch/csrc/api/include"]
        link = [f"-L{home}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{home}/lib"]
        how = ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", "-D_GLIBCXX_USE_CXX11_ABI=1", *include]
        subprocess.run([*how, str(SOURCE), "-o", str(folder / "libpretend_cuda.so"), *link], check=True)

    key = {"source": sha256(SOURCE), "torch": version("torch"), "home": str(home)}
    return cached("pretend-cuda", key, build) / "libpretend_cuda.so"


if __name__ == "__main__":
    print(library())  # noqa: T201
