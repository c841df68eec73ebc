/* A PKCS#11 2.40 module for tests: it stands before a real one and fails on demand.
 *
 * Environment: HSM_KMS_SHIM_MODULE is the real module, HSM_KMS_SHIM_CONTROL a file that
 * says what goes wrong (read again when it changes; replace it by rename), and
 * HSM_KMS_SHIM_COUNTS a file that all processes share, with what `struct shared` holds.
 *
 * A line of the control file is a rule or one or more modes; # begins a comment.
 *
 *   C_Function|* [skip=N] [count=N] [len=N] [after] [sleep=ms] [jitter=ms]
 *                [rv=0x30] [hang] [abort] [segv]
 *     Let N calls pass, then act on N calls (counted over all processes; without count:
 *     on every one), with len only on C_Encrypt and C_Decrypt of so many bytes; `after`
 *     the real call instead of before and, with rv or hang, in place of it.
 *   lost                everything is CKR_DEVICE_REMOVED until the next C_Initialize
 *   logged_out          C_Logout, once, behind the back of each process
 *   frozen              finds show only what the latest C_Login saw
 *   max_sessions=N      for all processes together; keep_dead counts the dead ones too
 *   cant_lock           C_Initialize with CKF_OS_LOCKING_OK alone is refused
 *   gcm_iv=token        encrypting, the IV is made here and written back to pIv
 *   gcm_iv=append       ... 16 bytes of it, and they follow the tag
 *   gcm_iv=zero         the IV is not looked at: always zero, both ways
 *   strict              gcm_iv=token wants 12 zero bytes, gcm_iv=append no IV at all
 *   bad_tag=RV          what C_Decrypt says of what is not authentic
 *   corrupt=N           one bit of the Nth C_Encrypt from now on is flipped
 *   no_gcm no_ecb no_cbc            mechanisms that are not there
 *   token_flags=BITS max_session_count=N        for CK_TOKEN_INFO
 *
 * `lost` and `logged_out` happen to processes that were initialised before the line was
 * written. A word that is not understood ends the process with code 99. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <p11-kit/pkcs11.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef CK_SESSION_HANDLE S;
typedef CK_OBJECT_HANDLE O;
typedef CK_OBJECT_HANDLE *OP;
typedef CK_MECHANISM *M;
typedef CK_ATTRIBUTE *A;
typedef CK_BYTE *B;
typedef CK_ULONG U;
typedef CK_ULONG *UP;
typedef void *V;

/* Every function: P without a session, S_ with one; PH and SH have a hook below;
 * DH too, and take data of length c. */
