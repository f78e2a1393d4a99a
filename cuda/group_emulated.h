// Groups of group.h as threads of the host: one for every warp, and barriers. They exchange what the device's
// exchange, in the same memory and order, so that a sanitizer sees who forgot to wait for whom.
#pragma once

#include <atomic>
#include <barrier>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "group.h"
#include "planner.h"

namespace fastrnn::FASTRNN_TARGET {

struct EmulatedBlock {
  EmulatedBlock(const PersistentShape& shape)
      : shared(static_cast<std::size_t>(shape.shared_bytes() + 256), static_cast<char>(0xFF)),
        meet(shape.warps) {}
  char* base() {
    const auto address = reinterpret_cast<std::uintptr_t>(shared.data());
    return shared.data() + (256 - address % 256) % 256;
  }

  std::vector<char> shared;  // full of NaN
  std::barrier<> meet;
};

// One group, all of it.
struct EmulatedBlocks {
  EmulatedBlocks(const PersistentShape& s, Policy p)
      : shape(s),
        layout(layout_of(s)),
        policy(p),
        meet(s.ranks * s.warps),
        flags(static_cast<std::size_t>(s.ranks)) {
    for (int rank = 0; rank < s.ranks; ++rank) blocks.push_back(std::make_unique<EmulatedBlock>(s));
    for (auto& buffer : global) {
      buffer.assign(static_cast<std::size_t>(s.buffer_bytes()), 0);
    }
    for (auto& flag : flags) flag = 0;
  }

  PersistentShape shape;
  PersistentLayout layout;
  Policy policy;
  std::vector<std::unique_ptr<EmulatedBlock>> blocks;
  std::barrier<> meet;                  // of a cluster
  std::vector<char> global[2];          // of a grid, zeros at first
  std::vector<std::atomic<int>> flags;  // of a grid: how many steps a rank has published
};

class EmulatedGroup {
 public:
  EmulatedGroup(EmulatedBlocks& blocks, int block_rank, int block_warp)
      : rank(block_rank),
        warp(block_warp),
        shared(blocks.blocks[static_cast<std::size_t>(block_rank)]->base()),
        blocks_(blocks),
        block_(*blocks.blocks[static_cast<std::size_t>(block_rank)]) {}

  static constexpr bool is_far = true;  // as in a grid, the harder case
  const int rank, warp;
  char* const shared;

  template <class F>
  void lanes(const F& f) const {
    for (int lane = 0; lane < warp_lanes; ++lane) f(lane);
  }
  int thread(int lane) const { return warp * warp_lanes + lane; }
  void sync() { block_.meet.arrive_and_wait(); }
  void start() {
    if (blocks_.policy == Policy::cluster) {
      blocks_.meet.arrive_and_wait();
      release(0);
    } else {
      sync();
    }
  }
  char* buffer(int step) const {
    return blocks_.policy == Policy::grid ? blocks_.global[step % 2].data() : buffer_of(shared, step);
  }
  static std::uint64_t words(const char* fragment, int lane) { return right_words(fragment, lane); }

  void publish(int step) {
    if (blocks_.policy == Policy::block) return;
    if (blocks_.policy == Policy::cluster && layout().buffers == 1) blocks_.meet.wait(std::move(*arrival_));
    sync();
    if (blocks_.policy == Policy::cluster) {
      lanes([&](int lane) {
        each_receiver(layout(), rank, warp, lane, [&](int to, int first, int stride) {
          char* const theirs = buffer_of(blocks_.blocks[static_cast<std::size_t>(to)]->base(), step);
          copy_piece(theirs, buffer(step), first, stride);
        });
      });
      arrival_ = blocks_.meet.arrive();
    } else {
      if (warp == 0) flag(rank).store(step + 1, std::memory_order_release);
    }
  }

  void release(int) {
    if (blocks_.policy == Policy::cluster && layout().buffers == 1) arrival_ = blocks_.meet.arrive();
  }

  void receive(int step) {
    if (blocks_.policy == Policy::block) {
      sync();
    } else if (blocks_.policy == Policy::cluster) {
      blocks_.meet.wait(std::move(*arrival_));
    } else {
      if (warp == 0) {
        for (int from = 0; from < layout().ranks; ++from) {
          while (flag(from).load(std::memory_order_acquire) <= step) std::this_thread::yield();
        }
      }
      sync();
    }
  }

 private:
  const PersistentLayout& layout() const { return blocks_.layout; }
  std::atomic<int>& flag(int of) { return blocks_.flags[static_cast<std::size_t>(of)]; }
  char* buffer_of(char* base, int step) const {
    return base + step % layout().buffers * layout().buffer_bytes;
  }
  void copy_piece(char* to, const char* from, int first, int stride) const {
    each_vector(layout(), rank, first, stride,
                [&](int byte) { std::memcpy(to + byte, from + byte, vector_bytes); });
  }

  EmulatedBlocks& blocks_;
  EmulatedBlock& block_;
  std::optional<std::barrier<>::arrival_token> arrival_;
};

// work(group, direction, row_group) by all warps of all blocks.
template <class Work>
void run_emulated(const PersistentShape& shape, Policy policy, int directions, int row_groups,
                  const Work& work) {
  for (int direction = 0; direction < directions; ++direction) {
    for (int row_group = 0; row_group < row_groups; ++row_group) {
      EmulatedBlocks blocks(shape, policy);
      std::vector<std::thread> threads;
      for (int i = 0; i < shape.ranks * shape.warps; ++i) {
        threads.emplace_back([&, i] {
          EmulatedGroup group(blocks, i / shape.warps, i % shape.warps);
          work(group, direction, row_group);
        });
      }
      for (std::thread& thread : threads) thread.join();
    }
  }
}

}  // namespace fastrnn::FASTRNN_TARGET
