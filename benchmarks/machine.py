"""What this machine has and lacks for headforce: versions, device, missing packages. `make gpu` prints it first."""

from __future__ import annotations

import importlib.metadata
import platform

REQUIRED = ("torch", "numpy", "sympy", "networkx", "pytest", "hypothesis")
OPTIONAL = {
    "triton": "Triton kernels",
    "pydantic": "reading policy files",
    "PyYAML": "reading policy files",
    "safetensors": "checkpoints of the example model",
    "rich": "the command line",
    "click": "the command line",
    "matplotlib": "pictures",
}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    print(f"python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for package in (*REQUIRED, *OPTIONAL):
        found = version(package)
        lack = "missing, and needed" if package in REQUIRED else f"missing: {OPTIONAL.get(package)} will not work"
        print(f"{package} {found or lack}")
    if version("torch"):
        import torch

        print(f"device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no CUDA device'}")


if __name__ == "__main__":
    main()