#define FUNCTIONS(P, PH, S_, SH, DH)                                                    \
  PH(C_Initialize, 1, V) PH(C_Finalize, 1, V) P(C_GetInfo, 1, CK_INFO *)                \
  PH(C_GetFunctionList, 1, CK_FUNCTION_LIST **) P(C_GetSlotList, 3, CK_BBOOL, UP, UP)   \
  P(C_GetSlotInfo, 2, U, CK_SLOT_INFO *) PH(C_GetTokenInfo, 2, U, CK_TOKEN_INFO *)      \
  PH(C_GetMechanismList, 3, U, UP, UP)                                                  \
  PH(C_GetMechanismInfo, 3, U, U, CK_MECHANISM_INFO *) P(C_InitToken, 4, U, B, U, B)    \
  S_(C_InitPIN, 3, S, B, U) S_(C_SetPIN, 5, S, B, U, B, U)                              \
  PH(C_OpenSession, 5, U, U, V, CK_NOTIFY, UP) SH(C_CloseSession, 1, S)                 \
  PH(C_CloseAllSessions, 1, U) S_(C_GetSessionInfo, 2, S, CK_SESSION_INFO *)            \
  S_(C_GetOperationState, 3, S, B, UP) S_(C_SetOperationState, 5, S, B, U, O, O)        \
  SH(C_Login, 4, S, U, B, U) S_(C_Logout, 1, S) S_(C_CreateObject, 4, S, A, U, OP)      \
  S_(C_CopyObject, 5, S, O, A, U, OP) S_(C_DestroyObject, 2, S, O)                      \
  S_(C_GetObjectSize, 3, S, O, UP) S_(C_GetAttributeValue, 4, S, O, A, U)               \
  S_(C_SetAttributeValue, 4, S, O, A, U) SH(C_FindObjectsInit, 3, S, A, U)              \
  SH(C_FindObjects, 4, S, OP, U, UP) S_(C_FindObjectsFinal, 1, S)                       \
  SH(C_EncryptInit, 3, S, M, O) DH(C_Encrypt, 5, S, B, U, B, UP)                        \
  S_(C_EncryptUpdate, 5, S, B, U, B, UP) S_(C_EncryptFinal, 3, S, B, UP)                \
  SH(C_DecryptInit, 3, S, M, O) DH(C_Decrypt, 5, S, B, U, B, UP)                        \
  S_(C_DecryptUpdate, 5, S, B, U, B, UP) S_(C_DecryptFinal, 3, S, B, UP)                \
  S_(C_DigestInit, 2, S, M) S_(C_Digest, 5, S, B, U, B, UP)                             \
  S_(C_DigestUpdate, 3, S, B, U) S_(C_DigestKey, 2, S, O) S_(C_DigestFinal, 3, S, B, UP)\
  S_(C_SignInit, 3, S, M, O) S_(C_Sign, 5, S, B, U, B, UP) S_(C_SignUpdate, 3, S, B, U) \
  S_(C_SignFinal, 3, S, B, UP) S_(C_SignRecoverInit, 3, S, M, O)                        \
  S_(C_SignRecover, 5, S, B, U, B, UP) S_(C_VerifyInit, 3, S, M, O)                     \
  S_(C_Verify, 5, S, B, U, B, U) S_(C_VerifyUpdate, 3, S, B, U)                         \
  S_(C_VerifyFinal, 3, S, B, U) S_(C_VerifyRecoverInit, 3, S, M, O)                     \
  S_(C_VerifyRecover, 5, S, B, U, B, UP) S_(C_DigestEncryptUpdate, 5, S, B, U, B, UP)   \
  S_(C_DecryptDigestUpdate, 5, S, B, U, B, UP)                                          \
  S_(C_SignEncryptUpdate, 5, S, B, U, B, UP)                                            \
  S_(C_DecryptVerifyUpdate, 5, S, B, U, B, UP) S_(C_GenerateKey, 5, S, M, A, U, OP)     \
  S_(C_GenerateKeyPair, 8, S, M, A, U, A, U, OP, OP) S_(C_WrapKey, 6, S, M, O, O, B, UP)\
  S_(C_UnwrapKey, 8, S, M, O, B, U, A, U, OP) S_(C_DeriveKey, 6, S, M, O, A, U, OP)     \
  S_(C_SeedRandom, 3, S, B, U) S_(C_GenerateRandom, 3, S, B, U)                         \
  S_(C_GetFunctionStatus, 1, S) S_(C_CancelFunction, 1, S)                              \
  P(C_WaitForSlotEvent, 3, U, UP, V)

#define NUMBER(name, ...) N_##name,
#define NAME(name, ...) #name,
#define EACH(what) FUNCTIONS(what, what, what, what, what)
enum { EACH(NUMBER) N_FUNCTIONS };
static const char *const names[] = {EACH(NAME)};

enum { MOST_RULES = 64, MOST_SESSIONS = 1024, MOST_COUNTERS = 4096, IV_BYTES = 16 };

struct shared {
  struct { char name[32]; _Atomic uint64_t calls, acted; } functions[N_FUNCTIONS];
  struct { int64_t pid; uint64_t slot, session; } sessions[MOST_SESSIONS];
  struct { _Atomic uint64_t key, seen; } counters[MOST_COUNTERS];
};

struct rule {
  int function; /* or -1 for all */
  uint64_t skip, count, len;
  double sleep, jitter; /* milliseconds */
  bool after, has_rv, hang, abort, segv;
  CK_RV rv;
  _Atomic uint64_t *seen;
};

struct config {
  uint64_t generation;
  bool lost, logged_out, frozen, keep_dead, cant_lock, strict, no_gcm, no_ecb, no_cbc;
  enum { IV_CALLER, IV_TOKEN, IV_APPEND, IV_ZERO } iv;
  CK_RV bad_tag;
  CK_FLAGS token_flags;
  CK_ULONG max_session_count;
  long max_sessions; /* or -1 */
  uint64_t corrupt;
  _Atomic uint64_t *encrypted; /* since this file was written */
  int rules;
  struct rule rule[MOST_RULES];
};

