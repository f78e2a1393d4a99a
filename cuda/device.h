// What the driver asks of a device. A `Device` is a small handle, copied freely, of a stream of work:
// everything below is queued there, in order, and nothing waits for the host.
//
//   Device on(const CudaStream&) const;      one like this, of that stream
//   void* allocate(bytes);                   aligned to 256 bytes, contents undefined; throws std::bad_alloc
//   void release(void* memory);              once what is queued has used it
//   void copy(void* to, const void* from, bytes);   both on the device
//   void zero(void* to, bytes);
//   void wait();                             until all is done; never in a pass
//   int number() const;                      of this device
//   Device::count(), Device::properties(number)   of all that there are
//   Device::room_bytes()                     of memory that products of a call work in, on any device
//   Device::block_bytes                      how much an inference call projects ahead of its steps, about
//
// What computes needs a turn: `Device::Turn turn(device)`, a device that lasts for one call, during which the
// host thread's current device is this one.
//
//   void use_room(void* memory);             room_bytes() for its products, before the first of them
//   void launch(rows, columns, functor);     functor(row, column) for all of them, in any order and at once
//   void launch_rows(rows, units, functor);  functor(row, team) for all rows, by a team for some units each
//   void multiply(const Product<In, Out>&);
//   bool fits<T>(plan, cell, kind, directions);     whether this device can run the plan for arrays of T
//   void run_persistent(plan, cell, kind, call, directions, exchange);   persistent.h
//
// A functor is a trivially copyable object with a const FASTRNN_HD operator(). What one call writes no
// other call of the same launch may touch. In launch_rows the threads of a team share a row: a thread touches
// only units team.thread, team.thread + team.threads, ... and learns of the others by team.sum(value), which
// all call together; so memory needs no fence between two sums.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#include "network.h"
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

 private:
  Device device_{};
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// What a call works in: what its caller has lent to it, or else a buffer of its own.
template <class Device>
class CallMemory {
 public:
  // For the next call. An empty block: nothing.
  void lend(const DeviceBlock& block) { lent_ = block; }

  void* reserve(const char* name, const Device& device, std::size_t bytes) {
    const DeviceBlock lent = std::exchange(lent_, DeviceBlock{});
    if (!lent.data) return bytes ? own_.reserve(device, bytes) : nullptr;
    if (reinterpret_cast<std::uintptr_t>(lent.data) % alignment != 0) {
      throw std::invalid_argument(std::string(name) + ": expected memory aligned to " +
                                  std::to_string(alignment) + " bytes");
    }
    if (lent.bytes < bytes) {
      throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(bytes) +
                                  " bytes of the device, got " + std::to_string(lent.bytes));
    }
    return lent.data;
  }

 private:
  static constexpr std::uintptr_t alignment = 256;

  Buffer<Device> own_;
  DeviceBlock lent_;
};

}  // namespace fastrnn
