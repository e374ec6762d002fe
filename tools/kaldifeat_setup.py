"""Builds kaldifeat as one torch extension. tools/build_kaldifeat.sh puts it in place of its source's own setup.py.

That one calls CMake, which looks for the CUDA toolkit of a torch that comes with CUDA, and for pybind11 on the network.
kaldifeat itself has no CUDA code: it calls torch, which computes on the device that the audio is on.
"""

import re
from pathlib import Path

import setuptools
import torch
from torch.utils.cpp_extension import BuildExtension, CppExtension

package = Path("kaldifeat/python/kaldifeat")
version = re.search(r'set\(kaldifeat_VERSION "(.*)"\)', Path("CMakeLists.txt").read_text()).group(1)
(package / "torch_version.py").write_text(f'kaldifeat_torch_version = "{torch.__version__}"\n')
major, minor = torch.__version__.split(".")[:2]


def in_one_file(folder: str) -> str:
    """A file that includes all sources of a folder: torch's headers, which take most of the time, are read once."""
    names = sorted(path.name for path in Path(folder).glob("*.cc") if "test" not in path.stem)
    together = Path(f"{folder}/all.cc")
    together.write_text("".join(f'#include "{folder}/{name}"\n' for name in names))
    return str(together)


setuptools.setup(
    name="kaldifeat",
    version=version,
    package_dir={"kaldifeat": str(package)},
    packages=["kaldifeat"],
    ext_modules=[
        CppExtension(
            "_kaldifeat",
            [in_one_file("kaldifeat/csrc"), in_one_file("kaldifeat/python/csrc")],
            include_dirs=[str(Path.cwd())],
            define_macros=[
                ("KALDIFEAT_TORCH_VERSION_MAJOR", major),
                ("KALDIFEAT_TORCH_VERSION_MINOR", minor),
                ("TORCH_API_INCLUDE_EXTENSION_H", None),
            ],
            extra_compile_args=["-O2", "-g0", "-w"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
    zip_safe=False,
)
