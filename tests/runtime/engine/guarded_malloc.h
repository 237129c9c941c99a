// A malloc that aborts inside a NoAllocationScope and says who asked, in the place of the C
// library's. For one source of a program; SENSORIUM_OWN_MALLOC is 0 where a sanitizer brings its
// own.
#pragma once

#include <errno.h>
#include <execinfo.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "runtime/base/no_allocation.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SENSORIUM_OWN_MALLOC 0  // the sanitizers bring theirs
#else
#define SENSORIUM_OWN_MALLOC 1
#endif

#if SENSORIUM_OWN_MALLOC
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* p, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

static void Forbid(size_t size) {
  if (!sensorium::NoAllocationScope::Active()) return;
  char text[] = "a step asked for memory\n";
  if (write(STDERR_FILENO, text, sizeof text - 1) < 0) std::abort();
  (void)size;
  void* frames[48];
  const int depth = backtrace(frames, 48);
  backtrace_symbols_fd(frames, depth, STDERR_FILENO);
  std::abort();
}

void* malloc(size_t size) {
  Forbid(size);
  return __libc_malloc(size);
}
void* calloc(size_t count, size_t size) {
  Forbid(count * size);
  return __libc_calloc(count, size);
}
void* realloc(void* p, size_t size) {
  Forbid(size);
  return __libc_realloc(p, size);
}
void* memalign(size_t alignment, size_t size) {
  Forbid(size);
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void** p, size_t alignment, size_t size) {
  *p = memalign(alignment, size);
  return *p ? 0 : ENOMEM;
}
}
#endif
