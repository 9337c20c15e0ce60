/* HCCL between processes of one machine, over POSIX shared memory. Collectives copy a slice of each
   rank's data to a slot and meet at a barrier before and after it is read; point-to-point messages go
   through a ring of bytes for each pair. Everything is done when a call returns.
   Names and signatures: hccl.h of CANN, "HCCL API reference". */
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SLOT = 1 << 20, RING = 1 << 22, PAGE = 4096, ROOT_INFO = 4108 };
enum { HCCL_OK = 0, HCCL_SYSTEM = 24 };
typedef struct { _Atomic uint32_t present, arrived, round; } Meeting;
typedef struct { _Atomic uint64_t written, taken; char bytes[RING]; } Ring;
typedef struct { Meeting* meeting; char* slots; Ring* rings; uint32_t ranks, rank; char name[64]; } Group;

/* HcclDataType: int8 0, int16 1, int32 2, fp16 3, fp32 4, int64 5, uint64 6, uint8 7, uint16 8,
   uint32 9, fp64 10, bfp16 11; HcclReduceOp: sum 0, product 1, max 2, min 3 */
static size_t width(int type) {
  static const size_t widths[] = {1, 2, 4, 2, 4, 8, 8, 1, 2, 4, 8, 2};
  if (type < 0 || type > 11) { fprintf(stderr, "virtual HCCL: data type %d\n", type); abort(); }
  return widths[type];
}

static void barrier(Group* g) {
  uint32_t round = atomic_load(&g->meeting->round);
  if (atomic_fetch_add(&g->meeting->arrived, 1) + 1 == g->ranks) {
    atomic_store(&g->meeting->arrived, 0);
    atomic_fetch_add(&g->meeting->round, 1);
  } else {
    while (atomic_load(&g->meeting->round) == round) sched_yield();
  }
}

static double load(const char* at, size_t i, int type) {
  switch (type) {
    case 0: return ((int8_t*)at)[i];
    case 1: return ((int16_t*)at)[i];
    case 2: return ((int32_t*)at)[i];
    case 3: return (double)((_Float16*)at)[i];
    case 4: return ((float*)at)[i];
    case 7: return ((uint8_t*)at)[i];
    case 10: return ((double*)at)[i];
    case 11: { union { uint32_t bits; float value; } x = {(uint32_t)((uint16_t*)at)[i] << 16}; return x.value; }
    default: fprintf(stderr, "virtual HCCL: no reduction of data type %d\n", type); abort();
  }
}

static void store(char* at, size_t i, int type, double value) {
  switch (type) {
    case 0: ((int8_t*)at)[i] = (int8_t)value; break;
    case 1: ((int16_t*)at)[i] = (int16_t)value; break;
    case 2: ((int32_t*)at)[i] = (int32_t)value; break;
    case 3: ((_Float16*)at)[i] = (_Float16)value; break;
    case 4: ((float*)at)[i] = (float)value; break;
    case 7: ((uint8_t*)at)[i] = (uint8_t)value; break;
    case 10: ((double*)at)[i] = value; break;
    case 11: { /* to the nearest, ties to even */
      union { float value; uint32_t bits; } x = {(float)value};
      ((uint16_t*)at)[i] = x.value != x.value ? 0x7fc0 : (x.bits + 0x7fff + ((x.bits >> 16) & 1)) >> 16;
      break;
    }
  }
}

static double join(double a, double b, int op) {
  if (op == 0) return a + b;
  if (op == 1) return a * b;
  return op == 2 ? (a > b ? a : b) : (a < b ? a : b);
}

static void reduce(Group* g, char* out, size_t count, int type, int op) {
  if (type == 5 || type == 6) { /* 64-bit integers do not fit a double */
    int64_t* to = (int64_t*)out;
    for (size_t i = 0; i < count; i++)
      for (uint32_t r = 0; r < g->ranks; r++) {
        int64_t v = ((int64_t*)(g->slots + (size_t)r * SLOT))[i];
        to[i] = r == 0 ? v : op == 0 ? to[i] + v : op == 1 ? to[i] * v : op == 2 ? (v > to[i] ? v : to[i])
                                                                           : (v < to[i] ? v : to[i]);
      }
    return;
  }
  for (size_t i = 0; i < count; i++) {
    double sum = load(g->slots, i, type);
    for (uint32_t r = 1; r < g->ranks; r++) sum = join(sum, load(g->slots + (size_t)r * SLOT, i, type), op);
    store(out, i, type, sum);
  }
}

