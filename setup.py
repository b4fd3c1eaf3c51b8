"""Everything is declared in pyproject.toml; this only puts data/ into a wheel, as labkit/_data."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithData(build_py):
    """An editable install reads data/ in place; any other install has to carry it along."""

    def run(self):
        super().run()
        if not self.editable_mode and Path("data").is_dir():
            shutil.copytree("data", Path(self.build_lib, "labkit", "_data"), dirs_exist_ok=True)


setup(cmdclass={"build_py": WithData})
