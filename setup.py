"""Packaging: reads its facts from settings.ini, so that they stand in one place."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
settings = ConfigParser(delimiters=("=",), comment_prefixes=("#",), interpolation=None)
settings.read(HERE / "settings.ini", encoding="utf-8")
facts = settings["DEFAULT"]


def requirements(text):
    return [line.strip() for line in text.splitlines() if line.strip()]


class BuildWithNotebooks(build_py):
    """Put the walk-throughs into the package, where `covid-fastai new-notebook` finds them."""

    def run(self):
        super().run()
        if not self.editable_mode:  # there the checkout's own are found
            target = Path(self.build_lib) / "covid_fastai" / "notebooks"
            self.mkpath(str(target))
            for notebook in sorted((HERE / "nbs").glob("[0-9]*.ipynb")):
                self.copy_file(str(notebook), str(target / notebook.name))


extras = {name: requirements(text) for name, text in settings["extras"].items() if name not in settings.defaults()}

setup(
    name=facts["name"],
    version=facts["version"],
    description=facts["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=facts["keywords"],
    author=facts["author"],
    license=facts["license"],
    license_files=["LICENSE", "covid_fastai/data/cohen-metadata.LICENSE.md"],
    python_requires=f">={facts['min_python']}",
    packages=find_packages(include=["covid_fastai", "covid_fastai.*"]),
    include_package_data=True,
    cmdclass={"build_py": BuildWithNotebooks},
    install_requires=requirements(facts["requirements"]),
    extras_require=extras,
    entry_points={
        "console_scripts": ["covid-fastai = covid_fastai.app.cli.main:main"],
        "pytest11": ["covid_fastai = covid_fastai.pytest_plugin"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Pytest",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
    zip_safe=False,
)
