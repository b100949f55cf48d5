"""What pyproject.toml cannot say: an installed package carries the model card's template, which stands at the top of the tree."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithModelCard(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copyfile("model_card.md", Path(self.build_lib) / "ddpm_hf" / "model_card.md")


setup(cmdclass={"build_py": BuildWithModelCard})
