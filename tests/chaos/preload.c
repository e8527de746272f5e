/* Faults of the clock and of the disk in one process, as LD_PRELOAD: a clock that is wrong, and slow fsync.
 *
 * The faults are in a file that the process maps, so that they can change while it runs. Its path is in CHAOS_FAULTS,
 * or is given by chaos_use() in a process that was forked. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct faults { double clock_offset_s; double sync_delay_s; };

static struct faults none;
static volatile struct faults *faults = &none;

int chaos_use(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return -1;
    void *mapped = mmap(NULL, sizeof(struct faults), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) return -1;
    faults = mapped;
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHAOS_FAULTS");
    if (path) chaos_use(path);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += (time_t)faults->clock_offset_s;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *seconds) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (seconds) *seconds = precise.tv_sec;
    return precise.tv_sec;
}

static void delay(void) {
    double seconds = faults->sync_delay_s;
    if (seconds > 0) {
        struct timespec pause = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
        nanosleep(&pause, NULL);
    }
}

int fsync(int file) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    delay();
    return real(file);
}

int fdatasync(int file) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    delay();
    return real(file);
}