static CK_FUNCTION_LIST *real;
static struct shared *shared;
static const char *control_path, *counts_path;
static struct config no_faults = {.max_sessions = -1};
static _Atomic(struct config *) config = &no_faults;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static _Atomic uint64_t initialized_at, logged_out_at; /* generations */
static _Atomic bool lost;

/* ---- the control file ---- */

static void die(const char *what, const char *detail)
{
  fprintf(stderr, "pkcs11_shim: %s: %s\n", what, detail);
  _exit(99);
}

static uint64_t mix(uint64_t hash, uint64_t value)
{
  hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
  return (hash ^ (hash >> 29)) | 1; /* never 0, which is a free place */
}

/* A number all processes share, for one line of one version of the control file. */
static _Atomic uint64_t *counter(uint64_t generation, int line)
{
  uint64_t key = mix(generation, (uint64_t)line);
  for (unsigned i = 0; i < MOST_COUNTERS; i++) {
    unsigned place = (unsigned)((key + i) % MOST_COUNTERS);
    uint64_t found = 0;
    if (atomic_compare_exchange_strong(&shared->counters[place].key, &found, key) ||
        found == key)
      return &shared->counters[place].seen;
  }
  die("no room for another rule", counts_path ? counts_path : "");
  return NULL;
}

static bool set_rule(struct rule *r, const char *key, const char *value)
{
  uint64_t number = strtoull(value, NULL, 0);
  if (!strcmp(key, "skip")) r->skip = number;
  else if (!strcmp(key, "count")) r->count = number;
  else if (!strcmp(key, "len")) r->len = number;
  else if (!strcmp(key, "rv")) r->has_rv = true, r->rv = number;
  else if (!strcmp(key, "sleep")) r->sleep = strtod(value, NULL);
  else if (!strcmp(key, "jitter")) r->jitter = strtod(value, NULL);
  else if (!strcmp(key, "after")) r->after = true;
  else if (!strcmp(key, "hang")) r->hang = true;
  else if (!strcmp(key, "abort")) r->abort = true;
  else if (!strcmp(key, "segv")) r->segv = true;
  else return false;
  return true;
}

static bool set_mode(struct config *c, const char *key, const char *value)
{
  uint64_t number = strtoull(value, NULL, 0);
  if (!strcmp(key, "lost")) c->lost = true;
  else if (!strcmp(key, "logged_out")) c->logged_out = true;
  else if (!strcmp(key, "frozen")) c->frozen = true;
  else if (!strcmp(key, "max_sessions")) c->max_sessions = (long)number;
  else if (!strcmp(key, "keep_dead")) c->keep_dead = true;
  else if (!strcmp(key, "cant_lock")) c->cant_lock = true;
  else if (!strcmp(key, "strict")) c->strict = true;
  else if (!strcmp(key, "bad_tag")) c->bad_tag = number;
  else if (!strcmp(key, "corrupt")) c->corrupt = number;
  else if (!strcmp(key, "no_gcm")) c->no_gcm = true;
  else if (!strcmp(key, "no_ecb")) c->no_ecb = true;
  else if (!strcmp(key, "no_cbc")) c->no_cbc = true;
  else if (!strcmp(key, "token_flags")) c->token_flags = number;
  else if (!strcmp(key, "max_session_count")) c->max_session_count = number;
  else if (!strcmp(key, "gcm_iv") && !strcmp(value, "token")) c->iv = IV_TOKEN;
  else if (!strcmp(key, "gcm_iv") && !strcmp(value, "append")) c->iv = IV_APPEND;
  else if (!strcmp(key, "gcm_iv") && !strcmp(value, "zero")) c->iv = IV_ZERO;
  else return false;
  return true;
}

static int number_of(const char *name)
{
  for (int i = 0; i < N_FUNCTIONS; i++)
    if (!strcmp(name, names[i]))
      return i;
  if (strcmp(name, "*"))
    die("no such function", name);
  return -1;
}

