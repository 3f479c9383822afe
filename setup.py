"""Map the five top-level folders into one package; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

NAME = "wildflower"
ROOMS = ("server", "client", "strategies", "ota", "simulation")
packages, package_dir = [NAME], {NAME: f"src/{NAME}"}
for room in ROOMS:
    packages += [f"{NAME}.{room}", *(f"{NAME}.{room}.{sub}" for sub in find_packages(room))]
    package_dir[f"{NAME}.{room}"] = room
data = ["py.typed", "*.json", "schema/*.json", "*.proto", "*.pyi", "*.html", "*.css", "*.js"]
setup(packages=packages, package_dir=package_dir, package_data={"": data})
