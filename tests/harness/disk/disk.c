/* A disk for tests that hangs or has no file locks, for the processes that it is
 * preloaded into and the files below HSM_KMS_DISK.
 *
 * While HSM_KMS_DISK.hang exists, fsync waits; while HSM_KMS_DISK.nolocks exists, flock
 * fails with ENOLCK. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static bool is_there(const char *suffix) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s%s", getenv("HSM_KMS_DISK"), suffix);
  return !access(path, F_OK);
}

static bool is_on_disk(int fd) {
  const char *disk = getenv("HSM_KMS_DISK");
  char link[64], path[PATH_MAX] = "";
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  return disk && readlink(link, path, sizeof path - 1) > 0 &&
         !strncmp(path, disk, strlen(disk));
}

int fsync(int fd) {
  static int (*real)(int);
  if (!real)
    *(void **)&real = dlsym(RTLD_NEXT, "fsync");
  while (is_on_disk(fd) && is_there(".hang"))
    usleep(10000);
  return real(fd);
}

int flock(int fd, int operation) {
  static int (*real)(int, int);
  if (!real)
    *(void **)&real = dlsym(RTLD_NEXT, "flock");
  if (is_on_disk(fd) && is_there(".nolocks")) {
    errno = ENOLCK;
    return -1;
  }
  return real(fd, operation);
}