static char* own_slot(Group* g) { return g->slots + (size_t)g->rank * SLOT; }
static size_t least(size_t a, size_t b) { return a < b ? a : b; }

int HcclGetRootInfo(char* info) {
  static int groups;
  memset(info, 0, ROOT_INFO);
  snprintf(info, 64, "/virtual_npu_%d_%d", getpid(), groups++);
  return HCCL_OK;
}

int HcclCommInitRootInfo(uint32_t ranks, const char* info, uint32_t rank, void** made) {
  Group* g = calloc(1, sizeof *g);
  g->ranks = ranks;
  g->rank = rank;
  snprintf(g->name, sizeof g->name, "%s", info);
  size_t size = PAGE + (size_t)ranks * SLOT + (size_t)ranks * ranks * sizeof(Ring);
  int file = shm_open(info, O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, (off_t)size)) return HCCL_SYSTEM;
  char* memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return HCCL_SYSTEM;
  g->meeting = (Meeting*)memory;
  g->slots = memory + PAGE;
  g->rings = (Ring*)(g->slots + (size_t)ranks * SLOT);
  atomic_fetch_add(&g->meeting->present, 1);
  while (atomic_load(&g->meeting->present) < ranks) sched_yield();
  barrier(g);
  if (rank == 0) shm_unlink(info);
  *made = g;
  return HCCL_OK;
}
int HcclCommInitRootInfoConfig(uint32_t ranks, const char* info, uint32_t rank, void* config, void** made) {
  return HcclCommInitRootInfo(ranks, info, rank, made);
}
int HcclCommDestroy(void* group) { return HCCL_OK; }
int HcclGetCommAsyncError(void* group, int* error) { *error = 0; return HCCL_OK; }
int HcclGetCommName(void* group, char* name) { strcpy(name, ((Group*)group)->name + 1); return HCCL_OK; }
uint32_t HcclGetCommConfigCapability(void) { return 0; }
int HcclBarrier(void* group, void* stream) { barrier(group); return HCCL_OK; }

int HcclAllReduce(void* in, void* out, uint64_t count, int type, int op, void* group, void* stream) {
  Group* g = group;
  size_t item = width(type), most = SLOT / item;
  for (size_t at = 0; at < count; at += most) {
    size_t part = least(most, count - at);
    memcpy(own_slot(g), (char*)in + at * item, part * item);
    barrier(g);
    reduce(g, (char*)out + at * item, part, type, op);
    barrier(g);
  }
  return HCCL_OK;
}

int HcclReduce(void* in, void* out, uint64_t count, int type, int op, uint32_t root, void* group, void* stream) {
  Group* g = group;
  size_t item = width(type), most = SLOT / item;
  for (size_t at = 0; at < count; at += most) {
    size_t part = least(most, count - at);
    memcpy(own_slot(g), (char*)in + at * item, part * item);
    barrier(g);
    if (g->rank == root) reduce(g, (char*)out + at * item, part, type, op);
    barrier(g);
  }
  return HCCL_OK;
}

int HcclBroadcast(void* data, uint64_t count, int type, uint32_t root, void* group, void* stream) {
  Group* g = group;
  size_t size = count * width(type);
  for (size_t at = 0; at < size; at += SLOT) {
    size_t part = least(SLOT, size - at);
    if (g->rank == root) memcpy(g->slots, (char*)data + at, part);
    barrier(g);
    if (g->rank != root) memcpy((char*)data + at, g->slots, part);
    barrier(g);
  }
  return HCCL_OK;
}

int HcclAllGather(void* in, void* out, uint64_t count, int type, void* group, void* stream) {
  Group* g = group;
  size_t size = count * width(type);
  for (size_t at = 0; at < size; at += SLOT) {
    size_t part = least(SLOT, size - at);
    memcpy(own_slot(g), (char*)in + at, part);
    barrier(g);
    for (uint32_t r = 0; r < g->ranks; r++) memcpy((char*)out + r * size + at, g->slots + (size_t)r * SLOT, part);
    barrier(g);
  }
  return HCCL_OK;
}

int HcclReduceScatter(void* in, void* out, uint64_t count, int type, int op, void* group, void* stream) {
  Group* g = group;
  size_t item = width(type), most = SLOT / item;
  for (uint32_t r = 0; r < g->ranks; r++)
    for (size_t at = 0; at < count; at += most) {
      size_t part = least(most, count - at);
      memcpy(own_slot(g), (char*)in + (r * count + at) * item, part * item);
      barrier(g);
      if (g->rank == r) reduce(g, (char*)out + at * item, part, type, op);
      barrier(g);
    }
  return HCCL_OK;
}

