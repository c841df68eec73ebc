/* A PKCS#11 module whose slots have other numbers than those of the module behind it,
 * as after a reboot: HSM_KMS_SLOTS_MODULE names that module, and HSM_KMS_SLOTS a file
 * with the number that is added. The file is read once by each process. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <p11-kit/pkcs11.h>
#include <stdlib.h>
#include <stdio.h>

#define EXPORTED __attribute__((visibility("default")))

static CK_FUNCTION_LIST *real;
static CK_FUNCTION_LIST ours;
static CK_SLOT_ID added;

static CK_RV get_slot_list(CK_BBOOL present, CK_SLOT_ID *slots, CK_ULONG *count) {
  CK_RV rv = real->C_GetSlotList(present, slots, count);
  for (CK_ULONG i = 0; rv == CKR_OK && slots && i < *count; i++)
    slots[i] += added;
  return rv;
}

static CK_RV get_slot_info(CK_SLOT_ID slot, CK_SLOT_INFO *info) {
  return real->C_GetSlotInfo(slot - added, info);
}

static CK_RV get_token_info(CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
  return real->C_GetTokenInfo(slot - added, info);
}

static CK_RV get_mechanism_list(CK_SLOT_ID slot, CK_MECHANISM_TYPE *list,
                                CK_ULONG *count) {
  return real->C_GetMechanismList(slot - added, list, count);
}

static CK_RV get_mechanism_info(CK_SLOT_ID slot, CK_MECHANISM_TYPE type,
                                CK_MECHANISM_INFO *info) {
  return real->C_GetMechanismInfo(slot - added, type, info);
}

static CK_RV open_session(CK_SLOT_ID slot, CK_FLAGS flags, void *app,
                          CK_NOTIFY notify, CK_SESSION_HANDLE *session) {
  return real->C_OpenSession(slot - added, flags, app, notify, session);
}

static CK_RV close_all_sessions(CK_SLOT_ID slot) {
  return real->C_CloseAllSessions(slot - added);
}

static CK_RV get_session_info(CK_SESSION_HANDLE session, CK_SESSION_INFO *info) {
  CK_RV rv = real->C_GetSessionInfo(session, info);
  if (rv == CKR_OK)
    info->slotID += added;
  return rv;
}

static void read_number(void) {
  const char *path = getenv("HSM_KMS_SLOTS");
  FILE *file = path ? fopen(path, "re") : NULL;
  if (!file)
    return;
  if (fscanf(file, "%lu", &added) != 1)
    added = 0;
  fclose(file);
}

static CK_RV load(void) {
  void *module = dlopen(getenv("HSM_KMS_SLOTS_MODULE"), RTLD_NOW | RTLD_LOCAL);
  CK_RV (*list)(CK_FUNCTION_LIST **) = NULL;
  if (module)
    *(void **)&list = dlsym(module, "C_GetFunctionList");
  if (!list || list(&real) != CKR_OK)
    return CKR_GENERAL_ERROR;
  read_number();
  ours = *real;
  ours.C_GetSlotList = get_slot_list;
  ours.C_GetSlotInfo = get_slot_info;
  ours.C_GetTokenInfo = get_token_info;
  ours.C_GetMechanismList = get_mechanism_list;
  ours.C_GetMechanismInfo = get_mechanism_info;
  ours.C_OpenSession = open_session;
  ours.C_CloseAllSessions = close_all_sessions;
  ours.C_GetSessionInfo = get_session_info;
  return CKR_OK;
}

EXPORTED CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
  if (!real && load() != CKR_OK)
    return CKR_GENERAL_ERROR;
  *list = &ours;
  return CKR_OK;
}
