/* A PKCS#11 module for tests that prints to stdout and stderr whenever it can: when it is
 * loaded, at C_Login, and when its process exits. NOISE_MODULE is the real module. */

#include <dlfcn.h>
#include <p11-kit/pkcs11.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static CK_FUNCTION_LIST list;
static CK_FUNCTION_LIST_PTR real;

static void say(const char *words) {
  for (int stream = 1; stream <= 2; stream++)
    if (write(stream, words, strlen(words)) < 0)
      _exit(98);
}

__attribute__((constructor)) static void loaded(void) { say("NOISE at load\n"); }

__attribute__((destructor)) static void unloaded(void) { say("NOISE at exit\n"); }

static CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin,
                   CK_ULONG length) {
  say("NOISE at login\n");
  return real->C_Login(session, user, pin, length);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR out) {
  if (!real) {
    const char *path = getenv("NOISE_MODULE");
    void *module = path ? dlopen(path, RTLD_NOW) : NULL;
    CK_C_GetFunctionList get =
        module ? (CK_C_GetFunctionList)dlsym(module, "C_GetFunctionList") : NULL;
    if (!get || get(&real) != CKR_OK)
      return CKR_GENERAL_ERROR;
    list = *real;
    list.C_Login = login;
  }
  *out = &list;
  return CKR_OK;
}
