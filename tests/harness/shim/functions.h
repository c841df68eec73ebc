/* The functions of PKCS#11 2.40 and the types of their parameters, for wrappers. */

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
  S_(C_GetObjectSize, 3, S, O, UP) SH(C_GetAttributeValue, 4, S, O, A, U)               \
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
  SH(C_Verify, 5, S, B, U, B, U) S_(C_VerifyUpdate, 3, S, B, U)                         \
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

/* Parameters and arguments of a function with so many. */
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
