"""What the system is told about mapped files, and what happens when one shrinks under its map.

Reading a mapped page that its file no longer has is a bus error, which ends the process. Checking
the size first is a race. Here the signal's handler puts pages of zeros where the file was, inside
guarded ranges only, and notes which range it was; n_truncated() tells, after the work is done.
Whoever takes the signal later (faulthandler.enable() does) is put behind our handler by arm().
"""
import os

from libc.stdint cimport uintptr_t

cdef extern from *:
    """
    #if defined(_WIN32)
    #define BITNET_GUARDS 0
    static long bitnet_truncated;
    static int bitnet_guard(char* begin, size_t n, size_t page) { return -1; }
    static int bitnet_arm(void) { return -1; }
    static void bitnet_release(int i) {}
    static int bitnet_is_truncated(int i) { return 0; }
    static int bitnet_lock(char* begin, size_t n) { return -1; }
    static int bitnet_unlock(char* begin, size_t n) { return -1; }
    static int bitnet_willneed(char* begin, size_t n) { return -1; }
    static int bitnet_dontneed(char* begin, size_t n) { return -1; }
    static int bitnet_huge_pages(char* begin, size_t n) { return -1; }
    #else
    #define BITNET_GUARDS 4096      /* the largest models have 200 files */
    #include <signal.h>
    #include <string.h>
    #include <sys/mman.h>
    #ifndef MAP_ANONYMOUS
    #define MAP_ANONYMOUS MAP_ANON
    #endif

    /* begin is set last and cleared first: the handler may run in any thread at any time. */
    static struct { char* volatile begin; char* end; volatile int is_truncated; }
        bitnet_ranges[BITNET_GUARDS];
    static volatile long bitnet_truncated;
    static size_t bitnet_page;
    static int bitnet_n_ranges;
    static struct sigaction bitnet_previous;    /* who has the signals that are not ours */
    static volatile int bitnet_is_passing;      /* such a one to the previous handler */
    static char* volatile bitnet_passed;        /* the address of the latest one */

    static void bitnet_on_bus_error(int number, siginfo_t* info, void* context) {
        char* at = (char*)info->si_addr;
        for (int i = 0; i < bitnet_n_ranges; i++) {
            char* begin = bitnet_ranges[i].begin;
            if (begin == NULL || at < begin || at >= bitnet_ranges[i].end) continue;
            char* page = (char*)((size_t)at & ~(bitnet_page - 1));
            if (mmap(page, bitnet_page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
                    != MAP_FAILED) {
                bitnet_ranges[i].is_truncated = 1;
                bitnet_truncated++;
                return;             /* the read is tried again, and finds zeros */
            }
        }
        int is_default = !(bitnet_previous.sa_flags & SA_SIGINFO)
            && (bitnet_previous.sa_handler == SIG_DFL || bitnet_previous.sa_handler == SIG_IGN);
        /* faulthandler's puts back the handler that it found, which may be ours, and raises the
           signal again. */
        int is_sent = info->si_code <= 0;   /* by kill or raise: nothing is tried again */
        if (is_default && is_sent && bitnet_previous.sa_handler == SIG_IGN) return;
        int is_again = !is_sent && at == bitnet_passed;     /* the previous one mended nothing */
        bitnet_passed = at;
        if (is_default || is_again || bitnet_is_passing) {
            signal(SIGBUS, SIG_DFL);        /* tried again, the read ends the process */
            if (is_sent) raise(SIGBUS);
            return;
        }
        bitnet_is_passing = 1;
        if (bitnet_previous.sa_flags & SA_SIGINFO)
            bitnet_previous.sa_sigaction(number, info, context);
        else
            bitnet_previous.sa_handler(number);
        bitnet_is_passing = 0;
    }

    static int bitnet_arm(void) {
        struct sigaction action, now;
        if (sigaction(SIGBUS, NULL, &now) != 0) return -1;
        if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == bitnet_on_bus_error) return 0;
        memset(&action, 0, sizeof action);
        action.sa_sigaction = bitnet_on_bus_error;
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigemptyset(&action.sa_mask);
        bitnet_previous = now;
        return sigaction(SIGBUS, &action, NULL);
    }

    static int bitnet_guard(char* begin, size_t n, size_t page) {
        int i = 0;
        bitnet_page = page;
        if (bitnet_arm() != 0) return -1;
        while (i < bitnet_n_ranges && bitnet_ranges[i].begin != NULL) i++;
        if (i == BITNET_GUARDS) return -1;
        bitnet_ranges[i].end = begin + n;
        bitnet_ranges[i].is_truncated = 0;
        bitnet_ranges[i].begin = begin;
        if (i == bitnet_n_ranges) bitnet_n_ranges++;
        return i;
    }
    static void bitnet_release(int i) { bitnet_ranges[i].begin = NULL; }
    static int bitnet_is_truncated(int i) { return bitnet_ranges[i].is_truncated; }
    static int bitnet_lock(char* begin, size_t n) { return mlock(begin, n); }
    static int bitnet_unlock(char* begin, size_t n) { return munlock(begin, n); }
    static int bitnet_willneed(char* begin, size_t n) { return madvise(begin, n, MADV_WILLNEED); }
    static int bitnet_dontneed(char* begin, size_t n) { return madvise(begin, n, MADV_DONTNEED); }
    #if defined(MADV_HUGEPAGE)
    static int bitnet_huge_pages(char* begin, size_t n) { return madvise(begin, n, MADV_HUGEPAGE); }
    #else
    static int bitnet_huge_pages(char* begin, size_t n) { return -1; }
    #endif
    #endif
    """
    enum: BITNET_GUARDS
    long bitnet_truncated
    int bitnet_guard(char* begin, size_t n, size_t page)
    int bitnet_arm()
    void bitnet_release(int i)
    int bitnet_is_truncated(int i)
    int bitnet_lock(char* begin, size_t n)
    int bitnet_unlock(char* begin, size_t n)
    int bitnet_willneed(char* begin, size_t n)
    int bitnet_dontneed(char* begin, size_t n)
    int bitnet_huge_pages(char* begin, size_t n)

