// What the driver asks of a device. A `Device` is a small handle, copied freely, of a stream of work:
// everything below is queued there, in order, and nothing waits for the host.
//
//   void* allocate(bytes);                   aligned to 256 bytes, contents undefined; throws std::bad_alloc
//   void release(void* memory);              once what is queued has used it
//   void copy(void* to, const void* from, bytes);   both on the device
//   void zero(void* to, bytes);
//   void launch(rows, columns, functor);     functor(row, column) for all of them, in any order and at once
//   void launch_rows(rows, units, functor);  functor(row, team) for all rows, by a team for some units each
//   void multiply(const Product<In, Out>&);
//   void wait();                             until all is done; never in a pass
//   Device for_workspace() const;            another handle of the stream, for a thread of its own
//   block_bytes                              how much an inference call projects ahead of its steps, about
//
// A functor is a trivially copyable object with a const FASTRNN_HD operator(). What one call writes no
// other call of the same launch may touch. In launch_rows the threads of a team share a row: a thread touches
// only units team.thread, team.thread + team.threads, ... and learns of the others by team.sum(value), which
// all call together; so memory needs no fence between two sums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "product.h"

namespace fastrnn {

// Memory of a device.
template <class Device>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_) device_.release(data_);
  }

  // At least `bytes`, contents undefined. Keeps what it has when that is enough. Work of another stream that
  // uses it must have been waited for.
  void* reserve(const Device& device, std::size_t bytes) {
    if (data_ && bytes <= size_) {
      device_ = device;
      return data_;
    }
    if (data_) device_.release(std::exchange(data_, nullptr));
    device_ = device;
    data_ = device_.allocate(bytes);
    size_ = bytes;
    return data_;
  }
  std::size_t size() const { return size_; }

 private:
  Device device_{};
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace fastrnn
