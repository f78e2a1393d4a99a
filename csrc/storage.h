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
  Storage(Storage&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Storage& operator=(Storage&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Storage() { release(); }

  // At least `bytes`, contents undefined. Keeps what it has when that is enough.
  void* reserve(std::size_t bytes) {
    if (bytes <= size_) return data_;
    release();
    const std::size_t granule = bytes >= huge_page ? page : cache_line;
    const std::size_t size = (bytes + granule - 1) / granule * granule;
#if defined(__linux__)
    data_ = size >= huge_page ? map(size) : std::aligned_alloc(cache_line, size);
#else
    data_ = std::aligned_alloc(cache_line, size);
#endif
    if (!data_) throw std::bad_alloc();
    size_ = size;
    return data_;
  }

  void* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  // The last part of a block, less than a huge page, is made of common ones: nothing is wasted.
  static constexpr std::size_t huge_page = std::size_t{1} << 21, page = std::size_t{1} << 16;

  void release() {
#if defined(__linux__)
    if (size_ >= huge_page) {
      munmap(data_, size_);
    } else {
      std::free(data_);
    }
#else
    std::free(data_);
#endif
    data_ = nullptr;
    size_ = 0;
  }

#if defined(__linux__)
  // Not by malloc: blocks of this size that come and go make glibc raise its thresholds for the whole
  // process, and every other library's speed with them.
  static void* map(std::size_t size) {
    const std::size_t room = size + huge_page;
    void* const begin = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (begin == MAP_FAILED) return nullptr;
    const auto address = reinterpret_cast<std::uintptr_t>(begin);
    const std::uintptr_t aligned = (address + huge_page - 1) / huge_page * huge_page;
    if (aligned > address) munmap(begin, aligned - address);
    const std::uintptr_t end = aligned + size;
    if (address + room > end) munmap(reinterpret_cast<void*>(end), address + room - end);
    madvise(reinterpret_cast<void*>(aligned), size, MADV_HUGEPAGE);
    return reinterpret_cast<void*>(aligned);
  }
#endif

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
