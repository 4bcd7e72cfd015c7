#include "core/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace loza {

MappedFile::MappedFile(std::shared_ptr<MemoryAccount> account, const std::string& path,
                       size_t bytes)
    : Buffer(std::move(account), Purpose::kMappedWeights, bytes), path_(path) {
  file_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file_ < 0)
    fail(errno == ENOENT ? code::kNotFound : code::kIo, path, ": ", std::strerror(errno));
  try {
    map();
  } catch (...) {
    close(file_);
    throw;
  }
  account_->add(purpose_, static_cast<int64_t>(bytes_));
}

MappedFile::~MappedFile() {
  munmap(data_, bytes_);
  close(file_);
  account_->add(purpose_, -static_cast<int64_t>(bytes_));
}

void MappedFile::map() {
  struct stat status {};
  if (fstat(file_, &status) != 0) fail(code::kIo, path_, ": ", std::strerror(errno));
  if (static_cast<size_t>(status.st_size) != bytes_)
    fail(code::kIo, path_, ": the file had ", bytes_, " bytes when it was read and has ",
         status.st_size, " now");
  void* pages = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file_, 0);
  if (pages == MAP_FAILED) fail(code::kIo, path_, ": ", std::strerror(errno));
  data_ = static_cast<std::byte*>(pages);
}

void MappedFile::read(size_t offset, void* to, size_t bytes) const {
  auto* target = static_cast<std::byte*>(to);
  for (size_t done = 0; done < bytes;) {
    const ssize_t count =
        pread(file_, target + done, bytes - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(code::kIo, path_, ": ", std::strerror(errno));
    if (count == 0) fail(code::kIo, path_, ": the file was shortened while it was read");
    done += static_cast<size_t>(count);
  }
}

}  // namespace loza
