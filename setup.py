"""What pyproject.toml cannot say: an installed package carries the model card's template, which stands at the top of the tree."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithModelCard(build_py):
    """A build that copies model_card.md into the package."""

    def run(self) -> None:
        """Copies it after the modules; an editable install finds it where it stands."""
        super().run()
        if not self.editable_mode:
            shutil.copyfile("model_card.md", Path(self.build_lib) / "ddpm_hf" / "model_card.md")


setup(cmdclass={"build_py": BuildWithModelCard})
