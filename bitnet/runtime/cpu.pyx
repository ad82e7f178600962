"""Which instruction sets are safe to run here, and how many cores are ours."""
import operator
import os
import platform
import re
import sys
from pathlib import Path

from .cgroup import quota as cgroup_quota

cdef extern from *:
    """
    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    /* __builtin_cpu_supports also asks the operating system (xgetbv) whether it saves the
       registers. It does not know avxvnni before gcc 13 and clang 16: that bit is read by hand. */
    #include <cpuid.h>
    static int bitnet_has_f16c(void) {
        unsigned a, b, c, d;
        return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
    }
    static int bitnet_has_avxvnni(void) {
        unsigned a, b, c, d;
        return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
    }
    #define HAS_AVX2 (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") \\
                      && bitnet_has_f16c())
    #define HAS_AVXVNNI (HAS_AVX2 && bitnet_has_avxvnni())
    #define HAS_AVX512 (HAS_AVX2 && __builtin_cpu_supports("avx512f") \\
                        && __builtin_cpu_supports("avx512bw") \\
                        && __builtin_cpu_supports("avx512vl") \\
                        && __builtin_cpu_supports("avx512vnni"))
    #define IS_AMD (__builtin_cpu_is("amd") != 0)
    #else
    #define IS_AMD 0
    #define HAS_AVX2 0
    #define HAS_AVXVNNI 0
    #define HAS_AVX512 0
    #endif

    #if defined(__aarch64__)
    #define HAS_NEON 1
    #if defined(__linux__)
    #include <sys/auxv.h>
    #define HAS_DOTPROD ((getauxval(AT_HWCAP) >> 20 & 1) != 0)      /* HWCAP_ASIMDDP */
    #elif defined(__APPLE__)
    #define HAS_DOTPROD 1                                           /* every Apple core has it */
    #else
    #define HAS_DOTPROD 0
    #endif
    #else
    #define HAS_NEON 0
    #define HAS_DOTPROD 0
    #endif
    """
    bint HAS_AVX2, HAS_AVXVNNI, HAS_AVX512, HAS_NEON, HAS_DOTPROD, IS_AMD


# Instruction sets whose kernels never ran their tests on a CPU or an emulator: only when named.
# None now: NEON ran them in qemu-user 7.2, with and without dot products (docs/testing-on-arm.md).
UNPROVEN = ()


def supported():
    """Names of the kernel modules this CPU and its operating system can run, best first."""
    isas = [("avx512", HAS_AVX512), ("avxvnni", HAS_AVXVNNI), ("avx2", HAS_AVX2),
            ("neon_dotprod", HAS_DOTPROD), ("neon", HAS_NEON), ("generic", True)]
    return [name for name, has in isas if has]


def is_amd():
    """Whether the CPU is one of AMD's."""
    return IS_AMD


def affinity():
    """The logical CPUs this process may run on, a sorted list."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores(cpus):
    """How many physical cores the logical CPUs ``cpus`` share (as many as CPUs where unknown)."""
    cores = set()
    for cpu in cpus:
        try:
            path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
            cores.add(path.read_text().strip())
        except OSError:
            cores.add(cpu)
    return len(cores)


ASKED = ("threads", "BITNET_NUM_THREADS", "OMP_NUM_THREADS")    # reasons that somebody asked for
MAX_THREADS = 1024                      # threads that may be asked for


def threads(requested=None):
    """(count, reason): the threads to use, from ``requested``, the environment, or the machine.

    Without a request: ``BITNET_NUM_THREADS``, ``OMP_NUM_THREADS``, else the physical cores that
    affinity allows, capped by the cgroup quota rounded down (at least 1): takes 0.2 ms.
    """
    values = [requested, os.environ.get("BITNET_NUM_THREADS"),
              (os.environ.get("OMP_NUM_THREADS") or "").split(",")[0] or None]
    for name, value in zip(ASKED, values, strict=True):
        if value is None:
            continue
        try:
            count = int(value) if isinstance(value, str) else operator.index(value)
        except (TypeError, ValueError):
            count = 0
        if not 1 <= count <= MAX_THREADS or value is True:
            raise ValueError(f"{name}: {value!r} is not a number of threads (1 to {MAX_THREADS})")
        return count, name
    cores = physical_cores(affinity())
    quota = cgroup_quota()
    if quota is not None and quota < cores:
        return max(1, int(quota)), f"cgroup quota of {quota:g} CPUs, rounded down"
    return cores, "physical cores allowed"


def omp_stack_bytes():
    """OMP_STACKSIZE in bytes, as OpenMP reads it: in KiB where it has no unit. None where unset."""
    match = re.fullmatch(r"\s*(\d+)\s*([BKMG]?)\s*", os.environ.get("OMP_STACKSIZE", ""), re.I)
    return match and int(match[1]) << {"B": 0, "M": 20, "G": 30}.get(match[2].upper(), 10)


def huge_pages():
    """Who gets huge pages of memory: "always", "madvise" or "never"; None where unknown."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or None


def info():
    """What was found, as a dict: architecture, instruction sets, cores, quota."""
    return {"machine": platform.machine(), "system": sys.platform, "supported": supported(),
            "logical_cpus": len(affinity()), "physical_cores": physical_cores(affinity()),
            "cgroup_quota": cgroup_quota()}
