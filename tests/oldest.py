"""Prints the oldest versions that pyproject.toml declares of the libraries that change most, as constraints for pip."""

import re
import tomllib
from pathlib import Path

NAMES = ("ray", "torch", "torchvision", "timm", "mlflow")

if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name, version = re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", requirement).groups()
        if name in NAMES:
            print(f"{name}=={version}" + ".0" * (2 - version.count(".")))
    print("sqlalchemy<2.1")  # the oldest MLflow takes any version and does not import with this one
