"""What can be refused from the models and the output folder alone, before any text is prepared for them."""

from pathlib import Path

from compress.base.disk import require_free
from compress.base.errors import UsageError
from compress.distill.config import DistillConfig
from compress.distill.publish import RECORD
from compress.model.files import check_weight_files, resolve_model
from compress.model.vocabulary import common_ids


def check_start(
    config: DistillConfig, *, student: str | Path, teacher: str | Path | None, out: Path
) -> tuple[Path, Path | None]:
    """Folders of student and teacher, found to have whole weights and one vocabulary.

    Raises:
        UsageError: no teacher at `alpha` above 0, or `out` holds something that is no finished student.
        InputError: a model that is not there, whose weights are damaged, or tokenizers that differ.
    """
    if teacher is None and config.alpha > 0:
        raise UsageError(
            f"alpha = {config.alpha} needs a teacher; name one, or set alpha to 0 to train on the text alone."
        )
    if not (out / RECORD).is_file():
        require_free(out)
    source = None if teacher is None else resolve_model(str(teacher))
    start = resolve_model(str(student))
    for folder in (start, source):
        if folder is not None:
            check_weight_files(folder)
    common_ids(start, source)
    return start, source