static void parse_line(struct config *c, char *line, int number)
{
  char *rest, *word;
  struct rule *r = NULL;
  line[strcspn(line, "#\n")] = 0;
  for (word = strtok_r(line, " \t", &rest); word; word = strtok_r(NULL, " \t", &rest)) {
    if (!r && (!strncmp(word, "C_", 2) || !strcmp(word, "*"))) {
      if (c->rules == MOST_RULES)
        die("too many rules", word);
      r = &c->rule[c->rules++];
      r->function = number_of(word);
      r->seen = counter(c->generation, number);
      continue;
    }
    char *value = strchr(word, '=');
    if (value)
      *value++ = 0;
    if (!(r ? set_rule(r, word, value ? value : "")
            : set_mode(c, word, value ? value : "")))
      die("not understood", word);
  }
}

static uint64_t generation_of(const struct stat *s)
{
  uint64_t time = (uint64_t)s->st_mtim.tv_sec * 1000000000u;
  return mix(mix(1, s->st_ino), time + (uint64_t)s->st_mtim.tv_nsec);
}

static struct config *read_config(void)
{
  FILE *file = fopen(control_path, "re");
  struct stat s;
  char line[512];
  /* Never freed: another thread may be reading the one before. */
  struct config *c = calloc(1, sizeof *c);
  if (!c || !file || fstat(fileno(file), &s))
    die("cannot read", control_path);
  c->max_sessions = -1;
  c->generation = generation_of(&s);
  c->encrypted = counter(c->generation, 0);
  for (int number = 1; fgets(line, sizeof line, file); number++)
    parse_line(c, line, number);
  fclose(file);
  return c;
}

static struct config *config_now(void)
{
  struct stat s;
  struct config *c = atomic_load(&config);
  if (!control_path || stat(control_path, &s) || generation_of(&s) == c->generation)
    return c;
  pthread_mutex_lock(&mutex);
  c = atomic_load(&config);
  if (generation_of(&s) != c->generation)
    atomic_store(&config, c = read_config());
  pthread_mutex_unlock(&mutex);
  return c;
}

/* ---- before and after every call ---- */

struct verdict {
  const struct config *config;
  int function;
  bool answered;
  CK_RV rv;
  uint64_t later; /* one bit for each rule that acts after the call */
};

static void nap(double milliseconds)
{
  struct timespec left = {(time_t)(milliseconds / 1e3), 0};
  left.tv_nsec = (long)((milliseconds - (double)left.tv_sec * 1e3) * 1e6);
  while (nanosleep(&left, &left) && errno == EINTR)
    ;
}

static void fill_random(void *out, size_t bytes)
{
  if (getrandom(out, bytes, 0) != (ssize_t)bytes)
    die("no random bytes", strerror(errno));
}

static void act(const struct rule *r, int function)
{
  static int *volatile nowhere;
  uint32_t chance;
  atomic_fetch_add(&shared->functions[function].acted, 1);
  if (r->sleep > 0 || r->jitter > 0) {
    fill_random(&chance, sizeof chance);
    nap(r->sleep + r->jitter * (chance / 4294967296.0));
  }
  while (r->hang)
    pause();
  if (r->abort)
    abort();
  if (r->segv)
    *nowhere = 1;
}

/* What the control file did to this whole process. */
static void notice(const struct config *c, int function, S session)
{
  if (function == N_C_Initialize) {
    atomic_store(&initialized_at, c->generation);
    atomic_store(&logged_out_at, c->generation);
    atomic_store(&lost, false);
    return;
  }
  if (c->generation == atomic_load(&initialized_at))
    return;
  if (c->lost)
    atomic_store(&lost, true);
  uint64_t before = atomic_load(&logged_out_at);
  if (c->logged_out && session && before != c->generation &&
      atomic_compare_exchange_strong(&logged_out_at, &before, c->generation)) {
    CK_RV rv = real->C_Logout(session);
    if (rv != CKR_OK && rv != CKR_USER_NOT_LOGGED_IN)
      atomic_store(&logged_out_at, before); /* not on this session: the next call */
  }
}

