// Memory of the engine: cache-line aligned, in huge pages where it is large (a weight matrix of 16 MB
// read every step costs 4096 page walks otherwise).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastrnn {

constexpr std::size_t cache_line = 64;

class Storage {
 public:
  Storage() = default;
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;
  ~Storage() { std::free(data_); }

  // At least `bytes`, contents undefined. Keeps what it has when that is enough.
  void* reserve(std::size_t bytes) {
    if (bytes <= size_) return data_;
    std::free(std::exchange(data_, nullptr));
    size_ = 0;
    constexpr std::size_t huge_page = std::size_t{1} << 21;
    const std::size_t alignment = bytes >= huge_page ? huge_page : cache_line;
    const std::size_t size = (bytes + alignment - 1) / alignment * alignment;
    data_ = std::aligned_alloc(alignment, size);
    if (!data_) throw std::bad_alloc();
#if defined(__linux__)
    if (alignment == huge_page) madvise(data_, size, MADV_HUGEPAGE);
#endif
    size_ = size;
    return data_;
  }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// Hands out aligned pieces of one block. With a null base it only counts: lay out once to learn the
// size, reserve, and lay out again to get the pieces.
class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(std::int64_t count) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + cache_line - 1) / cache_line * cache_line;
    return piece;
  }

  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

}  // namespace fastrnn
