"""A model's speed beside its teacher's: only figures that were measured alike make a ratio."""

from compress.report.run_files import Record

_ALIKE = ("device", "dtype", "threads", "batch", "prompt_tokens", "decode_tokens")


def speed_pair(model: Record, teacher: Record | None) -> tuple[Record, Record] | None:
    """The speeds of a model and of its teacher, from their evaluations; None where they were not measured alike.

    Alike is of one device, dtype, number of threads and shape. The teacher's speed is the one that was measured in
    turns with the model's own, where there is one, else that of `teacher`.
    """
    fast = model.get("speed") or {}
    slow = fast.get("teacher") or (teacher or {}).get("speed") or {}
    alike = all(fast.get(name) == slow.get(name) for name in _ALIKE)
    return (fast, slow) if fast and slow and alike else None
