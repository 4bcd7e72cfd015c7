// A file mapped read-only. Weights are read where they lie: nothing is copied that need not be.
// The file must not be shortened while it is mapped (writers replace checkpoints by renaming); the
// kernel answers a read past a new end with SIGBUS, which no process survives.
#pragma once

#include <string>

#include "core/memory.h"

namespace loza {

class MappedFile final : public Buffer {
 public:
  // `bytes`: the size the caller validated; a file of another size is refused.
  MappedFile(std::shared_ptr<MemoryAccount> account, const std::string& path, size_t bytes);
  ~MappedFile() override;

  // Reads the bytes at `data() + offset` from the file itself, whose pages are not mapped in by this.
  // Any thread. Throws ERR_LOZA_IO, also where the file ends too soon.
  void read(size_t offset, void* to, size_t bytes) const;

 private:
  void map();

  std::string path_;
  int file_ = -1;
};

}  // namespace loza
