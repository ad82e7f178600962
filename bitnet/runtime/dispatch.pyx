"""Chooses the instruction set: the best this CPU has whose kernels pass a known-answer test."""
import logging
import os
from importlib import import_module

from cpython.pycapsule cimport PyCapsule_GetPointer

from ..kernels.table cimport Kernels

from . import self_test
from .cpu import UNPROVEN, supported

log = logging.getLogger("bitnet")

cdef object module = None               # keeps the table alive
isa = None                              # name of the instruction set in use
reason = None                           # why it was chosen
cdef str refused = None                 # why what BITNET_ISA names was not taken at import
n_kernels = sizeof(Kernels) // sizeof(void*)    # in the table


def use(name=None):
    """Switch to the instruction set ``name``, or to ``BITNET_ISA``, or to the best one here.

    Returns its name. ValueError where this CPU cannot run it (it is not even imported then).
    RuntimeError where the known-answer test of a named one fails; otherwise the next is tried.
    """
    global isa, kernels, module, reason, refused
    named = name or os.environ.get("BITNET_ISA")
    names = supported()
    if named and named not in names:
        able = ", ".join(names)
        raise ValueError(f"BITNET_ISA: this CPU cannot run {named!r}; it can run {able}")
    for candidate in [named] if named else [n for n in names if n not in UNPROVEN]:
        loaded = import_module(f"bitnet.kernels.{candidate}")
        answer = self_test.answer(loaded.capsule)
        if answer == self_test.KNOWN_ANSWER:
            module = loaded
            kernels = <const Kernels*>PyCapsule_GetPointer(loaded.capsule, "bitnet.kernels")
            isa, reason = candidate, "named" if named else "best of " + ", ".join(names)
            refused = None
            return isa
        message = (f"{'BITNET_ISA: ' if named else ''}kernels of {candidate} fail their self-test "
                   f"({answer:#010x}, not {self_test.KNOWN_ANSWER:#010x})")
        if named or candidate == "generic":
            raise RuntimeError(message)
        log.warning("%s: trying the next", message)


def check():
    """ValueError if BITNET_ISA names what cannot be had. At import no program could say it in its
    own way, so that whoever begins to compute asks."""
    if refused is not None:
        raise ValueError(refused)


def choose():
    """use() at import; kernels of plain C, for the time being, where BITNET_ISA cannot be had."""
    global reason, refused
    try:
        use()
    except (ValueError, RuntimeError) as error:
        if not os.environ.get("BITNET_ISA"):
            raise
        use("generic")
        reason, refused = "BITNET_ISA cannot be had", str(error)


choose()
