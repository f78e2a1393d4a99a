// Counter-based random numbers: Philox 4x32-10 (Salmon et al. 2011). A mask is a pure function of the
// seed and of what it is a mask for, so it does not depend on threads or tiles, CPU and CUDA draw the
// same one, and backward can draw it again instead of storing it.
#pragma once

#include <cstdint>

#include "activations.h"

namespace fastrnn {

struct Philox {
  std::uint32_t word[4];
};

FASTRNN_HD inline Philox philox(std::uint64_t key, std::uint32_t c0, std::uint32_t c1, std::uint32_t c2,
                                std::uint32_t c3) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Multiplies x[0 .. count), the units from `first` on of row (step, row) of a layer's output, by
// 0 with probability p and by 1 / (1 - p) otherwise.
template <class T>
void apply_dropout(T* x, std::int64_t first, std::int64_t count, double p, std::uint64_t seed,
                   std::int64_t layer, std::int64_t step, std::int64_t row) {
  const T scale = p < 1 ? static_cast<T>(1 / (1 - p)) : T(0);
  const double threshold = p * 4294967296.0;
  for (std::int64_t unit = first; unit < first + count;) {
    const Philox random = philox(seed, static_cast<std::uint32_t>(unit / 4), static_cast<std::uint32_t>(row),
                                 static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(layer));
    for (int i = static_cast<int>(unit % 4); i < 4 && unit < first + count; ++i, ++unit) {
      x[unit - first] *= random.word[i] < threshold ? T(0) : scale;
    }
  }
}

}  // namespace fastrnn
