/* Shifts clocks of the processes that it is preloaded into, for tests.
 *
 * HSM_KMS_CLOCK names a file that holds two doubles: seconds to add to the wall clock,
 * and to CLOCK_BOOTTIME, which a suspension moves while the monotonic clock stands. All
 * processes map it, so that a write moves the clocks of those that run. What the kernel
 * says of files stays as it is, and so does the monotonic clock. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { BILLION = 1000000000 };

struct offsets { double wall, boot; };
static const volatile struct offsets *offset;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("HSM_KMS_CLOCK");
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0)
    return;
  void *page = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
  offset = page == MAP_FAILED ? NULL : page;
  close(fd);
}

static double offset_of(clockid_t which) {
  if (!offset)
    return 0;
  bool wall = which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE;
  return wall ? offset->wall : which == CLOCK_BOOTTIME ? offset->boot : 0;
}

int clock_gettime(clockid_t which, struct timespec *now) {
  if (!real)
    *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(which, now);
  double more = offset_of(which);
  if (failed || more == 0)
    return failed;
  double seconds = floor(more);
  long nanoseconds = now->tv_nsec + (long)((more - seconds) * BILLION);
  now->tv_sec += (time_t)seconds + nanoseconds / BILLION;
  now->tv_nsec = nanoseconds % BILLION;
  return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  (void)zone;
  int failed = clock_gettime(CLOCK_REALTIME, &exact);
  if (!failed) {
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
  }
  return failed;
}

time_t time(time_t *result) {
  struct timespec now = {(time_t)-1, 0};
  clock_gettime(CLOCK_REALTIME, &now);
  if (result)
    *result = now.tv_sec;
  return now.tv_sec;
}
