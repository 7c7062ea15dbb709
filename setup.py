"""Which folders are in the wheel; everything else stands in pyproject.toml.

The recipes lie at the top, to be read and copied, and are called `memguard_recipes` in the wheel, where a name as
common as theirs would hide somebody else's. `memguard demo` runs them from there.
"""

from setuptools import find_namespace_packages, find_packages, setup

RECIPES = "memguard_recipes"

setup(
    packages=[
        *find_namespace_packages(include=["memguard", "memguard.*"]),
        RECIPES,
        *(f"{RECIPES}.{name}" for name in find_packages("recipes")),
    ],
    package_dir={RECIPES: "recipes"},
)
