"""What a wheel installs: one name, which others that are called `proxy` or `addons` cannot get at.

The wheel is built as `pip install .` does it, but from what is installed here, and put into an environment of its own,
which sees the dependencies of this one and not the checkout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED_WITH_PROXY_PY = ("proxy/__init__.py", "proxy/__main__.py", "proxy/core/__init__.py")


def run(command: Sequence[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={name: text for name, text in os.environ.items() if not name.startswith("PYTHON")} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def pip(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", *arguments], folder)


def build(source: Path, into: Path) -> Path:
    built = pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", into, source, folder=into)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = into.glob("overcoat-*.whl")
    return wheel


class Environment:
    """A virtual environment with nothing in it; the dependencies of this one come after what is installed in it."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        variables = {"base": str(folder), "platbase": str(folder)}
        self.packages = Path(sysconfig.get_path("purelib", vars=variables))
        self.folder = folder

    def see_dependencies(self) -> None:
        # A folder that is named in a .pth file is not searched for others, so the checkout itself stays out.
        (self.packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    def pip(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return pip("--python", self.python, *arguments, folder=self.folder)

    def install(self, wheel: Path) -> None:
        done = self.pip("install", "--no-deps", "--no-index", wheel)
        assert done.returncode == 0, done.stdout + done.stderr

    def uninstall(self, name: str) -> None:
        done = self.pip("uninstall", "--yes", name)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def environment(wheel: Path, tmp_path: Path) -> Environment:
    made = Environment(tmp_path / "environment")
    made.install(wheel)
    made.see_dependencies()
    return made


def stand_in(folder: Path) -> Path:
    """Return a wheel that is called proxy.py, with the three paths that proxy.py's shares with our folders."""
    path = folder / "proxy_py-2.4.99-py3-none-any.whl"
    information = "proxy_py-2.4.99.dist-info"
    files = dict.fromkeys(SHARED_WITH_PROXY_PY, "raise ImportError('this is proxy.py')\n") | {
        f"{information}/METADATA": "Metadata-Version: 2.1\nName: proxy.py\nVersion: 2.4.99\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{information}/RECORD", "".join(f"{n},,\n" for n in (*files, f"{information}/RECORD")))
    return path


def published(folder: Path) -> Path:
    """Return the wheel of proxy.py itself."""
    answer = pip(
        *("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--retries", "0", "--timeout", "10"),
        *("--dest", folder, "proxy.py"),
        folder=folder,
    )
    if answer.returncode != 0:
        pytest.skip("the package index does not answer, so proxy.py itself cannot be installed beside ours")
    (path,) = folder.glob("proxy*.whl")
    return path


def demo_holds(environment: Environment, folder: Path, **variables: str) -> None:
    done = run([environment.bin / "overcoat", "demo", "--json"], folder, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["cases"][0]["held"]
    assert said["held"] == said["of"]


def another_project(folder: Path) -> Path:
    """Return a folder in which others have packages of our names."""
    project = folder / "another project"
    for name in ("proxy", "addons"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text(f"raise ImportError('another {name}')\n", encoding="utf-8")
    return project


class TestWheel:
    def test_it_owns_one_name(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            names = {name.partition("/")[0] for name in archive.namelist()}
        version = wheel.name.split("-")[1]
        assert names == {"overcoat", f"overcoat-{version}.dist-info", f"overcoat-{version}.data"}

    def test_all_that_the_folders_hold_is_in_it(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            packed = {name for name in archive.namelist() if ".dist-info/" not in name and ".data/" not in name}
            (page,) = (name for name in archive.namelist() if ".data/" in name)
            assert archive.read(page) == (ROOT / "config" / "overcoat.1").read_bytes()
        assert page.endswith(".data/data/share/man/man1/overcoat.1")
        sources = {
            ("" if folder == "overcoat" else "overcoat/") + path.relative_to(ROOT).as_posix()
            for folder in ("overcoat", "proxy", "addons")
            for kind in ("*.py", "*.cjs", "*.php")
            for path in (ROOT / folder).rglob(kind)
        }
        files = {f"overcoat/proxy/files/{name}" for name in ("demo.yaml", "demo-mirror.yaml", "mitmproxy_addon.py")}
        files |= {f"overcoat/proxy/files/status/status.{kind}" for kind in ("html", "css", "js", "svg")}
        assert packed == sources | {"overcoat/py.typed"} | files

    def test_the_source_archive_makes_the_same_wheel(self, wheel: Path, tmp_path: Path) -> None:
        made = run([sys.executable, "-P", "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path], ROOT)
        assert made.returncode == 0, made.stdout + made.stderr
        (packed,) = tmp_path.glob("*.tar.gz")
        with tarfile.open(packed) as archive:
            archive.extractall(tmp_path / "source", filter="data")
        (source,) = (tmp_path / "source").iterdir()
        again = build(source, tmp_path)
        with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
            assert sorted(one.namelist()) == sorted(other.namelist())


class TestNeighbours:
    @pytest.mark.parametrize("get", [stand_in, published])
    @pytest.mark.parametrize("order", ["ours first", "ours last"])
    def test_proxy_py_comes_and_goes(
        self, wheel: Path, tmp_path: Path, get: Callable[[Path], Path], order: str
    ) -> None:
        neighbour = get(tmp_path)
        environment = Environment(tmp_path / "environment")
        for each in (wheel, neighbour) if order == "ours first" else (neighbour, wheel):
            environment.install(each)
        assert (environment.packages / SHARED_WITH_PROXY_PY[0]).exists()
        environment.see_dependencies()
        demo_holds(environment, tmp_path)
        environment.uninstall("proxy.py")
        for path in SHARED_WITH_PROXY_PY:
            assert not (environment.packages / path).exists()
        demo_holds(environment, tmp_path)

    def test_ours_goes_without_a_trace(self, environment: Environment) -> None:
        assert run([environment.bin / "overcoat", "--version"], environment.folder).returncode == 0
        environment.uninstall("overcoat")
        assert {path.name for path in environment.packages.iterdir()} == {"dependencies.pth"}

    @pytest.mark.parametrize("command", ["script", "-m overcoat", "-P -m overcoat", "-I -m overcoat"])
    @pytest.mark.parametrize("place", ["PYTHONPATH", "working directory"])
    def test_folders_of_our_names(self, environment: Environment, tmp_path: Path, command: str, place: str) -> None:
        start = [environment.bin / "overcoat"] if command == "script" else [environment.python, *command.split()]
        folder = another_project(tmp_path)
        if place == "PYTHONPATH":
            done = run([*start, "demo", "--json"], tmp_path, PYTHONPATH=str(folder))
        else:
            done = run([*start, "demo", "--json"], folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["cases"][0]["held"]

    def test_the_script_for_mitmproxy_finds_our_packages(self, environment: Environment, tmp_path: Path) -> None:
        script = environment.packages / "overcoat" / "proxy" / "files" / "mitmproxy_addon.py"
        load = "import runpy, sys; print(runpy.run_path(sys.argv[1])['addons'])"
        done = run([environment.python, "-c", load, script], tmp_path, PYTHONPATH=str(another_project(tmp_path)))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "proxy.stock.Overcoat" in done.stdout

    def test_folders_of_our_names_and_a_checkout(self, tmp_path: Path) -> None:
        folder = another_project(tmp_path)
        start = [sys.executable, "-P", "-m", "overcoat"]
        done = run([*start, "check"], tmp_path, PYTHONPATH=f"{folder}{os.pathsep}{ROOT}")
        assert done.returncode == 0, done.stdout + done.stderr
