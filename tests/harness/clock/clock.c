/* Shifts the wall clock of the processes that it is preloaded into, for tests.
 *
 * HSM_KMS_CLOCK names a file that holds one double: seconds to add. All processes map
 * it, so that a write moves the clock of those that run. What the kernel says of files
 * stays as it is, and so does the monotonic clock. */

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

static const volatile double *offset;
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

static bool is_wall(clockid_t which) {
  return which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE;
}

int clock_gettime(clockid_t which, struct timespec *now) {
  if (!real)
    *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(which, now);
  if (failed || !offset || !is_wall(which))
    return failed;
  double seconds = floor(*offset);
  long nanoseconds = now->tv_nsec + (long)((*offset - seconds) * BILLION);
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
