/* AscendCL's runtime in host memory: devices, contexts, streams, events, allocation and copies, as far
   as torch_npu asks for them. Everything is done when a call returns. Operators are not here: they
   run as CPU kernels on aliases of the same memory (fallback.cpp).
   Names and signatures: acl_rt.h and acl_op.h of CANN, "AscendCL API reference". */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DONE = 0, NO_CONTEXT = 107002, NO_DEVICE = 107001, NO_MEMORY = 207001, NO_OPERATOR = 500002 };
static __thread int32_t current = -1; /* asking for a device before one was set is an error */

static int32_t devices(void) {
  const char* count = getenv("VIRTUAL_NPU");
  return count ? atoi(count) : 0;
}

/* Calls without a result beyond success. */
#define NOTHING(name) int name(void) { return DONE; }
NOTHING(aclInit) NOTHING(aclFinalize) NOTHING(aclrtResetDevice) NOTHING(aclrtResetDeviceForce)
NOTHING(aclrtSetCurrentContext) NOTHING(aclrtSynchronizeStream) NOTHING(aclrtSynchronizeStreamWithTimeout)
NOTHING(aclrtSynchronizeDevice) NOTHING(aclrtSynchronizeDeviceWithTimeout) NOTHING(aclrtSetStreamFailureMode)
NOTHING(aclrtSetStreamAttribute) NOTHING(aclrtRecordEvent) NOTHING(aclrtResetEvent) NOTHING(aclrtStreamWaitEvent)
NOTHING(aclrtSynchronizeEvent) NOTHING(aclrtDeviceEnablePeerAccess) NOTHING(aclrtSetDeviceSatMode)
NOTHING(aclrtSetOpWaitTimeout) NOTHING(aclrtSetOpExecuteTimeOut) NOTHING(aclrtSetStreamOverflowSwitch)
NOTHING(aclrtGetLastError) NOTHING(aclrtPeekAtLastError) NOTHING(aclrtSetSysParamOpt) NOTHING(aclrtCtxSetSysParamOpt)
NOTHING(aclSetCompileopt) NOTHING(aclAppLog) NOTHING(aclmdlInitDump) NOTHING(aclmdlFinalizeDump)
NOTHING(aclrtProcessReport) NOTHING(aclSetTensorFormat) NOTHING(aclSetTensorShape) NOTHING(aclSetTensorPlaceMent)
NOTHING(aclSetTensorDescName)

/* Calls that write one number, behind nothing, a handle or a number. */
#define TELL(name, type, value) int name(type* answer) { if (answer) *answer = (value); return DONE; }
#define TELL_OF(name, of, type, value) \
  int name(of which, type* answer) { (void)which; if (answer) *answer = (value); return DONE; }
TELL(aclrtGetDeviceCount, uint32_t, (uint32_t)devices())
TELL_OF(aclrtStreamQuery, void*, int32_t, 0)
TELL_OF(aclrtStreamGetId, void*, int32_t, 0)
TELL_OF(aclrtQueryEventStatus, void*, int32_t, 1)
TELL_OF(aclrtQueryEventWaitStatus, void*, int32_t, 0)
TELL_OF(aclrtGetStreamOverflowSwitch, void*, uint32_t, 0)
TELL_OF(aclrtSetOpExecuteTimeOutV2, uint64_t, uint64_t, which)
TELL_OF(aclrtGetSysParamOpt, int, int64_t, 0)
TELL_OF(aclGetCannAttribute, int, int32_t, 1)

const char* aclrtGetSocName(void) { return "Ascend910B3"; }
const char* aclGetRecentErrMsg(void) { return "virtual NPU: its runtime has no more to say"; }

int aclGetDeviceCapability(uint32_t device, int info, int64_t* answer) {
  *answer = info == 1 ? 20 : 40; /* AI cores, vector cores: of a 910B3 */
  return DONE;
}

/* Devices and contexts; the context of a device is its place in a table. */
int aclrtGetDevice(int32_t* device) {
  if (current < 0) return NO_CONTEXT;
  *device = current;
  return DONE;
}
int aclrtSetDevice(int32_t device) {
  if (device < 0 || device >= devices()) return NO_DEVICE;
  current = device;
  return DONE;
}
int aclrtGetCurrentContext(void** context) {
  static char table[64];
  if (current < 0) return NO_CONTEXT;
  *context = &table[current];
  return DONE;
}
int aclrtGetPrimaryCtxState(int32_t device, uint32_t* flags, int32_t* active) {
  if (flags) *flags = 0;
  if (active) *active = 1;
  return DONE;
}

