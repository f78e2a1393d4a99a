// Groups of group.h on an NVIDIA GPU. The policy says where the blocks of a group meet.
//
// Block: one block is the group. Cluster (compute capability 9.0): blocks write into each other's shared
// memory and meet at the hardware's cluster barrier. Grid: all blocks run at once (cooperative launch), write
// pieces to L2, and raise a flag each with release; readers acquire all flags of the group, and warps load
// fragments from L2 right before they multiply: hardly any is read twice by a block, and shared memory is
// left to weights and sums.
#pragma once

#include "group.h"
#include "planner.h"

namespace fastrnn::FASTRNN_TARGET {

// Memory of a grid's groups, in global memory. All zeros before a launch: a block also reads the ends of
// rows, which no rank writes.
struct GridExchange {
  char* buffers = nullptr;    // of each group two, buffer_bytes() each
  unsigned* flags = nullptr;  // of each group `ranks`
};

// The same for all lanes, which the compiler must be told: it then needs no registers of every thread for
// what follows from it, and no second copy of the code for warps that have diverged.
__device__ __forceinline__ int this_warp() {
  return __shfl_sync(0xFFFFFFFFu, static_cast<int>(threadIdx.x) / warp_lanes, 0);
}

class BlockGroup {
 public:
  __device__ BlockGroup(const PersistentLayout& layout, char* memory)
      : rank(0), warp(this_warp()), shared(memory), layout_(layout) {}

  static constexpr bool is_far = false;
  const int rank, warp;
  char* const shared;

  template <class F>
  __device__ __forceinline__ void lanes(const F& f) const {
    f(static_cast<int>(threadIdx.x) % warp_lanes);
    __syncwarp();
  }
  __device__ __forceinline__ int thread(int) const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
  __device__ __forceinline__ void start() const { sync(); }
  __device__ __forceinline__ char* buffer(int) const { return shared; }
  __device__ __forceinline__ static std::uint64_t words(const char* fragment, int lane) {
    return right_words(fragment, lane);
  }
  __device__ __forceinline__ void publish(int) const {}
  __device__ __forceinline__ void receive(int) const { sync(); }
  __device__ __forceinline__ void release(int) const {}

 protected:
  __device__ BlockGroup(const PersistentLayout& layout, char* memory, int block_rank)
      : rank(block_rank), warp(this_warp()), shared(memory), layout_(layout) {}

  const PersistentLayout& layout_;
};

class ClusterGroup : public BlockGroup {
 public:
  __device__ ClusterGroup(const PersistentLayout& layout, char* memory, int block_rank)
      : BlockGroup(layout, memory, block_rank) {}

  __device__ __forceinline__ void start() const {
    arrive();
    wait();
    release(0);
  }
  __device__ __forceinline__ char* buffer(int step) const {
    return shared + (step & (layout_.buffers - 1)) * layout_.buffer_bytes;
  }
  __device__ __forceinline__ void publish(int step) const {
    if (layout_.buffers == 1) wait();
    sync();
    const char* const mine = buffer(step);
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    each_receiver(layout_, rank, warp, lane, [&](int to, int first, int stride) {
      const std::uint32_t theirs = address_of(mine, to);
      each_vector(layout_, rank, first, stride, [&](int byte) {
        store(theirs + static_cast<std::uint32_t>(byte), *reinterpret_cast<const uint4*>(mine + byte));
      });
    });
    arrive();
  }
  __device__ __forceinline__ void receive(int) const { wait(); }
  __device__ __forceinline__ void release(int) const {
    if (layout_.buffers == 1) arrive();
  }

 private:
  // The same place in another block's shared memory.
  __device__ __forceinline__ static std::uint32_t address_of(const char* own, int rank) {
    std::uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address)
        : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(own))), "r"(rank));
    return address;
  }
  __device__ __forceinline__ static void store(std::uint32_t address, const uint4& v) {
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y),
                 "r"(v.z), "r"(v.w)
                 : "memory");
  }
  __device__ __forceinline__ static void arrive() {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  }
  __device__ __forceinline__ static void wait() {
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
  }
};

class GridGroup : public BlockGroup {
 public:
  static constexpr bool is_far = true;

  __device__ GridGroup(const PersistentLayout& layout, char* memory, int block_rank, int group,
                       const GridExchange& exchange)
      : BlockGroup(layout, memory, block_rank),
        global_(exchange.buffers + group * 2 * layout.buffer_bytes),
        flags_(exchange.flags + group * layout.ranks) {}

  __device__ __forceinline__ char* buffer(int step) const {
    return global_ + (step & 1) * layout_.buffer_bytes;
  }
  // From L2, past L1, which knows nothing of what other blocks write.
  __device__ __forceinline__ static std::uint64_t words(const char* fragment, int lane) {
    std::uint64_t both;
    asm volatile("ld.global.cg.u64 %0, [%1];"
                 : "=l"(both)
                 : "l"(__cvta_generic_to_global(fragment + lane * sizeof both)));
    return both;
  }

  __device__ __forceinline__ void publish(int step) const {
    // Release hands on what the thread has seen, and so what all have written before they met here.
    sync();
    if (threadIdx.x == 0) {
      asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flags_ + rank), "r"(flag_of(step)) : "memory");
    }
  }

  __device__ __forceinline__ void receive(int step) const {
    // Who waits asks without acquire, which would empty L1 every time; one fence makes up for it.
    if (thread(0) < layout_.ranks) {
      for (int from = thread(0); from < layout_.ranks; from += layout_.threads) {
        while (flag(from) < flag_of(step)) {
        }
      }
      asm volatile("fence.acq_rel.gpu;" ::: "memory");
    }
    sync();
  }

 private:
  // A flag is 0 before a launch, and then counts what its block has published.
  __device__ __forceinline__ static unsigned flag_of(int step) { return static_cast<unsigned>(step) + 1; }
  __device__ __forceinline__ unsigned flag(int of) const {
    unsigned value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flags_ + of) : "memory");
    return value;
  }

  char* const global_;
  unsigned* const flags_;
};

}  // namespace fastrnn::FASTRNN_TARGET
