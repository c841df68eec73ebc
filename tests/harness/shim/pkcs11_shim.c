/* A PKCS#11 2.40 module for tests: it stands before a real one and fails on demand.
 *
 * Environment: HSM_KMS_SHIM_MODULE is the real module, HSM_KMS_SHIM_CONTROL a file that
 * says what goes wrong (read again when it changes; replace it by rename), and
 * HSM_KMS_SHIM_COUNTS a file that all processes share, with what `struct shared` holds.
 *
 * A line of the control file is a rule or one or more modes; # begins a comment.
 *
 *   C_Function|* [skip=N] [count=N] [len=N] [after] [sleep=ms] [jitter=ms]
 *                [rv=0x30] [held] [hang] [abort] [segv] [fork=ms] [exec=ms] [undying]
 *     Let N calls pass, then act on N calls (counted over all processes; without count:
 *     on every one), with len only on C_Encrypt and C_Decrypt of so many bytes; `after`
 *     the real call, which is made then, instead of in place of it. `fork` leaves a copy
 *     of the process behind for so long, `exec` another program. `held` waits until the
 *     control file changes. With `undying` not even SIGKILL ends the process until the
 *     control file changes, as if a driver kept it.
 *   lost                everything is CKR_DEVICE_REMOVED until the next C_Initialize
 *   idle=ms             the same for a process that has used no session for so long
 *                       (C_GetSessionInfo asks the device nothing, and does not count)
 *   logged_out          C_Logout, once, behind the back of each process
 *   frozen              finds show only what the latest C_Login saw
 *   max_sessions=N      for all processes together; keep_dead counts the dead ones too
 *   cant_lock           C_Initialize with CKF_OS_LOCKING_OK alone is refused
 *   gcm_iv=token        encrypting, the IV is made here and written back to pIv
 *   gcm_iv=append       ... 16 bytes of it, and they follow the tag
 *   gcm_iv=zero         the IV is not looked at: always zero, both ways
 *   strict              gcm_iv=token wants 12 zero bytes, gcm_iv=append no IV at all
 *   bad_tag=RV          what C_Decrypt and C_Verify say of what is not authentic
 *   bad_iv=RV           what C_DecryptInit says of a GCM IV of other than 12 bytes
 *   corrupt=N           one bit of the Nth C_Encrypt from now on is flipped
 *   no_gcm no_ecb no_cbc            mechanisms that are not there
 *   odd_value_len=BYTE  CKA_VALUE_LEN is CKR_GENERAL_ERROR if CKA_ID ends with BYTE
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
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "functions.h"

#define NUMBER(name, ...) N_##name,
#define NAME(name, ...) #name,
#define EACH(what) FUNCTIONS(what, what, what, what, what)
enum { EACH(NUMBER) N_FUNCTIONS };
static const char *const names[] = {EACH(NAME)};

enum { MOST_RULES = 32, MOST_SESSIONS = 1024, ERAS = 16, CONFIGS = 128, IV_BYTES = 16 };

struct shared {
  struct { char name[32]; _Atomic uint64_t calls, acted; } functions[N_FUNCTIONS];
  struct { int64_t pid; uint64_t slot, session; } sessions[MOST_SESSIONS];
  struct era { /* one version of the control file: calls that its rules have seen */
    uint64_t generation;
    _Atomic uint64_t seen[MOST_RULES], encrypted;
  } eras[ERAS];
  uint64_t last_era;
};

#define RULE_WORDS(X) X(skip) X(count) X(len) X(after) X(rv) X(held) X(hang) X(abort) \
  X(segv) X(fork) X(exec) X(undying)
#define MODES(X)                                                                     \
  X(lost) X(idle) X(logged_out) X(frozen) X(max_sessions) X(keep_dead) X(cant_lock) X(strict) \
  X(bad_tag) X(bad_iv) X(corrupt) X(no_gcm) X(no_ecb) X(no_cbc) X(odd_value_len) X(token_flags) X(max_session_count)