static struct verdict enter(int function, S session, U len)
{
  struct config *c = config_now();
  struct verdict v = {c, function, false, CKR_OK, 0};
  atomic_fetch_add(&shared->functions[function].calls, 1);
  notice(c, function, session);
  if (atomic_load(&lost) && function != N_C_Finalize && function != N_C_GetFunctionList)
    v.answered = true, v.rv = CKR_DEVICE_REMOVED;
  for (int i = 0; i < c->rules && !v.answered; i++) {
    struct rule *r = &c->rule[i];
    if ((r->function >= 0 && r->function != function) || (r->len && r->len != len))
      continue;
    uint64_t n = atomic_fetch_add(r->seen, 1);
    if (n < r->skip || (r->count && n - r->skip >= r->count))
      continue;
    if (r->after) {
      v.later |= (uint64_t)1 << i;
      continue;
    }
    act(r, function);
    v.answered = r->has_rv;
    v.rv = r->rv;
  }
  return v;
}

static CK_RV leave(const struct verdict *v, CK_RV rv)
{
  for (int i = 0; i < v->config->rules; i++) {
    const struct rule *r = &v->config->rule[i];
    if (!(v->later >> i & 1))
      continue;
    act(r, v->function);
    if (r->has_rv)
      rv = r->rv;
  }
  return rv;
}

/* ---- sessions of all processes ---- */

static int lock_sessions(void)
{
  int fd = counts_path ? open(counts_path, O_RDWR | O_CLOEXEC) : -1;
  pthread_mutex_lock(&mutex);
  if (fd >= 0)
    flock(fd, LOCK_EX);
  return fd;
}

static void unlock_sessions(int fd)
{
  if (fd >= 0)
    close(fd);
  pthread_mutex_unlock(&mutex);
}

/* A place for one more, -1 for a token that is full, -2 for a table that is. */
static int claim_session(const struct config *c, U slot)
{
  int fd = lock_sessions(), place = -2;
  long held = 0;
  for (int i = MOST_SESSIONS - 1; i >= 0; i--) {
    int64_t pid = shared->sessions[i].pid;
    if (pid && !c->keep_dead && kill((pid_t)pid, 0) && errno == ESRCH)
      pid = shared->sessions[i].pid = 0;
    held += pid != 0;
    place = pid ? place : i;
  }
  if (c->max_sessions >= 0 && held >= c->max_sessions)
    place = -1;
  if (place >= 0) {
    shared->sessions[place].pid = getpid();
    shared->sessions[place].slot = slot;
    shared->sessions[place].session = 0;
  }
  unlock_sessions(fd);
  return place;
}

static void forget_sessions(bool any_slot, U slot, S session)
{
  int fd = lock_sessions();
  for (int i = 0; i < MOST_SESSIONS; i++) {
    if (shared->sessions[i].pid != getpid())
      continue;
    if (session ? shared->sessions[i].session == session
                : any_slot || shared->sessions[i].slot == slot)
      shared->sessions[i].pid = 0;
  }
  unlock_sessions(fd);
}

static CK_RV hook_C_OpenSession(U slot, U flags, V app, CK_NOTIFY notify, UP session)
{
  int place = claim_session(atomic_load(&config), slot);
  if (place == -1)
    return CKR_SESSION_COUNT;
  CK_RV rv = real->C_OpenSession(slot, flags, app, notify, session);
  if (place >= 0) {
    int fd = lock_sessions();
    if (rv == CKR_OK)
      shared->sessions[place].session = *session;
    else
      shared->sessions[place].pid = 0;
    unlock_sessions(fd);
  }
  return rv;
}

static CK_RV hook_C_CloseSession(S session)
{
  CK_RV rv = real->C_CloseSession(session);
  if (rv == CKR_OK)
    forget_sessions(false, 0, session);
  return rv;
}

static CK_RV hook_C_CloseAllSessions(U slot)
{
  CK_RV rv = real->C_CloseAllSessions(slot);
  if (rv == CKR_OK)
    forget_sessions(false, slot, 0);
  return rv;
}

/* ---- start, end, what the token tells of itself ---- */

static CK_FUNCTION_LIST functions;
static struct { O handle[1024]; U count; bool taken; } snapshot;

static CK_RV hook_C_Initialize(V arguments)
{
  const CK_C_INITIALIZE_ARGS *args = arguments;
  if (args && args->flags & CKF_OS_LOCKING_OK && !args->LockMutex &&
      atomic_load(&config)->cant_lock)
    return CKR_CANT_LOCK;
  snapshot.taken = false;
  return real->C_Initialize(arguments);
}

