"""Give memory that was freed back to the system, where the C library is asked to."""

import ctypes


def give_back_heap() -> None:
    """Return freed memory to the system.

    glibc keeps blocks of up to 32 MB that numpy freed: a hundred MiB after the lists of a million
    vectors are written, which the next step of a build would come on top of. Other C libraries
    are left as they are.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
