"""The packages of the wheel, found: those of ftlab, and the two folders of configurations that it holds."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

FOUND = find_namespace_packages(include=["ftlab*", "hydra_plugins.*"], exclude=["*.__pycache__"])
GROUPS = sorted({file.parent.as_posix().replace("/", ".") for file in Path("conf").rglob("*.yaml")})

setup(packages=[*FOUND, "ftlab.sweeps", *(f"ftlab.{group}" for group in GROUPS)])