/* Handles. */
static int handle(void** made) {
  *made = calloc(1, 64);
  return *made ? DONE : NO_MEMORY;
}
static int release(void* made) {
  free(made);
  return DONE;
}
int aclrtCreateStream(void** stream) { return handle(stream); }
int aclrtCreateStreamWithConfig(void** stream, uint32_t priority, uint32_t flag) { return handle(stream); }
int aclrtDestroyStream(void* stream) { return release(stream); }
int aclrtDestroyStreamForce(void* stream) { return release(stream); }
int aclrtCreateEvent(void** event) { return handle(event); }
int aclrtCreateEventWithFlag(void** event, uint32_t flag) { return handle(event); }
int aclrtCreateEventExWithFlag(void** event, uint32_t flag) { return handle(event); }
int aclrtDestroyEvent(void* event) { return release(event); }
int aclrtEventElapsedTime(float* milliseconds, void* start, void* end) {
  *milliseconds = 0;
  return DONE;
}

/* Memory: the host's, aligned as the device's. */
static int allocate(void** place, size_t size) {
  return posix_memalign(place, 512, size ? size : 1) ? NO_MEMORY : DONE;
}
int aclrtMalloc(void** place, size_t size, int policy) { return allocate(place, size); }
int aclrtMallocAlign32(void** place, size_t size, int policy) { return allocate(place, size); }
int aclrtMallocHost(void** place, size_t size) { return allocate(place, size); }
int aclrtMallocHostWithCfg(void** place, uint64_t size, void* config) { return allocate(place, size); }
int aclrtFree(void* place) { return release(place); }
int aclrtFreeHost(void* place) { return release(place); }
int aclrtGetMemInfo(int kind, size_t* unused, size_t* total) {
  *unused = (size_t)60 << 30;
  *total = (size_t)64 << 30;
  return DONE;
}
int aclrtGetMemUceInfo(int32_t device, void* info, size_t room, size_t* count) {
  if (count) *count = 0;
  return DONE;
}
int aclrtPointerGetAttributes(const void* place, void* attributes) { return 107000; }
int aclrtDeviceCanAccessPeer(int32_t* can, int32_t device, int32_t peer) {
  *can = 0;
  return DONE;
}
int aclrtMemcpy(void* to, size_t room, const void* from, size_t size, int kind) {
  memmove(to, from, size);
  return DONE;
}
int aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t size, int kind, void* stream) {
  return aclrtMemcpy(to, room, from, size, kind);
}
int aclrtMemset(void* place, size_t room, int32_t value, size_t size) {
  memset(place, value, size);
  return DONE;
}
int aclrtMemsetAsync(void* place, size_t room, int32_t value, size_t size, void* stream) {
  return aclrtMemset(place, room, value, size);
}

/* Single operators that torch_npu runs by itself on flat buffers: filling with zeros, copying, and
   padding at the end. */
typedef struct {
  void* data;
  size_t size;
} Buffer;
void* aclCreateDataBuffer(void* data, size_t size) {
  Buffer* made = malloc(sizeof *made);
  *made = (Buffer){data, size};
  return made;
}
int aclDestroyDataBuffer(const void* buffer) { return release((void*)buffer); }
void* aclCreateTensorDesc(int type, int rank, const int64_t* sizes, int format) { return calloc(1, 64); }
void aclDestroyTensorDesc(const void* made) { free((void*)made); }
void* aclopCreateAttr(void) { return calloc(1, 64); }
void aclopDestroyAttr(const void* made) { free((void*)made); }
int aclopCompileAndExecute(const char* name, int inputs, const void* const* in_desc,
                           const void* const* in, int outputs, const void* const* out_desc,
                           void* const* out, const void* attributes, int engine, int compile,
                           const char* path, void* stream) {
  Buffer* target = outputs == 1 ? out[0] : NULL;
  if (target && !strcmp(name, "Fill")) {
    memset(target->data, 0, target->size);
    return DONE;
  }
  int copies = !strcmp(name, "PadV3") || !strcmp(name, "Identity") || !strcmp(name, "TensorMove") ||
               !strcmp(name, "ViewCopy");
  if (target && copies && inputs > 0) {
    const Buffer* source = in[0];
    if (source->size <= target->size) {
      memmove(target->data, source->data, source->size);
      memset((char*)target->data + source->size, 0, target->size - source->size);
      return DONE;
    }
  }
  fprintf(stderr, "virtual NPU: operator %s is not simulated\n", name);
  return NO_OPERATOR;
}
size_t aclGetCompileoptSize(int option) { return 16; }
int aclGetCompileopt(int option, char* value, size_t room) {
  strncpy(value, "disable", room);
  return DONE;
}
