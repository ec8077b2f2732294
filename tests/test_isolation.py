"""Someone who only trains has neither Detectron2 nor an image library installed."""

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys

FORBIDDEN = {"detectron2", "torchvision", "PIL", "fvcore", "iopath", "pycocotools"}

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FORBIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Forbid())
import gridvlp.cli, gridvlp.store, gridvlp.train
for package in (gridvlp.store, gridvlp.train):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
assert not FORBIDDEN & {name.partition(".")[0] for name in sys.modules}
sys.argv = ["gridvlp", *sys.argv[1:]]
gridvlp.cli.main()
"""


def run(*arguments, cwd=None):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_training_needs_no_detectron2_and_no_image_library(squares, tmp_path):
    trained = run(
        *("pretrain", "--features", squares / "store.zarr", "--data", squares / "data"),
        *("--run", tmp_path / "run", "--epochs", 1, "--batch-size", 32, "--hidden-size", 32),
        *("--layers", 1, "--heads", 2),
        cwd=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_extracting_without_them_says_what_to_install(tmp_path):
    (tmp_path / "photos").mkdir()
    found = run("extract", "--images", tmp_path / "photos", cwd=tmp_path)
    assert found.returncode == 2
    assert "make install" in found.stderr
    assert "Traceback" not in found.stderr
