"""What pyproject.toml cannot say: the checkout's configs/ is the package's sinkjax/configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sinkjax*"]), "sinkjax.configs"],
    package_dir={"sinkjax.configs": "configs"},
    package_data={
        "": ["*.jinja", "py.typed"],
        "sinkjax.configs": ["**"],
    },
)
