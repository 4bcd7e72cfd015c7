#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace loza {

namespace {

struct OpenFile {
  explicit OpenFile(const std::string& path) : fd(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd < 0)
      fail(errno == ENOENT ? code::kNotFound : code::kIo, path, ": ", std::strerror(errno));
  }
  ~OpenFile() { close(fd); }
  int fd;
};

}  // namespace

MappedFile::MappedFile(std::shared_ptr<MemoryAccount> account, const std::string& path,
                       size_t bytes)
    : Buffer(std::move(account), Purpose::kMappedWeights, bytes) {
  const OpenFile file(path);
  struct stat status {};
  if (fstat(file.fd, &status) != 0) fail(code::kIo, path, ": ", std::strerror(errno));
  if (static_cast<size_t>(status.st_size) != bytes)
    fail(code::kIo, path, ": the file had ", bytes, " bytes when it was read and has ",
         status.st_size, " now");
  void* pages = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (pages == MAP_FAILED) fail(code::kIo, path, ": ", std::strerror(errno));
  data_ = static_cast<std::byte*>(pages);
  account_->add(purpose_, static_cast<int64_t>(bytes_));
}

MappedFile::~MappedFile() {
  munmap(data_, bytes_);
  account_->add(purpose_, -static_cast<int64_t>(bytes_));
}

}  // namespace loza
