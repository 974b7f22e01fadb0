"""The packages of the wheel, found: those of ftlab, and the two folders of configurations that it holds."""

from setuptools import find_namespace_packages, setup

FOUND = find_namespace_packages(include=["ftlab*", "hydra_plugins.*"], exclude=["*.__pycache__"])

setup(packages=[*FOUND, "ftlab.conf", "ftlab.sweeps"])