cdef size_t page_size = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def guard(size_t address, size_t n_bytes):
    """Guard a mapped range; its number, or -1 where that is not possible (Windows, 4096 ranges).

    Called with Python's lock held, as all functions here but the handler: they need no other.
    """
    return bitnet_guard(<char*><uintptr_t>address, n_bytes, page_size)


def arm():
    """Take the signal again where somebody has taken it since: 0.1 us, before each step."""
    bitnet_arm()


def release(int number):
    """Forget a range, before it is unmapped."""
    if number >= 0:
        bitnet_release(number)


def n_truncated():
    """Pages of guarded ranges that their files have lost so far: cheap enough for every step."""
    return bitnet_truncated


def is_truncated(int number):
    """Whether the file of this range has lost pages that were read."""
    return number >= 0 and bool(bitnet_is_truncated(number))


cdef pages(size_t address, size_t n_bytes):
    """The range widened to whole pages."""
    cdef size_t begin = address & ~(page_size - 1)
    return begin, address + n_bytes - begin


def lock(size_t address, size_t n_bytes):
    """Keep the pages of a range in memory. MemoryError where the system refuses."""
    begin, n = pages(address, n_bytes)
    if bitnet_lock(<char*><uintptr_t><size_t>begin, n):
        raise MemoryError(f"locking {n_bytes} bytes: the system refuses ({_limit()})")


def unlock(size_t address, size_t n_bytes):
    """Undo lock."""
    begin, n = pages(address, n_bytes)
    bitnet_unlock(<char*><uintptr_t><size_t>begin, n)


def willneed(size_t address, size_t n_bytes):
    """Ask the system to read a range from disk, in the background."""
    begin, n = pages(address, n_bytes)
    bitnet_willneed(<char*><uintptr_t><size_t>begin, n)


def huge_pages(ranges):
    """Ask that what is not in memory yet be read and mapped in huge pages; [(address, bytes)].

    Linux does where it can (XFS since 5.18, ext4 since 6.16): then a whole read of a file costs a
    512th of the page walks. Ranges less than a huge page apart are one: advice splits a map.
    """
    cdef size_t begin = 0, end = 0, address, n
    for address, n in [*sorted(ranges), (<size_t>-1, 0)]:
        if end and address > end + HUGE_PAGE:
            first, size = pages(begin, end - begin)
            bitnet_huge_pages(<char*><uintptr_t><size_t>first, size)
            end = 0
        begin, end = begin if end else address, max(end, address + n)


def dontneed(size_t address, size_t n_bytes):
    """Let go of the pages of a mapped file; they are mapped again as they are read."""
    begin, n = pages(address, n_bytes)
    bitnet_dontneed(<char*><uintptr_t><size_t>begin, n)


def _limit():
    try:
        import resource
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    except ImportError:
        return "not available here"
    shown = "none" if limit == resource.RLIM_INFINITY else f"{limit} bytes"
    return f"ulimit -l: {shown}; or too little memory"