static CK_RV hook_C_Finalize(V reserved)
{
  CK_RV rv = real->C_Finalize(reserved);
  if (rv == CKR_OK)
    forget_sessions(true, 0, 0);
  return rv;
}

static CK_RV hook_C_GetFunctionList(CK_FUNCTION_LIST **list)
{
  *list = &functions;
  return CKR_OK;
}

static CK_RV hook_C_GetTokenInfo(U slot, CK_TOKEN_INFO *info)
{
  const struct config *c = atomic_load(&config);
  CK_RV rv = real->C_GetTokenInfo(slot, info);
  if (rv == CKR_OK) {
    info->flags |= c->token_flags;
    if (c->max_session_count)
      info->ulMaxSessionCount = info->ulMaxRwSessionCount = c->max_session_count;
  }
  return rv;
}

static bool missing(CK_MECHANISM_TYPE type)
{
  const struct config *c = atomic_load(&config);
  return (c->no_gcm && type == CKM_AES_GCM) || (c->no_ecb && type == CKM_AES_ECB) ||
         (c->no_cbc && (type == CKM_AES_CBC || type == CKM_AES_CBC_PAD));
}

static CK_RV hook_C_GetMechanismList(U slot, UP list, UP count)
{
  CK_MECHANISM_TYPE all[512];
  U found = 512, kept = 0;
  CK_RV rv = real->C_GetMechanismList(slot, all, &found);
  if (rv != CKR_OK)
    return rv;
  for (U i = 0; i < found; i++)
    if (!missing(all[i]))
      all[kept++] = all[i];
  if (list && *count < kept)
    rv = CKR_BUFFER_TOO_SMALL;
  else if (list)
    memcpy(list, all, kept * sizeof *all);
  *count = kept;
  return rv;
}

static CK_RV hook_C_GetMechanismInfo(U slot, U type, CK_MECHANISM_INFO *info)
{
  return missing(type) ? CKR_MECHANISM_INVALID
                       : real->C_GetMechanismInfo(slot, type, info);
}

/* ---- login and finding ---- */

static void take_snapshot(S session)
{
  snapshot.count = 0;
  snapshot.taken = real->C_FindObjectsInit(session, NULL, 0) == CKR_OK;
  if (!snapshot.taken)
    return;
  real->C_FindObjects(session, snapshot.handle, 1024, &snapshot.count);
  real->C_FindObjectsFinal(session);
}

static CK_RV hook_C_Login(S session, U type, B pin, U len)
{
  CK_RV rv = real->C_Login(session, type, pin, len);
  if (rv == CKR_OK && atomic_load(&config)->frozen)
    take_snapshot(session);
  return rv;
}

static CK_RV hook_C_FindObjectsInit(S session, A template, U count)
{
  if (atomic_load(&config)->frozen && !snapshot.taken)
    take_snapshot(session);
  return real->C_FindObjectsInit(session, template, count);
}

static CK_RV hook_C_FindObjects(S session, OP out, U most, UP count)
{
  for (;;) {
    U kept = 0;
    CK_RV rv = real->C_FindObjects(session, out, most, count);
    if (rv != CKR_OK || !*count || !atomic_load(&config)->frozen)
      return rv;
    for (U i = 0; i < *count; i++)
      for (U j = 0; j < snapshot.count; j++)
        if (out[i] == snapshot.handle[j]) {
          out[kept++] = out[i];
          break;
        }
    if ((*count = kept))
      return rv;
  }
}

/* ---- encrypt and decrypt ---- */

static struct { S session; CK_BYTE iv[IV_BYTES]; } made[256]; /* gcm_iv=append */

/* Keep the IV made for a session, or with NULL forget it. */
static void keep_iv(S session, const CK_BYTE *iv)
{
  pthread_mutex_lock(&mutex);
  for (int i = 0, done = 0; i < 256; i++) {
    if (made[i].session == session)
      made[i].session = 0;
    if (iv && !done && !made[i].session) {
      made[i].session = session;
      memcpy(made[i].iv, iv, IV_BYTES);
      done = 1;
    }
  }
  pthread_mutex_unlock(&mutex);
}