#define FIELD(name) uint64_t name;
#define SET(name)                                          \
  if (!strcmp(key, #name)) {                               \
    to->name = value ? strtoull(value, NULL, 0) : 1;       \
    return true;                                           \
  }

struct rule {
  int function; /* or -1 for all */
  double sleep, jitter; /* milliseconds */
  _Atomic uint64_t *seen;
  RULE_WORDS(FIELD)
};

struct config {
  uint64_t generation;
  struct era *era;
  enum { IV_CALLER, IV_TOKEN, IV_APPEND, IV_ZERO } iv;
  int rules;
  struct rule rule[MOST_RULES];
  MODES(FIELD)
};

static CK_FUNCTION_LIST *real;
static struct shared *shared;
static const char *control_path, *counts_path;
static struct config no_faults;
static _Atomic(struct config *) config = &no_faults;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static _Atomic uint64_t initialized_at, logged_out_at; /* generations */
static _Atomic bool lost;
static _Atomic uint64_t used_at; /* milliseconds, of the latest call that counts */

/* ---- the control file ---- */

static void die(const char *what, const char *detail) {
  fprintf(stderr, "pkcs11_shim: %s: %s\n", what, detail);
  _exit(99);
}

static int lock_shared(void) {
  int fd = open(counts_path, O_RDWR | O_CLOEXEC);
  if (fd < 0 || flock(fd, LOCK_EX))
    die("cannot lock", counts_path);
  return fd; /* to be closed */
}

static struct era *era_of(uint64_t generation) {
  int fd = lock_shared(), i = 0;
  while (i < ERAS && shared->eras[i].generation != generation)
    i++;
  if (i == ERAS) {
    i = (int)(shared->last_era++ % ERAS);
    memset(&shared->eras[i], 0, sizeof shared->eras[i]);
    shared->eras[i].generation = generation;
  }
  close(fd);
  return &shared->eras[i];
}

static bool set_rule(struct rule *to, const char *key, const char *value) {
  RULE_WORDS(SET)
  double *time = !strcmp(key, "sleep") ? &to->sleep : &to->jitter;
  if (!value || (time == &to->jitter && strcmp(key, "jitter")))
    return false;
  *time = strtod(value, NULL);
  return true;
}

static bool set_mode(struct config *to, const char *key, const char *value) {
  static const char *const ivs[] = {"", "token", "append", "zero"};
  MODES(SET)
  for (int i = IV_TOKEN; i <= IV_ZERO && value && !strcmp(key, "gcm_iv"); i++)
    if (!strcmp(value, ivs[i]))
      to->iv = i;
  return to->iv != IV_CALLER && !strcmp(key, "gcm_iv");
}

static int number_of(const char *name) {
  for (int i = 0; i < N_FUNCTIONS; i++)
    if (!strcmp(name, names[i]))
      return i;
  if (strcmp(name, "*"))
    die("no such function", name);
  return -1;
}

static void parse_line(struct config *c, char *line) {
  char *rest, *word;
  struct rule *r = NULL;
  line[strcspn(line, "#\n")] = 0;
  for (word = strtok_r(line, " \t", &rest); word; word = strtok_r(NULL, " \t", &rest)) {
    if (!r && (!strncmp(word, "C_", 2) || !strcmp(word, "*"))) {
      if (c->rules == MOST_RULES)
        die("too many rules", word);
      r = &c->rule[c->rules];
      r->function = number_of(word);
      r->seen = &c->era->seen[c->rules++];
      continue;
    }
    char *value = strchr(word, '=');
    if (value)
      *value++ = 0;
    if (!(r ? set_rule(r, word, value) : set_mode(c, word, value)))
      die("not understood", word);
  }
}

static uint64_t generation_of(const struct stat *s) {
  uint64_t time = (uint64_t)s->st_mtim.tv_sec * 1000000000u;
  time += (uint64_t)s->st_mtim.tv_nsec;
  return ((s->st_ino * 0x9E3779B97F4A7C15u) ^ time) | 1; /* 0 is a free place */
}

static struct config *read_config(void) {
  /* Used again late: another thread may be reading the one before. */
  static struct config configs[CONFIGS];
  static unsigned reads;
  struct config *c = &configs[reads++ % CONFIGS];
  FILE *file = fopen(control_path, "re");
  struct stat s;
  char line[512];
  if (!file || fstat(fileno(file), &s))
    die("cannot read", control_path);
  memset(c, 0, sizeof *c);
  c->generation = generation_of(&s);
  c->era = era_of(c->generation);
  while (fgets(line, sizeof line, file))
    parse_line(c, line);
  fclose(file);
  return c;
}

static struct config *config_now(void) {
  struct stat s;
  struct config *c = atomic_load(&config);
  if (stat(control_path, &s) || generation_of(&s) == c->generation)
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

static void nap(double milliseconds) {
  struct timespec left = {(time_t)(milliseconds / 1e3), 0};
  left.tv_nsec = (long)((milliseconds - (double)left.tv_sec * 1e3) * 1e6);
  while (nanosleep(&left, &left) && errno == EINTR)
    ;
}

static void fill_random(void *out, size_t bytes) {
  if (getrandom(out, bytes, 0) != (ssize_t)bytes)
    die("no random bytes", strerror(errno));
}

static void leave_behind(const struct rule *r) {
  char seconds[32];
  snprintf(seconds, sizeof seconds, "%g", (double)(r->fork + r->exec) / 1e3);
  if (fork())
    return;
  if (r->exec)
    execl("/bin/sleep", "sleep", seconds, NULL);
  nap((double)r->fork);
  _exit(0);
}

static bool unchanged(uint64_t generation) {
  struct stat s;
  return !stat(control_path, &s) && generation_of(&s) == generation;
}

/* Trace the process `pid`, which stops in its exit, until the control file changes. */
static void hold(pid_t pid, uint64_t generation) {
  int status;
  while (unchanged(generation)) {
    pid_t stopped = waitpid(pid, &status, __WALL | WNOHANG);
    if (stopped == pid && WIFSTOPPED(status) && status >> 16 != PTRACE_EVENT_EXIT)
      ptrace(PTRACE_CONT, pid, NULL, (long)(status >> 16 ? 0 : WSTOPSIG(status)));
    else
      nap(10);
  }
}

static void become_undying(uint64_t generation) {
  int ready[2];
  char answer = 1;
  pid_t pid = getpid();
  if (pipe2(ready, O_CLOEXEC))
    die("no pipe", strerror(errno));
  prctl(PR_SET_DUMPABLE, 1); /* or only root could trace it */
  prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
  if (!fork()) {
    answer = ptrace(PTRACE_SEIZE, pid, NULL, (long)PTRACE_O_TRACEEXIT) != 0;
    if (write(ready[1], &answer, 1) == 1 && !answer) {
      syscall(SYS_close_range, 0U, ~0U, 0U); /* its sockets are the process's own */
      hold(pid, generation);
    }
    _exit(0);
  }
  if (read(ready[0], &answer, 1) != 1 || answer)
    die("cannot be traced", "undying");
  close(ready[0]);
  close(ready[1]);
}

static void act(const struct rule *r, int function, uint64_t generation) {
  static int *volatile nowhere;
  uint32_t chance;
  atomic_fetch_add(&shared->functions[function].acted, 1);
  if (r->sleep > 0 || r->jitter > 0) {
    fill_random(&chance, sizeof chance);
    nap(r->sleep + r->jitter * (chance / 4294967296.0));
  }
  if (r->fork || r->exec)
    leave_behind(r);
  if (r->undying)
    become_undying(generation);
  while (r->held && unchanged(generation))
    nap(10);
  while (r->hang)
    pause();
  if (r->abort)
    abort();
  if (r->segv)
    *nowhere = 1;
}

/* Lose the device if this process has not used it for too long. */
static void notice_idleness(const struct config *c, int function, S session) {
  struct timespec now;
  if (!session || function == N_C_GetSessionInfo)
    return;
  clock_gettime(CLOCK_MONOTONIC, &now);
  uint64_t ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
  uint64_t before = atomic_exchange(&used_at, ms);
  if (c->idle && before && ms > before + c->idle)
    atomic_store(&lost, true);
}

/* What the control file did to this whole process. */
static void notice(const struct config *c, int function, S session) {
  if (function == N_C_Initialize) {
    atomic_store(&initialized_at, c->generation);
    atomic_store(&logged_out_at, c->generation);
    atomic_store(&lost, false);
    atomic_store(&used_at, 0);
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

static struct verdict enter(int function, S session, U len) {
  struct config *c = config_now();
  struct verdict v = {c, function, false, CKR_OK, 0};
  atomic_fetch_add(&shared->functions[function].calls, 1);
  notice(c, function, session);
  notice_idleness(c, function, session);
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
    act(r, function, c->generation);
    v.answered = r->rv != CKR_OK;
    v.rv = r->rv;
  }
  return v;
}

static CK_RV leave(const struct verdict *v, CK_RV rv) {
  for (int i = 0; i < v->config->rules; i++) {
    const struct rule *r = &v->config->rule[i];
    if (!(v->later >> i & 1))
      continue;
    act(r, v->function, v->config->generation);
    if (r->rv)
      rv = r->rv;
  }
  return rv;
}

/* ---- sessions of all processes ---- */

/* A place for one more, -1 for a token that is full, -2 for a table that is. */
static int claim_session(const struct config *c, U slot) {
  int fd = lock_shared(), place = -2;
  uint64_t held = 0;
  for (int i = MOST_SESSIONS - 1; i >= 0; i--) {
    int64_t pid = shared->sessions[i].pid;
    if (pid && !c->keep_dead && kill((pid_t)pid, 0) && errno == ESRCH)
      pid = shared->sessions[i].pid = 0;
    held += pid != 0;
    place = pid ? place : i;
  }
  if (c->max_sessions && held >= c->max_sessions)
    place = -1;
  if (place >= 0) {
    shared->sessions[place].pid = getpid();
    shared->sessions[place].slot = slot;
    shared->sessions[place].session = 0;
  }
  close(fd);
  return place;
}

static void forget_sessions(bool any_slot, U slot, S session) {
  int fd = lock_shared();
  pid_t pid = getpid();
  for (int i = 0; i < MOST_SESSIONS; i++) {
    if (shared->sessions[i].pid != pid)
      continue;
    if (session ? shared->sessions[i].session == session
                : any_slot || shared->sessions[i].slot == slot)
      shared->sessions[i].pid = 0;
  }
  close(fd);
}

static CK_RV hook_C_OpenSession(U slot, U flags, V app, CK_NOTIFY notify, UP session) {
  int place = claim_session(atomic_load(&config), slot);
  if (place == -1)
    return CKR_SESSION_COUNT;
  CK_RV rv = real->C_OpenSession(slot, flags, app, notify, session);
  if (place >= 0) {
    int fd = lock_shared();
    if (rv == CKR_OK)
      shared->sessions[place].session = *session;
    else
      shared->sessions[place].pid = 0;
    close(fd);
  }
  return rv;
}

static CK_RV hook_C_CloseSession(S session) {
  CK_RV rv = real->C_CloseSession(session);
  if (rv == CKR_OK)
    forget_sessions(false, 0, session);
  return rv;
}

static CK_RV hook_C_CloseAllSessions(U slot) {
  CK_RV rv = real->C_CloseAllSessions(slot);
  if (rv == CKR_OK)
    forget_sessions(false, slot, 0);
  return rv;
}

/* ---- start, end, what the token tells of itself ---- */

static CK_FUNCTION_LIST functions;
static struct { O handle[1024]; U count; bool taken; } snapshot;

static CK_RV hook_C_Initialize(V arguments) {
  const CK_C_INITIALIZE_ARGS *args = arguments;
  if (args && args->flags & CKF_OS_LOCKING_OK && !args->LockMutex &&
      atomic_load(&config)->cant_lock)
    return CKR_CANT_LOCK;
  snapshot.taken = false;
  return real->C_Initialize(arguments);
}

static CK_RV hook_C_Finalize(V reserved) {
  CK_RV rv = real->C_Finalize(reserved);
  if (rv == CKR_OK)
    forget_sessions(true, 0, 0);
  return rv;
}

static CK_RV hook_C_GetFunctionList(CK_FUNCTION_LIST **list) {
  *list = &functions;
  return CKR_OK;
}

static CK_RV hook_C_GetTokenInfo(U slot, CK_TOKEN_INFO *info) {
  const struct config *c = atomic_load(&config);
  CK_RV rv = real->C_GetTokenInfo(slot, info);
  if (rv == CKR_OK) {
    info->flags |= c->token_flags;
    if (c->max_session_count)
      info->ulMaxSessionCount = info->ulMaxRwSessionCount = c->max_session_count;
  }
  return rv;
}

static bool missing(CK_MECHANISM_TYPE type) {
  const struct config *c = atomic_load(&config);
  return (c->no_gcm && type == CKM_AES_GCM) || (c->no_ecb && type == CKM_AES_ECB) ||
         (c->no_cbc && (type == CKM_AES_CBC || type == CKM_AES_CBC_PAD));
}

static CK_RV hook_C_GetMechanismList(U slot, UP list, UP count) {
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

static CK_RV hook_C_GetMechanismInfo(U slot, U type, CK_MECHANISM_INFO *info) {
  return missing(type) ? CKR_MECHANISM_INVALID
                       : real->C_GetMechanismInfo(slot, type, info);
}

/* ---- login and finding ---- */

static CK_RV hook_C_GetAttributeValue(S session, O object, A template, U count) {
  U odd = atomic_load(&config)->odd_value_len;
  CK_BYTE id[256];
  CK_ATTRIBUTE own = {CKA_ID, id, sizeof id};
  for (U i = 0; odd && i < count; i++)
    if (template[i].type == CKA_VALUE_LEN &&
        real->C_GetAttributeValue(session, object, &own, 1) == CKR_OK &&
        own.ulValueLen && id[own.ulValueLen - 1] == odd)
      return CKR_GENERAL_ERROR;
  return real->C_GetAttributeValue(session, object, template, count);
}

static void take_snapshot(S session) {
  snapshot.count = 0;
  snapshot.taken = real->C_FindObjectsInit(session, NULL, 0) == CKR_OK;
  if (!snapshot.taken)
    return;
  real->C_FindObjects(session, snapshot.handle, 1024, &snapshot.count);
  real->C_FindObjectsFinal(session);
}

static CK_RV hook_C_Login(S session, U type, B pin, U len) {
  CK_RV rv = real->C_Login(session, type, pin, len);
  if (rv == CKR_OK && atomic_load(&config)->frozen)
    take_snapshot(session);
  return rv;
}

static CK_RV hook_C_FindObjectsInit(S session, A template, U count) {
  if (atomic_load(&config)->frozen && !snapshot.taken)
    take_snapshot(session);
  return real->C_FindObjectsInit(session, template, count);
}

static CK_RV hook_C_FindObjects(S session, OP out, U most, UP count) {
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

/* gcm_iv=append: what C_EncryptInit made, for the C_Encrypt of the same thread. */
static _Thread_local struct { S session; CK_BYTE iv[IV_BYTES]; } made;

static bool is_gcm(const CK_MECHANISM *m) {
  return m && m->mechanism == CKM_AES_GCM && m->pParameter &&
         m->ulParameterLen == sizeof(CK_GCM_PARAMS);
}

static CK_RV make_iv(const struct config *c, CK_GCM_PARAMS *params, CK_BYTE *iv) {
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

static CK_RV hook_C_EncryptInit(S session, M mechanism, O key) {
  const struct config *c = atomic_load(&config);
  CK_BYTE iv[IV_BYTES];
  if (mechanism && missing(mechanism->mechanism))
    return CKR_MECHANISM_INVALID;
  made.session = 0;
  if (c->iv == IV_CALLER || !is_gcm(mechanism))
    return real->C_EncryptInit(session, mechanism, key);
  CK_GCM_PARAMS params = *(CK_GCM_PARAMS *)mechanism->pParameter;
  CK_MECHANISM ours = {CKM_AES_GCM, &params, sizeof params};
  CK_RV rv = make_iv(c, &params, iv);
  if (rv == CKR_OK)
    rv = real->C_EncryptInit(session, &ours, key);
  if (rv == CKR_OK && c->iv == IV_APPEND) {
    made.session = session;
    memcpy(made.iv, iv, IV_BYTES);
  }
  return rv;
}

static CK_RV hook_C_DecryptInit(S session, M mechanism, O key) {
  CK_BYTE iv[IV_BYTES];
  if (mechanism && missing(mechanism->mechanism))
    return CKR_MECHANISM_INVALID;
  const struct config *c = atomic_load(&config);
  if (c->bad_iv && is_gcm(mechanism) &&
      ((CK_GCM_PARAMS *)mechanism->pParameter)->ulIvLen != 12)
    return c->bad_iv;
  if (c->iv != IV_ZERO || !is_gcm(mechanism))
    return real->C_DecryptInit(session, mechanism, key);
  CK_GCM_PARAMS params = *(CK_GCM_PARAMS *)mechanism->pParameter;
  CK_MECHANISM ours = {CKM_AES_GCM, &params, sizeof params};
  CK_RV rv = make_iv(c, &params, iv);
  return rv == CKR_OK ? real->C_DecryptInit(session, &ours, key) : rv;
}

static CK_RV encrypt_and_append(S session, B in, U len, B out, UP out_len) {
  U room = *out_len > IV_BYTES ? *out_len - IV_BYTES : 0;
  CK_RV rv = real->C_Encrypt(session, in, len, out, &room);
  *out_len = room + IV_BYTES;
  if (!out || rv == CKR_BUFFER_TOO_SMALL)
    return rv;
  if (rv == CKR_OK)
    memcpy(out + room, made.iv, IV_BYTES);
  made.session = 0;
  return rv;
}

static CK_RV hook_C_Encrypt(S session, B in, U len, B out, UP out_len) {
  const struct config *c = atomic_load(&config);
  CK_RV rv = made.session == session
                 ? encrypt_and_append(session, in, len, out, out_len)
                 : real->C_Encrypt(session, in, len, out, out_len);
  if (rv == CKR_OK && out && c->corrupt &&
      atomic_fetch_add(&c->era->encrypted, 1) + 1 == c->corrupt)
    out[0] ^= 1;
  return rv;
}

static CK_RV hook_C_Decrypt(S session, B in, U len, B out, UP out_len) {
  const struct config *c = atomic_load(&config);
  CK_RV rv = real->C_Decrypt(session, in, len, out, out_len);
  bool judged = (rv >= CKR_GENERAL_ERROR && rv <= CKR_ARGUMENTS_BAD) ||
                (rv >= CKR_ENCRYPTED_DATA_INVALID && rv <= 0x42); /* AEAD_DECRYPT_FAILED */
  return judged && c->bad_tag ? c->bad_tag : rv;
}

static CK_RV hook_C_Verify(S session, B in, U len, B tag, U tag_len) {
  const struct config *c = atomic_load(&config);
  CK_RV rv = real->C_Verify(session, in, len, tag, tag_len);
  bool judged = rv == CKR_SIGNATURE_INVALID || rv == CKR_SIGNATURE_LEN_RANGE;
  return judged && c->bad_tag ? c->bad_tag : rv;
}

/* ---- the function list ---- */

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

static char *variable(const char *name) {
  char *value = getenv(name);
  if (!value)
    die("not set", name);
  return value;
}

static void begin(void) {
  const char *path = variable("HSM_KMS_SHIM_MODULE");
  control_path = variable("HSM_KMS_SHIM_CONTROL");
  counts_path = variable("HSM_KMS_SHIM_COUNTS");
  void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!module)
    die("cannot load", dlerror());
  CK_C_GetFunctionList get;
  *(void **)&get = dlsym(module, "C_GetFunctionList");
  if (!get || get(&real) != CKR_OK)
    die("no PKCS#11 module", path);
  int fd = open(counts_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0 || ftruncate(fd, sizeof *shared))
    die("cannot use", counts_path);
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (shared == MAP_FAILED)
    die("cannot map", counts_path);
  close(fd);
  for (int i = 0; i < N_FUNCTIONS; i++)
    strncpy(shared->functions[i].name, names[i], sizeof shared->functions[i].name - 1);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, begin);
  return shim_C_GetFunctionList(list);
}
