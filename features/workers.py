"""What worker processes do before their first task, importable at once: they start while their parent imports."""

from __future__ import annotations


def warm(set_name: str, worker: int) -> int:
    """Import what a task of this set needs, and load its kernels where they are compiled."""
    import features.extraction  # noqa: F401
    from features.kernel_cache import is_compiled
    from features.sets import find_set
    from features.warming import call_kernels
    from ingest.memory import settle

    made = find_set(set_name)
    if made.compiled and is_compiled(set_name):
        call_kernels(made)
    settle()
    return worker