static bool kept_iv(S session, CK_BYTE *iv)
{
  bool found = false;
  pthread_mutex_lock(&mutex);
  for (int i = 0; i < 256 && !found; i++)
    if ((found = made[i].session == session))
      memcpy(iv, made[i].iv, IV_BYTES);
  pthread_mutex_unlock(&mutex);
  return found;
}

static bool is_gcm(const CK_MECHANISM *m)
{
  return m && m->mechanism == CKM_AES_GCM && m->pParameter &&
         m->ulParameterLen == sizeof(CK_GCM_PARAMS);
}

static CK_RV make_iv(const struct config *c, CK_GCM_PARAMS *params, CK_BYTE *iv)
{
  static const CK_BYTE zeros[12];
  if (c->iv == IV_APPEND && !(c->strict && params->ulIvLen)) {
    fill_random(iv, IV_BYTES);
    params->pIv = iv;
    params->ulIvLen = IV_BYTES;
  } else if (c->iv == IV_TOKEN && params->pIv && params->ulIvLen &&
             !(c->strict && (params->ulIvLen != 12 || memcmp(params->pIv, zeros, 12)))) {
    fill_random(params->pIv, params->ulIvLen); /* the caller's memory */
  } else if (c->iv == IV_ZERO && params->ulIvLen <= IV_BYTES) {
    memset(iv, 0, IV_BYTES);
    params->pIv = iv;
  } else {
    return CKR_MECHANISM_PARAM_INVALID;
  }
  params->ulIvBits = params->ulIvLen * 8;
  return CKR_OK;
}

static CK_RV hook_C_EncryptInit(S session, M mechanism, O key)
{
  const struct config *c = atomic_load(&config);
  CK_BYTE iv[IV_BYTES];
  if (mechanism && missing(mechanism->mechanism))
    return CKR_MECHANISM_INVALID;
  keep_iv(session, NULL);
  if (c->iv == IV_CALLER || !is_gcm(mechanism))
    return real->C_EncryptInit(session, mechanism, key);
  CK_GCM_PARAMS params = *(CK_GCM_PARAMS *)mechanism->pParameter;
  CK_MECHANISM ours = {CKM_AES_GCM, &params, sizeof params};
  CK_RV rv = make_iv(c, &params, iv);
  if (rv == CKR_OK)
    rv = real->C_EncryptInit(session, &ours, key);
  if (rv == CKR_OK && c->iv == IV_APPEND)
    keep_iv(session, iv);
  return rv;
}

static CK_RV hook_C_DecryptInit(S session, M mechanism, O key)
{
  CK_BYTE iv[IV_BYTES];
  if (mechanism && missing(mechanism->mechanism))
    return CKR_MECHANISM_INVALID;
  if (atomic_load(&config)->iv != IV_ZERO || !is_gcm(mechanism))
    return real->C_DecryptInit(session, mechanism, key);
  CK_GCM_PARAMS params = *(CK_GCM_PARAMS *)mechanism->pParameter;
  CK_MECHANISM ours = {CKM_AES_GCM, &params, sizeof params};
  CK_RV rv = make_iv(atomic_load(&config), &params, iv);
  return rv == CKR_OK ? real->C_DecryptInit(session, &ours, key) : rv;
}

static CK_RV encrypt_and_append(S session, B in, U len, B out, UP out_len, B iv)
{
  U room = *out_len > IV_BYTES ? *out_len - IV_BYTES : 0;
  CK_RV rv = real->C_Encrypt(session, in, len, out, &room);
  *out_len = room + IV_BYTES;
  if (!out || rv == CKR_BUFFER_TOO_SMALL)
    return rv;
  if (rv == CKR_OK)
    memcpy(out + room, iv, IV_BYTES);
  keep_iv(session, NULL);
  return rv;
}

static CK_RV hook_C_Encrypt(S session, B in, U len, B out, UP out_len)
{
  const struct config *c = atomic_load(&config);
  CK_BYTE iv[IV_BYTES];
  CK_RV rv = kept_iv(session, iv)
                 ? encrypt_and_append(session, in, len, out, out_len, iv)
                 : real->C_Encrypt(session, in, len, out, out_len);
  if (rv == CKR_OK && out && c->corrupt &&
      atomic_fetch_add(c->encrypted, 1) + 1 == c->corrupt)
    out[0] ^= 1;
  return rv;
}