int HcclScatter(void* in, void* out, uint64_t count, int type, uint32_t root, void* group, void* stream) {
  Group* g = group;
  size_t size = count * width(type);
  for (uint32_t r = 0; r < g->ranks; r++)
    for (size_t at = 0; at < size; at += SLOT) {
      size_t part = least(SLOT, size - at);
      if (g->rank == root) memcpy(g->slots, (char*)in + r * size + at, part);
      barrier(g);
      if (g->rank == r) memcpy((char*)out + at, g->slots, part);
      barrier(g);
    }
  return HCCL_OK;
}

/* Messages. A ring takes or gives what it can at once and says how much that was. */
static Ring* ring(Group* g, uint32_t from, uint32_t to) { return &g->rings[(size_t)from * g->ranks + to]; }

static size_t push(Ring* r, const char* data, size_t size) {
  uint64_t at = atomic_load(&r->written);
  size = least(size, RING - (at - atomic_load(&r->taken)));
  for (size_t done = 0; done < size;) {
    size_t where = (at + done) % RING, part = least(RING - where, size - done);
    memcpy(r->bytes + where, data + done, part);
    done += part;
  }
  atomic_store(&r->written, at + size);
  return size;
}

static size_t pull(Ring* r, char* data, size_t size) {
  uint64_t at = atomic_load(&r->taken);
  size = least(size, atomic_load(&r->written) - at);
  for (size_t done = 0; done < size;) {
    size_t where = (at + done) % RING, part = least(RING - where, size - done);
    memcpy(data + done, r->bytes + where, part);
    done += part;
  }
  atomic_store(&r->taken, at + size);
  return size;
}

typedef struct { int receives; void* data; uint64_t count; int type; uint32_t peer; } Item; /* HcclSendRecvItem */

int HcclBatchSendRecv(Item* items, uint32_t count, void* group, void* stream) {
  Group* g = group;
  size_t* done = calloc(count, sizeof *done);
  for (uint32_t left = count; left;) {
    size_t moved = 0;
    left = 0;
    for (uint32_t i = 0; i < count; i++) {
      size_t rest = items[i].count * width(items[i].type) - done[i];
      if (!rest) continue;
      left++;
      char* at = (char*)items[i].data + done[i];
      size_t step = items[i].receives ? pull(ring(g, items[i].peer, g->rank), at, rest)
                                      : push(ring(g, g->rank, items[i].peer), at, rest);
      done[i] += step;
      moved += step;
    }
    if (left && !moved) sched_yield();
  }
  free(done);
  return HCCL_OK;
}
int HcclSend(void* data, uint64_t count, int type, uint32_t to, void* group, void* stream) {
  Item item = {0, data, count, type, to};
  return HcclBatchSendRecv(&item, 1, group, stream);
}
int HcclRecv(void* data, uint64_t count, int type, uint32_t from, void* group, void* stream) {
  Item item = {1, data, count, type, from};
  return HcclBatchSendRecv(&item, 1, group, stream);
}

int HcclAlltoAllV(const void* in, const uint64_t* counts, const uint64_t* places, int type, const void* out,
                  const uint64_t* out_counts, const uint64_t* out_places, int out_type, void* group,
                  void* stream) {
  Group* g = group;
  Item* items = calloc(2 * g->ranks, sizeof *items);
  for (uint32_t r = 0; r < g->ranks; r++) {
    items[r] = (Item){0, (char*)in + places[r] * width(type), counts[r], type, r};
    items[g->ranks + r] = (Item){1, (char*)out + out_places[r] * width(out_type), out_counts[r], out_type, r};
  }
  int error = HcclBatchSendRecv(items, 2 * g->ranks, group, stream);
  free(items);
  return error;
}
int HcclAlltoAll(const void* in, uint64_t count, int type, const void* out, uint64_t out_count, int out_type,
                 void* group, void* stream) {
  Group* g = group;
  uint64_t* table = calloc(4 * g->ranks, sizeof *table);
  for (uint32_t r = 0; r < g->ranks; r++) {
    table[r] = count;
    table[g->ranks + r] = r * count;
    table[2 * g->ranks + r] = out_count;
    table[3 * g->ranks + r] = r * out_count;
  }
  int error = HcclAlltoAllV(in, table, table + g->ranks, type, out, table + 2 * g->ranks, table + 3 * g->ranks,
                            out_type, group, stream);
  free(table);
  return error;
}
