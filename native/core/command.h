// Command: a closure with its storage inside, so that enqueueing an operation allocates nothing.
#pragma once

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

namespace loza {

class Command {
 public:
  static constexpr size_t kCapacity = 1008;

  Command() = default;
  template <class F, class = std::enable_if_t<!std::is_same_v<std::decay_t<F>, Command>>>
  Command(F&& body) {  // NOLINT: implicit on purpose, like std::function
    using Body = std::decay_t<F>;
    static_assert(sizeof(Body) <= kCapacity && alignof(Body) <= alignof(std::max_align_t));
    static_assert(std::is_copy_constructible_v<Body>, "a graph keeps a copy");
    new (storage_) Body(std::forward<F>(body));
    table_ = &kTable<Body>;
  }
  Command(const Command& other) { copy_from(other); }
  Command(Command&& other) noexcept { move_from(other); }
  Command& operator=(Command&& other) noexcept {
    if (this != &other) {
      reset();
      move_from(other);
    }
    return *this;
  }
  Command& operator=(const Command&) = delete;
  ~Command() { reset(); }

  void operator()() { table_->invoke(storage_); }

 private:
  struct Table {
    void (*invoke)(void*);
    void (*copy)(void* to, const void* from);
    void (*move)(void* to, void* from);
    void (*destroy)(void*);
  };
  template <class Body>
  static constexpr Table kTable{
      [](void* body) { (*static_cast<Body*>(body))(); },
      [](void* to, const void* from) { new (to) Body(*static_cast<const Body*>(from)); },
      [](void* to, void* from) { new (to) Body(std::move(*static_cast<Body*>(from))); },
      [](void* body) { static_cast<Body*>(body)->~Body(); }};

  void copy_from(const Command& other) {
    if (other.table_) other.table_->copy(storage_, other.storage_);
    table_ = other.table_;
  }
  void move_from(Command& other) {
    if (other.table_) other.table_->move(storage_, other.storage_);
    table_ = other.table_;
    other.reset();
  }
  void reset() {
    if (table_) table_->destroy(storage_);
    table_ = nullptr;
  }

  const Table* table_ = nullptr;
  alignas(std::max_align_t) std::byte storage_[kCapacity];
};

}  // namespace loza