static CK_RV hook_C_Decrypt(S session, B in, U len, B out, UP out_len)
{
  const struct config *c = atomic_load(&config);
  CK_RV rv = real->C_Decrypt(session, in, len, out, out_len);
  bool judged = (rv >= CKR_GENERAL_ERROR && rv <= CKR_ARGUMENTS_BAD) ||
                (rv >= CKR_ENCRYPTED_DATA_INVALID && rv <= 0x42); /* AEAD_DECRYPT_FAILED */
  return judged && c->bad_tag ? c->bad_tag : rv;
}

/* ---- the function list ---- */

#define SIG1(A_) (A_ a)
#define SIG2(A_, B_) (A_ a, B_ b)
#define SIG3(A_, B_, C_) (A_ a, B_ b, C_ c)
#define SIG4(A_, B_, C_, D_) (A_ a, B_ b, C_ c, D_ d)
#define SIG5(A_, B_, C_, D_, E_) (A_ a, B_ b, C_ c, D_ d, E_ e)
#define SIG6(A_, B_, C_, D_, E_, F_) (A_ a, B_ b, C_ c, D_ d, E_ e, F_ f)
#define SIG8(A_, B_, C_, D_, E_, F_, G_, H_) \
  (A_ a, B_ b, C_ c, D_ d, E_ e, F_ f, G_ g, H_ h)
#define ARG1 (a)
#define ARG2 (a, b)
#define ARG3 (a, b, c)
#define ARG4 (a, b, c, d)
#define ARG5 (a, b, c, d, e)
#define ARG6 (a, b, c, d, e, f)
#define ARG8 (a, b, c, d, e, f, g, h)

#define WRAP(name, session, len, call, n, ...)                \
  static CK_RV shim_##name SIG##n(__VA_ARGS__)                \
  {                                                           \
    struct verdict verdict = enter(N_##name, session, len);   \
    return leave(&verdict, verdict.answered ? verdict.rv : call); \
  }
#define FORWARD(name, n) \
  (real->name ? real->name ARG##n : (CK_RV)CKR_FUNCTION_NOT_SUPPORTED)
#define PLAIN(name, n, ...) WRAP(name, 0, 0, FORWARD(name, n), n, __VA_ARGS__)
#define PLAIN_HOOK(name, n, ...) WRAP(name, 0, 0, hook_##name ARG##n, n, __VA_ARGS__)
#define SESSION(name, n, ...) WRAP(name, a, 0, FORWARD(name, n), n, __VA_ARGS__)
#define SESSION_HOOK(name, n, ...) WRAP(name, a, 0, hook_##name ARG##n, n, __VA_ARGS__)
#define DATA_HOOK(name, n, ...) WRAP(name, a, c, hook_##name ARG##n, n, __VA_ARGS__)
FUNCTIONS(PLAIN, PLAIN_HOOK, SESSION, SESSION_HOOK, DATA_HOOK)

#define MEMBER(name, ...) .name = shim_##name,
static CK_FUNCTION_LIST functions = {.version = {2, 40}, EACH(MEMBER)};

static void share_counts(void)
{
  int fd = -1, flags = MAP_SHARED | MAP_ANONYMOUS;
  if (counts_path) {
    fd = open(counts_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof *shared))
      die("cannot use", counts_path);
    flags = MAP_SHARED;
  }
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (shared == MAP_FAILED)
    die("cannot map", counts_path ? counts_path : "memory");
  if (fd >= 0)
    close(fd);
  for (int i = 0; i < N_FUNCTIONS; i++)
    strncpy(shared->functions[i].name, names[i], sizeof shared->functions[i].name - 1);
}

static void begin(void)
{
  const char *path = getenv("HSM_KMS_SHIM_MODULE");
  void *module = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
  CK_C_GetFunctionList get;
  if (!module)
    die("cannot load HSM_KMS_SHIM_MODULE", path ? dlerror() : "it is not set");
  *(void **)&get = dlsym(module, "C_GetFunctionList");
  if (!get || get(&real) != CKR_OK)
    die("no PKCS#11 module", path);
  control_path = getenv("HSM_KMS_SHIM_CONTROL");
  counts_path = getenv("HSM_KMS_SHIM_COUNTS");
  share_counts();
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list)
{
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, begin);
  return shim_C_GetFunctionList(list);
}
