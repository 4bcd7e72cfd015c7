// What glibc exports since 2.29, for the addon alone, so that it loads where glibc is older.
#include <sys/random.h>
#include <sys/stat.h>

#include <cstdint>

extern "C" {

#pragma GCC visibility push(hidden)

// What fstat was compiled to before 2.33; the version is that of struct stat, the only one.
[[gnu::visibility("default")]] int __fxstat(int version, int file, struct stat*) noexcept;
[[gnu::visibility("default")]] int __fxstat64(int version, int file, struct stat64*) noexcept;

int fstat(int file, struct stat* status) noexcept { return __fxstat(1, file, status); }

int fstat64(int file, struct stat64* status) noexcept { return __fxstat64(1, file, status); }

// 2.36, for std::random_device.
uint32_t arc4random() noexcept {
  uint32_t value;
  while (getrandom(&value, sizeof(value), 0) != sizeof(value)) {  // a signal came first
  }
  return value;
}

// 2.32. "Perhaps not": std::shared_ptr then always counts with atomic operations, as it must here.
char __libc_single_threaded = 0;

#pragma GCC visibility pop

}  // extern "C"
