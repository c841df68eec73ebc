/* Takes the randomness from the processes that it is preloaded into, for tests: every
 * byte that the kernel's source of random bytes gives is the same. Such is a process of
 * a virtual machine that is resumed twice from one snapshot, only worse. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BYTE = 0x5a };

ssize_t getrandom(void *out, size_t bytes, unsigned flags) {
  (void)flags;
  memset(out, BYTE, bytes);
  return (ssize_t)bytes;
}

int getentropy(void *out, size_t bytes) {
  memset(out, BYTE, bytes);
  return 0;
}

/* Some builds of Python and of OpenSSL make the system call themselves. */
long syscall(long number, ...) {
  static long (*real)(long, ...);
  long a[6];
  va_list arguments;
  va_start(arguments, number);
  for (int i = 0; i < 6; i++)
    a[i] = va_arg(arguments, long);
  va_end(arguments);
  if (number == SYS_getrandom)
    return getrandom((void *)a[0], (size_t)a[1], (unsigned)a[2]);
  if (!real)
    *(void **)&real = dlsym(RTLD_NEXT, "syscall");
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
