"""A model's safetensors files in another dtype, copied tensor by tensor."""

from pathlib import Path

from compress.base.disk import read_json, write_json
from compress.model.files import check_weight_files
from compress.weights.casting import student_tensors, with_dtype
from compress.weights.copying import Copying
from compress.weights.headers import read_header
from compress.weights.room import require_space


def write_cast(student: Path, out: Path, dtype: str) -> None:
    """Write config.json and the weights of the model in `student` as `dtype` (torch's name).

    What the model keeps in another dtype than most of its weights, stays in that.

    Raises:
        InputError: a weight is not finite, or too large for the dtype.
        CompressError: the disk has no room.
    """
    named = [(tensor.name, tensor) for path in check_weight_files(student) for tensor in read_header(path)]
    tensors = student_tensors(named, dtype, (), 0)
    require_space(out, sum(tensor.num_bytes for tensor in tensors))
    write_json(out / "config.json", with_dtype(read_json(student / "config.json"), dtype))
    with Copying([(out, tensors)]) as copying:
        copying.finish()
